// Trigger amplitude and number of poisoned images against success and visibility. The stamped image is computed here.
import { frame, grey, h, picture, signed, slider, status, unpack, choice } from "./controls.js";
import { formatNumber } from "./maths.js";

function render({ model, el }) {
  const data = model.get("data"), arrays = unpack(data.index, model.get("buffer"));
  const { amplitudes, counts, names } = data;
  let a = Math.floor(amplitudes.length / 2), c = Math.floor(counts.length / 2), image = 0;
  const say = status(), [channels, height, width] = arrays.images.shape.slice(1);
  const strength = slider("Amplitude, in levels of 255", { max: amplitudes.length - 1, value: a, text: (i) => String(amplitudes[i]) }, (i) => { a = i; show(); });
  const amount = slider("Poisoned images per source class", { max: counts.length - 1, value: c, text: (i) => String(counts[i]) }, (i) => { c = i; show(); });
  const which = choice("Image", names.map((name, i) => [i, `class ${name}`]), 0, (v) => { image = Number(v); show(); });
  const before = picture("clean", 120), after = picture("stamped", 120), change = picture("change", 120);
  const facts = h("dl", { class: "rb-facts" });
  const rate = (key, i, j) => arrays[key].row(i)[j];

  const CELL = 46, LEFT = 44, TOP = 8;
  const cells = amplitudes.map((amp, i) => counts.map((count, j) => {
    const asr = rate("asr", i, j), rows = amplitudes.length - 1 - i;
    return h("g", { class: "rb-cell", onclick: () => { strength.set(a = i); amount.set(c = j); show(); } },
      h("rect", { x: LEFT + j * CELL, y: TOP + rows * 30, width: CELL - 2, height: 28, style: `--rb-share: ${asr}` }),
      h("text", { x: LEFT + j * CELL + CELL / 2 - 1, y: TOP + rows * 30 + 19, "text-anchor": "middle", class: asr > 0.72 ? "rb-over" : "" }, `${Math.round(100 * asr)}`));
  }));
  const bottom = TOP + amplitudes.length * 30;
  const map = h("svg", { viewBox: `0 0 ${LEFT + counts.length * CELL + 6} ${bottom + 22}`, class: "rb-chart rb-heat", role: "img",
    "aria-label": `Attack success rate in per cent, amplitude ${amplitudes[0]} to ${amplitudes.at(-1)} upwards, poisoned images per source class ${counts[0]} to ${counts.at(-1)} to the right; the sliders read it out` },
  ...cells.flat(),
  ...amplitudes.map((amp, i) => h("text", { class: "rb-tick", x: LEFT - 6, y: TOP + (amplitudes.length - 1 - i) * 30 + 19, "text-anchor": "end" }, amp)),
  ...counts.map((count, j) => h("text", { class: "rb-tick", x: LEFT + j * CELL + CELL / 2, y: bottom + 14, "text-anchor": "middle" }, count)));

  function show() {
    cells.flat().forEach((g, i) => g.classList.toggle("rb-here", i === a * counts.length + c));
    const x = arrays.images.row(image), where = arrays.where.values, step = amplitudes[a] / 255;
    const y = x.map((p, i) => Math.max(0, Math.min(1, p + step * where[i])));
    const moved = y.map((p, i) => p - x[i]), norm = Math.sqrt(where.reduce((sum, m) => sum + (m * step) ** 2, 0));
    const error = moved.reduce((sum, d) => sum + d * d, 0) / moved.length;
    const psnr = error > 0 ? -10 * Math.log10(error) : Infinity;
    const size = [channels, height, width];
    before.set(x, size, grey, `A clean image of class ${names[image]}`);
    after.set(y, size, grey, `The same image with the trigger, amplitude ${amplitudes[a]} of 255`);
    change.set(moved, size, channels === 1 ? (d) => signed(4 * d) : (d) => grey(0.5 + 2 * d), "Where the trigger changes the image, four times magnified", "change × 4");
    const asr = rate("asr", a, c), cta = rate("cta", a, c);
    facts.replaceChildren(...[["ASR", `${(100 * asr).toFixed(1)} %`], ["clean accuracy", `${(100 * cta).toFixed(1)} %`], ["‖v*‖₂", formatNumber(norm)], ["PSNR", `${formatNumber(psnr)} dB`]]
      .flatMap(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
    say.textContent = `Amplitude ${amplitudes[a]}, ${counts[c]} poisoned images per source class: ${(100 * asr).toFixed(1)} % of ${data.stamped} stamped test images go to class ${data.target}; clean accuracy ${(100 * cta).toFixed(1)} % of ${data.tested}.`;
  }

  frame(el, "How strong, how many, how visible", h("div", { class: "rb-row" }, which.node), strength.node, amount.node, facts,
    h("div", { class: "rb-columns" }, h("div", {}, map, h("p", { class: "rb-note" }, "Attack success rate in %: amplitude upwards, poisoned images per source class to the right. Choose a cell, or use the sliders.")), h("div", { class: "rb-pictures" }, before.node, after.node, change.node)), say);
  show();
}

export default { render };
