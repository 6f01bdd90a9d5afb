// Recorded frames: pictures and curves over iterations, queries or the share of pruned neurons. For B3D, triggers are drawn here.
import { choice, frame, grey, h, lines, picture, player, status, unpack } from "./controls.js";
import { formatNumber } from "./maths.js";

function render({ model, el }) {
  const data = model.get("data"), arrays = unpack(data.index, model.get("buffer"));
  let variant = 0, at = 0;
  const say = status(), classes = ["rb-a", "rb-b", "rb-c"];
  const steps = (i) => data.steps[variant][i];
  const last = () => data.steps[variant].length - 1;
  const which = choice(data.choose, data.variants.map((name, i) => [i, name]), 0, (v) => { variant = Number(v); reset(); });
  const play = player(data.axis, { frames: 1, text: (i) => `${steps(i)}${data.unit}` }, (i, quiet) => show(i, quiet));
  const chart = lines(data.title, { ticks: (v) => `${100 * v}%` });
  const panels = data.panels.map((p) => picture(p.name, 150));
  const sample = data.sample ? picture("a trigger drawn from it", 150) : null;
  const again = sample && h("button", { type: "button", class: "rb-button", onclick: () => draw(true) }, "Draw a trigger");
  const facts = h("dl", { class: "rb-facts" });

  const value = (s, i) => arrays[s.array].row(variant)[i];
  const words = (s, i) => (s.max === 1 ? `${(100 * value(s, i)).toFixed(1)} %` : formatNumber(value(s, i)));

  function reset() {
    const n = last() + 1;
    chart.draw(data.series.map((s, j) => ({ name: s.max === 1 ? s.name : `${s.name}, of ${formatNumber(s.max)}`, class: classes[j], max: s.max, values: Array.from({ length: n }, (_, i) => value(s, i)) })), n, data.axis.toLowerCase());
    play.resize(n, data.start === "end" ? n - 1 : Math.min(at, n - 1));
    show(play.index(), false);
  }

  function show(i, quiet) {
    at = i;
    chart.at(i);
    data.panels.forEach((p, j) => {
      const a = arrays[p.array], size = a.shape.slice(2);
      panels[j].set(a.row(variant, i), size, grey, `${p.name} for ${data.variants[variant]}, ${data.axis.toLowerCase()} ${steps(i)}${data.unit}`);
    });
    if (sample) draw(false);
    facts.replaceChildren(...data.series.flatMap((s) => h("div", {}, h("dt", {}, s.name), h("dd", {}, words(s, i)))));
    if (!quiet) say.textContent = `${data.variants[variant]}, ${data.axis.toLowerCase()} ${steps(i)}${data.unit}: ${data.series.map((s) => `${s.name} ${words(s, i)}`).join(", ")}.`;
  }

  /** m ~ Bern(g(theta_m)); the pattern is shown where m is 1, on grey. */
  function draw(aloud) {
    const mask = arrays[data.sample.mask], pattern = arrays[data.sample.pattern], [channels, height, width] = pattern.shape.slice(2), n = height * width;
    const share = mask.row(variant, at), p = pattern.row(variant, at), m = Array.from(share, (x) => (Math.random() < x ? 1 : 0));
    sample.set(Array.from({ length: channels * n }, (_, i) => (m[i % n] ? p[i] : 0.5)), [channels, height, width], grey, `A trigger drawn from the distribution: ${m.reduce((a, b) => a + b, 0)} of ${n} pixels replaced`);
    if (aloud) say.textContent = `Drawn: ${m.reduce((a, b) => a + b, 0)} of ${n} pixels are replaced.`;
  }

  frame(el, data.title, h("div", { class: "rb-row" }, which.node), play.node, facts,
    h("div", { class: "rb-columns" }, h("div", {}, chart.node), panels.length ? h("div", { class: "rb-pictures" }, ...panels.map((p) => p.node), ...(sample ? [h("div", {}, sample.node, again)] : [])) : ""), say);
  reset();
  return () => play.stop();
}

export default { render };
