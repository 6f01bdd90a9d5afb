// The temperature explorer: plays recorded runs of L-RED; with a kernel, runs it again under a schedule of the reader's.
import { bars, choice, frame, grey, h, lines, picture, player, signed, slider, status, uid, unpack } from "./controls.js";
import { entropy, formatNumber, formatP, gammaTest, median } from "./maths.js";

const text = (x) => formatNumber(x);

function render({ model, el }) {
  let data, arrays, run = 0, target = null;
  const say = status();
  const schedule = choice("Temperature schedule", [], "", (v) => { run = Number(v); reset(last()); });
  const towards = choice("Putative target class", [], "", (v) => { target = Number(v); reset(play.index()); });
  const last = () => (arrays ? arrays[`${run}.norm`].shape[0] - 1 : 0);
  const play = player("Iteration", { frames: 1, text: (i) => `${i} of ${last()}` }, (i, quiet) => show(i, quiet));
  const chart = lines("The search for this target", { ticks: (v) => `${100 * v}%` });
  const pattern = picture("", 170);
  const facts = h("dl", { class: "rb-facts" });
  const weights = h("div"), norms = h("div"), table = h("div", { class: "rb-scroll", tabindex: 0, role: "region", "aria-label": "All schedules" });
  let weightBars, normBars;

  const name = (k) => data.classes[k];
  const kind = (k) => (k === data.truth ? "the attack's target" : data.truth === null ? "clean classifier" : "not attacked");

  function load() {
    data = model.get("data");
    arrays = unpack(data.index, model.get("buffer"));
    run = Math.min(run, data.runs.length - 1);
    if (target === null) target = Math.max(0, data.targets.indexOf(data.truth));
    schedule.set(data.runs.map((r, i) => [i, r.name]), run);
    towards.set(data.targets.map((k, i) => [i, `${name(k)} (${kind(k)})`]), target);
    const k = data.classes.length;
    weightBars = bars("Sources: share sent to the target, and weight", Array(k - 1).fill(""), [
      { name: "q", text },
      { name: "w", text: (x) => x.toFixed(3), mark: (i) => data.sources.includes(sources()[i]) },
    ]);
    normBars = bars("Length of the pattern towards each class", data.classes, [
      { name: "‖v‖", max: () => longest(), text, mark: (i) => i === data.truth },
    ]);
    weights.replaceChildren(weightBars.node);
    norms.replaceChildren(normBars.node);
    compare();
    reset(last());
  }

  const longest = () => Math.max(...data.runs.map((_, r) => Math.max(...arrays[`${r}.final`].values)));
  const sources = () => data.classes.map((_, k) => k).filter((k) => k !== data.targets[target]);
  const verdict = (r) => gammaTest(Array.from(arrays[`${r}.final`].values, (norm) => 1 / norm));

  function compare() {
    const truth = data.truth;
    table.replaceChildren(h("table", { class: "rb-table" },
      h("caption", {}, "The same classifier under every schedule, at the end"),
      h("thead", {}, h("tr", {}, ...["schedule", "iterations", truth === null ? "shortest ‖v‖" : `‖v‖ of ${name(truth)}`, "median ‖v‖", "p-value", "most suspicious"]
        .map((t) => h("th", { scope: "col" }, t)))),
      h("tbody", {}, ...data.runs.map((r, i) => {
        const final = Array.from(arrays[`${i}.final`].values), v = verdict(i);
        return h("tr", { "data-run": r.key }, h("th", { scope: "row" }, r.name),
          ...[arrays[`${i}.norm`].shape[0] - 1, text(truth === null ? Math.min(...final) : final[truth]), text(median(final)), formatP(v.logP), name(v.suspect)]
            .map((x) => h("td", {}, x)));
      }))));
  }

  /** Draw run and target anew, at iteration i. */
  function reset(i) {
    const n = last() + 1, w = arrays[`${run}.w`], column = (key) => Array.from({ length: n }, (_, i) => arrays[`${run}.${key}`].row(i)[target]);
    const top = Math.log(data.classes.length - 1);
    chart.draw([
      { name: "Q, weighted share", class: "rb-a", values: column("Q"), max: 1 },
      { name: "T, of 3", class: "rb-b", values: column("T").map((t) => (t === Infinity ? NaN : t)), max: 3 },
      { name: "entropy of w, of its largest", class: "rb-c", values: Array.from({ length: n }, (_, i) => entropy(w.row(i, target))), max: top },
    ], n, "iteration");
    play.resize(n, i);
    show(play.index(), false);
  }

  /** quiet: while playing, nothing is announced. */
  function show(i, quiet) {
    const k = data.targets[target], q = arrays[`${run}.q`].row(i, target), w = arrays[`${run}.w`].row(i, target);
    const T = arrays[`${run}.T`].row(i)[target], Q = arrays[`${run}.Q`].row(i)[target], norm = arrays[`${run}.norm`].row(i);
    const ends = data.runs[run].steps[k], ended = i >= ends;
    const s = entropy(w), heavy = sources()[w.indexOf(Math.max(...w))];
    weightBars.set(Array.from(w, (ws, j) => [q[j], ws]), sources().map(name));
    normBars.set(Array.from(norm, (x) => [x]));
    chart.at(i);
    const frames = ended ? arrays[`${run}.pattern`] : arrays[`${run}.v`];
    const v = ended ? frames.row(target) : frames.row(Math.floor(i / data.every), target);
    const size = frames.shape.slice(-3), scale = Math.max(...v.map(Math.abs), 1e-9);
    const paint = size[0] === 1 ? (x) => signed(x / scale) : (x) => grey(0.5 + x / scale / 2);
    pattern.set(v, size, paint, `Pattern towards ${name(k)} after ${i} iterations, length ${text(norm[k])}`,
      `v towards ${name(k)}, ‖v‖ = ${text(norm[k])}; ${size[0] === 1 ? "red lightens, blue darkens" : "grey is no change"}, at most ${text(scale)}`);
    facts.replaceChildren(...[["T", text(T)], ["Q", text(Q)], ["entropy of w", `${s.toFixed(2)} of ${Math.log(w.length).toFixed(2)} nats`], ["‖v‖", text(norm[k])]]
      .flatMap(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
    if (quiet) return;
    const v0 = verdict(run);
    say.textContent = i === last()
      ? `All searches have ended: the Gamma test gives p = ${formatP(v0.logP)}; the shortest pattern leads to ${name(v0.suspect)} (‖v‖ = ${text(norm[v0.suspect])}).`
      : `${ended ? `The search for ${name(k)} ended after ${ends} iterations.` : `Iteration ${i}: Q = ${text(Q)}, T = ${text(T)}.`} The heaviest source is ${name(heavy)}, with weight ${text(Math.max(...w))}.`;
  }

  frame(el, "L-RED under different temperatures",
    h("div", { class: "rb-row" }, schedule.node, towards.node), play.node, facts,
    h("div", { class: "rb-columns" }, h("div", {}, chart.node), pattern.node),
    h("div", { class: "rb-columns" }, weights, norms), say, table, live({ model, chosen: (i) => { run = i; load(); } }));
  load();
  let waiting = false;  // both traits come in one message: draw once
  const changed = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; play.stop(); load(); });
  };
  model.on("change:data", changed);
  model.on("change:buffer", changed);
  return () => { play.stop(); model.off("change:data", changed); model.off("change:buffer", changed); };
}

