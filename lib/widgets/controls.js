// Elements, charts and pictures that the explorers share. Colours come from explorer.css, so both schemes work.

/** An id that no other explorer of the page has: each brings a copy of this module. */
export const uid = (name) => `rb-${name}-${Math.random().toString(36).slice(2, 10)}`;

const SVG = "http://www.w3.org/2000/svg";
const IN_SVG = new Set(["svg", "g", "path", "line", "circle", "rect", "text", "polyline"]);

/** An element with attributes (`onclick` and the like are listeners) and children. */
export function h(tag, attributes = {}, ...children) {
  const node = IN_SVG.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat());
  return node;
}

/** The frame of an explorer: a labelled group with its title; keys pressed inside do not turn the page or reach a notebook. */
export function frame(el, title, ...children) {
  const id = uid("title");
  const root = h("section", { class: "rb", role: "group", "aria-labelledby": id, "data-lm-suppress-shortcuts": "true" },
    h("p", { class: "rb-title", id }, title), ...children);
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.replaceChildren(root);
  return root;
}

/** A labelled choice among [value, text]; `change` gets the value. */
export function choice(label, options, value, change) {
  const id = uid("choice");
  const select = h("select", { id, onchange: () => change(select.value) });
  const set = (items, chosen) => {
    select.replaceChildren(...items.map(([v, text]) => h("option", { value: v }, text)));
    select.value = String(chosen);
  };
  set(options, value);
  return { node: h("div", { class: "rb-field" }, h("label", { for: id }, label), select), select, set };
}

/** A labelled slider with its value in words beside it. */
export function slider(label, { min = 0, max = 1, step = 1, value = 0, text = String }, input) {
  const id = uid("slider");
  const range = h("input", { id, type: "range", min, max, step });
  const output = h("span", { class: "rb-value", "aria-hidden": "true" });  // an <output> would be announced at every move
  const show = () => {
    output.textContent = text(Number(range.value));
    range.setAttribute("aria-valuetext", output.textContent);
  };
  const set = (v) => { range.value = v; show(); };
  const limit = (top) => { range.max = top; show(); };
  range.addEventListener("input", () => { show(); input(Number(range.value)); });
  set(value);
  return { node: h("div", { class: "rb-field rb-slide" }, h("label", { for: id }, label), range, output), range, set, limit, show };
}

/** A slider over frames with a play button. Nothing plays by itself; with reduced motion, two frames a second. */
export function player(label, { frames, text }, show) {
  let timer = null;
  const bar = slider(label, { max: frames - 1, text }, (i) => { stop(); show(i, false); });
  const button = h("button", { type: "button", class: "rb-button", onclick: () => (timer ? stop() : play()) }, "Play");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }
  function play() {
    let i = Number(bar.range.value);
    if (i >= Number(bar.range.max)) i = -1;
    button.textContent = "Pause";
    timer = setInterval(() => {
      if (!button.isConnected) return stop();
      bar.set(++i);
      const last = i >= Number(bar.range.max);
      if (last) stop();
      show(i, !last);
    }, still.matches ? 500 : Math.max(30, Math.min(120, 6000 / (Number(bar.range.max) + 1))));
  }
  const resize = (n, i) => { stop(); bar.limit(n - 1); bar.set(Math.min(i, n - 1)); };
  return { node: h("div", { class: "rb-player" }, button, bar.node), resize, stop, index: () => Number(bar.range.value), set: bar.set };
}

/** What a screen reader is told when something has changed; also shown. */
export const status = () => h("p", { class: "rb-status", role: "status" });

/** A table with one row per class: the name, and for each column a bar (drawn) and its number. */
export function bars(caption, rows, columns) {
  const cells = rows.map(() => columns.map(() => {
    const fill = h("span", { class: "rb-fill" }), number = h("span", { class: "rb-number" });
    return { fill, number, node: h("td", {}, h("span", { class: "rb-track", "aria-hidden": "true" }, fill), number) };
  }));
  const heads = rows.map((name) => h("th", { scope: "row" }, name));
  const trs = rows.map((_, i) => h("tr", {}, heads[i], ...cells[i].map((c) => c.node)));
  const node = h("table", { class: "rb-bars" }, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "class"), ...columns.map((c) => h("th", { scope: "col" }, c.name)))),
    h("tbody", {}, ...trs));
  const set = (values, names) => values.forEach((row, i) => {
    if (names) heads[i].textContent = names[i];
    row.forEach((value, j) => {
      const { max = 1, text, mark } = columns[j];
      cells[i][j].fill.style.width = `${100 * Math.max(0, Math.min(1, value / (typeof max === "function" ? max() : max)))}%`;
      cells[i][j].fill.classList.toggle("rb-mark", Boolean(mark?.(i)));
      cells[i][j].number.textContent = text(value, i);
    });
  });
  return { node, set };
}

