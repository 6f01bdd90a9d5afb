// Draws the explorers of a page without a kernel, from the state that its notebook has saved in it.
// To an explorer this looks as Jupyter does: a model with get, set, on, off, send, of which nobody hears.
document.addEventListener("DOMContentLoaded", () => {
  const scripts = (kind) => [...document.querySelectorAll(`script[type="application/vnd.jupyter.widget-${kind}+json"]`)];
  const saved = Object.assign({}, ...scripts("state").map((script) => JSON.parse(script.textContent).state));

  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

  function modelOf({ state, buffers = [] }) {
    const values = { ...state, ...Object.fromEntries(buffers.map(({ path, data }) => [path[0], bytes(data)])) };
    const nothing = () => {};
    return { get: (name) => values[name], set: (name, value) => { values[name] = value; }, on: nothing, off: nothing, save_changes: nothing, send: nothing };
  }

  const styles = new Set();
  function style(text) {
    if (!text || styles.has(text)) return;
    styles.add(text);
    document.head.append(Object.assign(document.createElement("style"), { textContent: text }));
  }

  async function draw(script) {
    const el = Object.assign(document.createElement("div"), { className: "explorer" });
    script.before(el);
    const entry = saved[JSON.parse(script.textContent).model_id];
    if (entry?.model_module !== "anywidget") {
      el.textContent = "This widget needs a kernel: open the chapter in Jupyter.";
      return;
    }
    const model = modelOf(entry);
    style(model.get("_css"));
    const address = URL.createObjectURL(new Blob([model.get("_esm")], { type: "text/javascript" }));
    try {
      await (await import(address)).default.render({ model, el });
    } finally {
      URL.revokeObjectURL(address);
    }
  }

  scripts("view").forEach(draw);
});
