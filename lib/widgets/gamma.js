// The Gamma test of L-RED, Sec. 3.2: drag a statistic, see the fit and the p-value.
import { choice, frame, h, status } from "./controls.js";
import { formatNumber, formatP, gammaTest, logDensity } from "./maths.js";

const H = 230, LEFT = 16, RIGHT = 16, BASE = 170, TOP = 16;

function render({ model, el }) {
  const { classes, examples, level, rate } = model.get("data");
  const W = window.innerWidth < 560 ? 340 : 640;  // on a phone, dots large enough for a finger
  let r = [...examples[0].r], held = null;
  const say = status(), text = (x) => formatNumber(x);
  const limit = 1.6 * Math.max(...examples.flatMap((e) => e.r));
  const x = (value) => LEFT + ((W - LEFT - RIGHT) * value) / limit;
  const which = choice("Start from", examples.map((e, i) => [i, e.name]), 0, (v) => { r = [...examples[v].r]; show(); });
  const curve = h("path", { class: "rb-curve" }), tail = h("path", { class: "rb-tail" });
  const dots = classes.map((name, k) => {
    const node = h("g", { role: "slider", tabindex: 0, class: "rb-dot", "aria-valuemin": 0, "aria-valuemax": limit.toFixed(2), "aria-label": `statistic of class ${name}` },
      h("circle", { r: 15, class: "rb-touch" }), h("circle", { r: 8 }), h("text", { y: 4, "text-anchor": "middle" }, name));
    node.addEventListener("pointerdown", (event) => { held = k; node.setPointerCapture(event.pointerId); node.focus(); event.preventDefault(); });
    node.addEventListener("pointermove", (event) => held === k && move(k, inverse(event.clientX)));
    node.addEventListener("pointerup", () => { held = null; announce(); });
    node.addEventListener("pointercancel", () => { held = null; });
    node.addEventListener("keydown", (event) => {
      const change = { ArrowRight: 0.01, ArrowUp: 0.01, ArrowLeft: -0.01, ArrowDown: -0.01, PageUp: 0.1, PageDown: -0.1 }[event.key];
      const end = { Home: 0.01 * limit, End: limit }[event.key];
      if (change === undefined && end === undefined) return;
      event.preventDefault();
      move(k, end ?? r[k] + change * limit);
      announce();
    });
    return node;
  });
  const ticks = h("g");
  const plot = h("svg", { viewBox: `0 0 ${W} ${H}`, class: "rb-chart rb-gamma", role: "group", "aria-label": "Statistics on their axis, and the fitted Gamma density" },
    tail, curve, h("line", { class: "rb-axis", x1: LEFT, x2: W - RIGHT, y1: BASE, y2: BASE }), ticks,
    h("text", { class: "rb-tick", x: W - RIGHT, y: H - 4, "text-anchor": "end" }, "r = 1 / ‖v‖"), ...dots);
  const facts = h("dl", { class: "rb-facts" });

  const inverse = (clientX) => {
    const box = plot.getBoundingClientRect();
    return ((((clientX - box.left) * W) / box.width - LEFT) * limit) / (W - LEFT - RIGHT);
  };
  function move(k, value) {
    r[k] = Math.max(0.005 * limit, Math.min(limit, value));
    show(false);
  }

  function show(aloud = true) {
    const { shape, scale, logP, suspect } = gammaTest(r);
    const density = (v) => Math.exp(logDensity(v / scale, shape)) / scale;
    const mode = Math.max(shape - 1, 0.05) * scale, most = density(mode) || 1;
    const y = (v) => BASE - (BASE - TOP) * Math.min(1, density(v) / most);
    const points = (from) => Array.from({ length: 241 }, (_, i) => from + ((limit - from) * i) / 240).map((v) => `${x(v).toFixed(1)},${y(Math.max(v, 1e-6)).toFixed(1)}`);
    curve.setAttribute("d", `M${points(1e-6).join("L")}`);
    tail.setAttribute("d", `M${x(r[suspect])},${BASE}L${points(r[suspect]).join("L")}L${x(limit)},${BASE}Z`);
    const order = r.map((_, k) => k).sort((a, b) => r[a] - r[b]), rows = [];
    for (const k of order) {  // dots that would overlap go below one another
      let row = 0;
      while (rows[row] !== undefined && x(r[k]) - rows[row] < 18) row++;
      rows[row] = x(r[k]);
      dots[k].setAttribute("transform", `translate(${x(r[k])} ${BASE + (row % 3) * 18})`);
      dots[k].classList.toggle("rb-mark", k === suspect);
      dots[k].setAttribute("aria-valuenow", r[k]);
      dots[k].setAttribute("aria-valuetext", `${r[k].toFixed(3)}, pattern of length ${text(1 / r[k])}`);
    }
    facts.replaceChildren(...[["p-value", formatP(logP)], ["shape", text(shape)], ["scale", text(scale)], ["most suspicious", classes[suspect]], ["its r", text(r[suspect])]]
      .flatMap(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
    if (aloud) announce();
  }

  function announce() {
    const { logP, suspect } = gammaTest(r);
    say.textContent = `p = ${formatP(logP)}: ${logP < Math.log(level) ? `below ${level}, an attack with target ${classes[suspect]}` : `not below ${level}, no attack`}. This rule flags ${(100 * rate).toFixed(0)} of 100 clean classifiers of ${r.length} classes whose statistics are Gamma.`;
  }

  ticks.replaceChildren(...Array.from({ length: 5 }, (_, i) => (i * limit) / 4).flatMap((v) => [
    h("line", { class: "rb-axis", x1: x(v), x2: x(v), y1: BASE, y2: BASE + 4 }),
    h("text", { class: "rb-tick", x: x(v), y: H - 4, "text-anchor": v ? "middle" : "start" }, v < limit ? text(v) : ""),
  ]));
  frame(el, "The Gamma fit and its p-value", h("div", { class: "rb-row" }, which.node), plot, facts, say,
    h("p", { class: "rb-note" }, "Drag a class along the axis, or move to it with Tab and use the arrow keys. The curve is fitted to all but the largest."));
  show();
}

export default { render };