/** A line chart of several series over x = 0 .. n-1, with a cursor. series: {name, class, values, max}. */
export function lines(label, { height = 150, ticks = null } = {}) {
  const W = 420, left = 34, right = 10, top = 10, bottom = 24;
  const svg = h("svg", { viewBox: `0 0 ${W} ${height}`, role: "img", class: "rb-chart" });
  const legend = h("ul", { class: "rb-legend" });
  const cursor = h("line", { class: "rb-cursor", y1: top, y2: height - bottom });
  const dots = h("g");
  let xs = () => 0, drawn = [];
  function draw(series, n, axis) {
    xs = (i) => left + ((W - left - right) * i) / Math.max(n - 1, 1);
    const y = (v, max) => height - bottom - (height - top - bottom) * Math.max(0, Math.min(1, v / max));
    drawn = series.map((s) => ({ ...s, y: (i) => y(s.values[i], s.max) }));
    svg.replaceChildren(
      ...[0, 0.5, 1].flatMap((v) => [
        h("line", { class: "rb-grid", x1: left, x2: W - right, y1: y(v, 1), y2: y(v, 1) }),
        h("text", { class: "rb-tick", x: left - 5, y: y(v, 1) + 4, "text-anchor": "end" }, ticks ? ticks(v) : String(v)),
      ]),
      h("text", { class: "rb-tick", x: W - right, y: height - 6, "text-anchor": "end" }, axis),
      ...drawn.map((s) => h("polyline", {
        class: `rb-line ${s.class}`,
        points: Array.from({ length: n }, (_, i) => i).filter((i) => !Number.isNaN(s.values[i])).map((i) => `${xs(i)},${s.y(i)}`).join(" "),
      })),
      cursor, dots);
    legend.replaceChildren(...drawn.map((s) => h("li", { class: s.class }, s.name)));
    svg.setAttribute("aria-label", `${label}: ${drawn.map((s) => s.name).join(", ")} against ${axis}`);
  }
  function at(i) {
    cursor.setAttribute("x1", xs(i));
    cursor.setAttribute("x2", xs(i));
    dots.replaceChildren(...drawn.filter((s) => !Number.isNaN(s.values[i])).map((s) => h("circle", { class: s.class, cx: xs(i), cy: s.y(i), r: 4 })));
  }
  return { node: h("div", {}, svg, legend), draw, at };
}

/** A small picture, drawn pixel by pixel; its text alternative is kept up to date. */
export function picture(caption, size = 150) {
  const canvas = h("canvas", { class: "rb-picture", role: "img", style: `--rb-size: ${size}px` });
  const text = h("figcaption", {}, caption);
  /** pixels: C*H*W numbers; paint: what each means, see below. */
  const set = (pixels, [channels, height, width], paint, alt, words) => {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), image = context.createImageData(width, height), n = width * height;
    for (let i = 0; i < n; i++) {
      const rgb = channels >= 3 ? [pixels[i], pixels[n + i], pixels[2 * n + i]].map((p) => paint(p)[0]) : paint(pixels[i]);
      image.data.set([...rgb, 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", alt);
    if (words) text.textContent = words;
  };
  return { node: h("figure", { class: "rb-figure" }, canvas, text), canvas, set };
}

/** Pixel value in [0, 1] as grey. */
export const grey = (p) => Array(3).fill(255 * Math.max(0, Math.min(1, p)));

/** Signed value in [-1, 1] for one channel: blue below zero, white at zero, red above. */
export function signed(p) {
  const x = Math.max(-1, Math.min(1, p)), [r, g, b] = x > 0 ? [178, 24, 43] : [33, 102, 172], a = Math.abs(x);
  return [255 + (r - 255) * a, 255 + (g - 255) * a, 255 + (b - 255) * a];
}

/** Numbers that Python packed into one buffer (lib.widgets.assets.pack), by name: {values, shape, row(i, j, ...)}. */
export function unpack(index, view) {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const types = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array };
  return Object.fromEntries(Object.entries(index).map(([name, { type, shape, at, scale, shift }]) => {
    const size = shape.reduce((a, b) => a * b, 1), Kind = types[type];
    const raw = new Kind(bytes.slice(at, at + size * Kind.BYTES_PER_ELEMENT).buffer);
    const values = scale === 1 && shift === 0 ? raw : Float32Array.from(raw, (x) => x * scale + shift);
    const row = (...where) => {
      const length = shape.slice(where.length).reduce((a, b) => a * b, 1);
      let start = 0;
      where.forEach((w, i) => { start += w * shape.slice(i + 1).reduce((a, b) => a * b, 1); });
      return values.subarray(start, start + length);
    };
    return [name, { values, shape, row }];
  }));
}
