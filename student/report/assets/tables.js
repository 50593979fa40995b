"use strict";
// Tables whose headers sort them: numbers by data-value, names as text; a row without a figure stands last.

function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  for (const head of heads) {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"), first = button.dataset.first;
      const other = first === "ascending" ? "descending" : "ascending";
      for (const one of heads) one.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", now === first ? other : first);
      sort();
    });
  }

  function sort() {
    const index = heads.findIndex(head => head.getAttribute("aria-sort") !== "none");
    if (index < 0) return;
    const sign = heads[index].getAttribute("aria-sort") === "ascending" ? 1 : -1;
    const keyed = [...body.rows].map(row => [sortKey(row.cells[index]), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    });
    body.append(...keyed.map(([, row]) => row));
  }

  return sort;
}

function sortKey(cell) {
  if (cell.tagName === "TH") return cell.textContent.trim();
  if (!cell.dataset.value) return null;
  return cell.dataset.value === "inf" ? Infinity : Number(cell.dataset.value);
}
