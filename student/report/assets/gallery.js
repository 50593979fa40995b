// The images of one set: what to open, and the table of all of them.

function makeGallery(section) {
  const data = JSON.parse(section.querySelector(".set-data").textContent);
  const records = new Map([...section.querySelectorAll(".image-data")].map(node => [Number(node.dataset.image), node]));
  const rows = [...section.querySelectorAll(".images tbody tr")];
  const names = rows.map(row => row.cells[0].textContent.trim());
  const picks = [...section.querySelectorAll(".strip .pick")];
  const order = [...new Set([...picks.map(pick => Number(pick.dataset.image)), ...records.keys()])];
  const viewer = makeViewer(section.querySelector(".viewer"), data.labels, by => {
    open(order[(order.indexOf(at) + by + order.length) % order.length]);
  });
  let at = -1;

  function open(image) {
    at = image;
    const captions = data.labels.map((_, candidate) => data.metrics
      .map((metric, index) => [metric, data.figures[image][index][candidate]])
      .filter(([, figure]) => figure !== null).map(pair => pair.join("\u00a0")).join("  "));
    viewer.show(names[image], JSON.parse(records.get(image).textContent), captions);
    for (const pick of picks) pick.setAttribute("aria-current", Number(pick.dataset.image) === image);
    rows.forEach((row, index) => row.classList.toggle("open", index === image));
  }

  const sort = sortable(section.querySelector(".images")), metric = section.querySelector(".metric");

  function fill() {
    rows.forEach((row, image) => {
      const figures = data.figures[image][metric.value];
      while (row.cells.length > 1) row.deleteCell(-1);
      for (const figure of figures) addCell(row, figure, figure === "equal" ? "inf" : figure);
      if (data.difference) addDifference(row, figures[data.right], figures[data.left]);
    });
    sort();
  }

  metric.addEventListener("change", fill);
  fill();
  for (const pick of picks) pick.addEventListener("click", () => open(Number(pick.dataset.image)));
  rows.forEach((row, image) => row.querySelector("button")?.addEventListener("click", () => {
    open(image);
    section.querySelector(".viewer").scrollIntoView({ block: "start" });
    section.querySelector(".stage").focus({ preventScroll: true });
  }));
  if (order.length) {
    viewer.start(data.left, data.right);
    open(order[0]);
  }
}

function addCell(row, text, value) {
  const cell = row.insertCell();
  cell.textContent = text ?? "\u2013";
  if (value !== null && value !== undefined) cell.dataset.value = value;
}

function addDifference(row, ours, theirs) {
  const difference = Number(ours) - Number(theirs);
  if (ours === null || theirs === null || Number.isNaN(difference)) return addCell(row, null, null);
  const text = Math.abs(difference).toFixed((ours.split(".")[1] ?? "").length);
  addCell(row, `${difference < 0 ? "\u2212" : "+"}${text}`, difference);
}

for (const table of document.querySelectorAll(".means.sortable")) sortable(table);
for (const section of document.querySelectorAll(".gallery")) makeGallery(section);
