"use strict";

// Sorting: a button in each head, so that the keyboard and a screen reader have it too.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const asGiven = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const before = head.getAttribute("aria-sort");
      const next = before === first ? second : before === second ? "" : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const rows = [...asGiven];
      if (next) {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const key = (row) => row.cells[column].dataset.key;
        // Python writes what is without bound as inf.
        const number = (row) => Number(key(row).replace("inf", "Infinity"));
        rows.sort((a, b) => sign * (numeric ? number(a) - number(b) || 0 : key(a).localeCompare(key(b), "en", { numeric: true })));
      }
      body.append(...rows);
    });
  });
}

// The theme: the system's, unless the reader has said otherwise, here or at an earlier visit.
const storage = {
  get() { try { return localStorage.getItem("tljax-theme"); } catch { return null; } },
  set(theme) { try { localStorage.setItem("tljax-theme", theme); } catch { /* a page of a file may have none */ } },
};
function show(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
const themes = document.querySelector(".theme");
themes.hidden = false;
const kept = storage.get();
for (const input of themes.querySelectorAll("input")) {
  input.checked = input.value === (kept || "system");
  input.addEventListener("change", () => { show(input.value); storage.set(input.value); });
}
show(kept);

// A link to a run opens it.
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", reveal);
if (location.hash) reveal();
