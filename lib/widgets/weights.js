// The weights of Eq. (8), computed as q and T are dragged.
import { bars, frame, h, slider, status } from "./controls.js";
import { closedForm, entropy, formatNumber, temperature } from "./maths.js";

const STEPS = 200;  // of the temperature's slider: T = 0 on the left, 0.02 to 20 on a log scale, infinity on the right
const toT = (x) => (x <= 0 ? 0 : x >= STEPS ? Infinity : 0.02 * 1000 ** ((x - 1) / (STEPS - 2)));
const fromT = (t) => (t <= 0 ? 0 : t === Infinity ? STEPS : Math.round(Math.max(1, Math.min(STEPS - 1, 1 + ((STEPS - 2) * Math.log(t / 0.02)) / Math.log(1000)))));

function render({ model, el }) {
  const { names, q: start, n } = model.get("data");
  const q = [...start], say = status();
  let T = 0.5, follow = true;
  const text = (x) => formatNumber(x);
  const shares = names.map((name, s) => slider(`q of class ${name}`, { max: 1, step: 1 / n, value: q[s], text: (x) => x.toFixed(2) }, (x) => { q[s] = x; show(); }));
  const heat = slider("Temperature T", { max: STEPS, value: fromT(T), text: () => text(T) }, (x) => { follow = box.checked = false; T = toT(x); heat.show(); show(); });
  const box = h("input", { type: "checkbox", checked: true, onchange: () => { follow = box.checked; show(); } });
  const table = bars("Weights of Eq. (8)", names, [{ name: "w", text: (x) => x.toFixed(3) }]);

  function show() {
    if (follow) {
      T = temperature(Array(q.length).fill(1 / q.length), q);
      heat.set(fromT(T));
    }
    const uniform = Math.max(...q) === 0;  // Algorithm 1 goes back to uniform weights where Q = 0
    const w = uniform ? q.map(() => 1 / q.length) : closedForm(q, T), Q = w.reduce((sum, ws, s) => sum + ws * q[s], 0);
    table.set(w.map((x) => [x]));
    const smallest = Math.min(...w), ratio = smallest > 0 ? Math.max(...w) / smallest : Infinity;
    say.textContent = `T = ${text(T)}: Q = ${text(Q)}, entropy ${entropy(w).toFixed(2)} of ${Math.log(w.length).toFixed(2)} nats, heaviest weight ${text(ratio)} times the lightest.`;
  }

  frame(el, "The weights of Eq. (8)",
    h("div", { class: "rb-columns" }, h("div", { class: "rb-sliders" }, ...shares.map((s) => s.node)),
      h("div", {}, heat.node, h("label", { class: "rb-check" }, box, " T = −log Q as in Eq. (7), Q with equal weights"), table.node)), say);
  show();
}

export default { render };
