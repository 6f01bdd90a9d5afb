// What the browser tests ask of a page; each returns what is wrong, or what to look at.
window.checks = {
prose: () => {
  const copy = document.querySelector("article, main").cloneNode(true);
  copy.querySelectorAll("pre, code, script, style, .math, .sd-d-none, .explorer, svg").forEach(n => n.remove());
  return copy.textContent;
},
images: () => [...document.querySelectorAll("article img, main img")].map(i =>
  ({src: i.src.slice(0, 120), alt: (i.alt || "").trim(), drawn: i.complete && i.naturalWidth > 1, visible: i.offsetParent !== null})),
unnamed: () => [...document.querySelectorAll("button, input:not([type=hidden]), select, textarea, a[href]")]
  .filter(e => e.offsetParent !== null)
  .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.title || e.textContent.trim() || e.value
    || e.placeholder || (e.labels && e.labels.length) || e.querySelector("img[alt]:not([alt=''])")))
  .map(e => e.outerHTML.slice(0, 140)),
wide: () => [...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .filter(e => { for (let p = e.parentElement; p; p = p.parentElement) if (getComputedStyle(p).overflowX !== "visible") return false; return true })
  .slice(0, 3).map(e => e.outerHTML.slice(0, 140)),
contrast: () => {
  const rgba = text => { const m = text.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 });
    return .2126 * r + .7152 * g + .0722 * b };
  const behind = e => { const layers = []; for (; e; e = e.parentElement) { const s = getComputedStyle(e);
      if (s.backgroundImage !== "none") return null; const c = rgba(s.backgroundColor); layers.push(c); if (c[3] === 1) break }
    return layers.reverse().reduce((under, c) => over(c, under), [255, 255, 255, 1]) };
  const bad = new Map(), walker = document.createTreeWalker(document.querySelector("main") || document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (text.length < 2 || !e || e.closest("script, style, noscript, svg") || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    const s = getComputedStyle(e), ground = behind(e);
    if (!ground || e.getBoundingClientRect().width < 2) continue;
    const ink = over(rgba(s.color), ground), [a, b] = [light(ink.slice(0, 3)), light(ground.slice(0, 3))].sort((x, y) => y - x);
    const size = parseFloat(s.fontSize), large = size >= 24 || (size >= 18.6 && +s.fontWeight >= 700);
    const ratio = (a + .05) / (b + .05);
    if (ratio < (large ? 3 : 4.5) - .05) bad.set(e.tagName + "." + e.className, `${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  return [...bad].slice(0, 8).map(x => x.join(" "));
},
};
