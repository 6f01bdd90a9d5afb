// Wide tables and formulas scroll within the column, instead of widening the page.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table")) {
    if (table.closest(".scroll, .pst-scrollable-table-container, .explorer")) continue;
    const box = document.createElement("div");
    box.className = "scroll";
    table.replaceWith(box);
    box.append(table);
  }
  // What scrolls must be reachable with the keyboard.
  for (const box of document.querySelectorAll(".scroll, .pst-scrollable-table-container, div.math")) {
    if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
  }
});