/** A schedule of the reader's own: typed, or drawn. Wakes up when a kernel answers; without one it says how to get one. */
function live({ model, chosen }) {
  const COLUMNS = 24, TOP = 2;
  const id = uid("schedule"), help = uid("help");
  let drawn = Array(COLUMNS).fill(0).map((_, i) => TOP * (1 - i / (COLUMNS - 1)));
  const note = h("p", { class: "rb-note" }, "These runs were recorded. To run a schedule of your own, open this chapter in Jupyter (make lab) and run its cells.");
  const input = h("input", { id, type: "text", value: "geometric:2,0.95", spellcheck: "false", autocomplete: "off", "aria-describedby": help });
  const pad = h("svg", { viewBox: "0 0 240 90", class: "rb-pad", role: "img", "aria-label": "Drawing pad for temperatures, 0 to 2 from bottom to top, first to last iteration from left to right. Without a pointer, type temperatures above." });
  const go = h("button", { type: "button", class: "rb-button", onclick: () => model.send({ type: "run", schedule: input.value }) }, "Run L-RED");
  const halt = h("button", { type: "button", class: "rb-button", disabled: true, onclick: () => model.send({ type: "stop" }) }, "Stop");
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Searches that have ended" }), said = status();
  const paint = () => pad.replaceChildren(...drawn.map((t, i) => h("rect", { x: 10 * i + 1, width: 8, y: 90 - (88 * t) / TOP, height: (88 * t) / TOP })));
  const draw = (event) => {
    if (event.type === "pointerdown") { pad.setPointerCapture(event.pointerId); event.preventDefault(); }
    if (!(event.buttons & 1)) return;
    const box = pad.getBoundingClientRect();
    const i = Math.floor((COLUMNS * (event.clientX - box.left)) / box.width);
    if (i < 0 || i >= COLUMNS) return;
    drawn[i] = Math.max(0, Math.min(TOP, TOP * (1 - (event.clientY - box.top) / box.height)));
    input.value = drawn.map((t) => t.toFixed(2)).join(", ");
    paint();
  };
  pad.addEventListener("pointerdown", draw);
  pad.addEventListener("pointermove", draw);
  paint();
  const form = h("fieldset", { class: "rb-live", hidden: true }, h("legend", {}, "Run a schedule of your own"),
    h("div", { class: "rb-field" }, h("label", { for: id }, "Schedule"), input),
    h("p", { class: "rb-note", id: help }, "paper, hard, uniform, constant:T, linear:T0,steps, geometric:T0,ratio, or temperatures with commas between, which the pad below draws."),
    pad, h("div", { class: "rb-row" }, go, halt, bar), said);
  model.on("msg:custom", (message) => {
    if (message.type === "ready") {
      form.hidden = false;
      note.hidden = true;
    } else if (message.type === "progress") {
      halt.disabled = false;
      bar.value = message.found / message.of;
      said.textContent = `Run ${message.run}: iteration ${message.step}, ${message.found} of ${message.of} searches have ended.`;
    } else if (message.type === "ended") {
      halt.disabled = true;
      said.textContent = message.text;
      if (message.show != null) { bar.value = 1; chosen(message.show); }
    }
  });
  try {
    model.send({ type: "hello" });
  } catch { /* a page without a kernel */ }
  return h("div", {}, note, form);
}

export default { render };
