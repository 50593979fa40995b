// The images of one set: what to open, and the table of all of them.

class Gallery {
  constructor(section) {
    this.section = section;
    this.data = JSON.parse(section.querySelector(".set-data").textContent);
    const blocks = [...section.querySelectorAll(".image-data")];
    this.records = new Map(blocks.map(block => [Number(block.dataset.image), block])); // read when they are opened
    this.rows = [...section.querySelectorAll(".images tbody tr")];
    this.names = this.rows.map(row => row.cells[0].textContent.trim());
    this.picks = [...section.querySelectorAll(".strip .pick")];
    this.order = [...new Set([...this.picks.map(pick => Number(pick.dataset.image)), ...this.records.keys()])];
    this.viewer = new Viewer(section.querySelector(".viewer"), this.data.labels, by => this.step(by));
    this.viewer.wanted = { left: this.data.left, right: this.data.right };
    this.metric = section.querySelector(".metric");
    this.sort = sortable(section.querySelector(".images"));
    this.listen();
    this.fill();
    if (this.order.length) this.open(this.order[0]);
  }

  listen() {
    this.metric.addEventListener("change", () => this.fill());
    for (const pick of this.picks) pick.addEventListener("click", () => this.open(Number(pick.dataset.image)));
    this.rows.forEach((row, image) => row.querySelector("button")?.addEventListener("click", () => {
      this.open(image);
      this.section.querySelector(".viewer").scrollIntoView({ block: "start" });
      this.section.querySelector(".stage").focus({ preventScroll: true });
    }));
  }

  step(by) {
    const count = this.order.length;
    this.open(this.order[(this.order.indexOf(this.opened) + by + count) % count]);
  }

  open(image) {
    this.opened = image;
    const { labels, metrics, figures } = this.data;
    const captions = labels.map((_, candidate) => metrics
      .map((metric, index) => [metric, figures[image][index][candidate]])
      .filter(([, figure]) => figure !== null).map(pair => pair.join("\u00a0")).join("  "));
    this.viewer.show(this.names[image], JSON.parse(this.records.get(image).textContent), captions);
    for (const pick of this.picks) pick.setAttribute("aria-current", Number(pick.dataset.image) === image);
    this.rows.forEach((row, index) => row.classList.toggle("open", index === image));
  }

  fill() {
    const { left, right, difference } = this.data;
    this.rows.forEach((row, image) => {
      const figures = this.data.figures[image][this.metric.value];
      while (row.cells.length > 1) row.deleteCell(-1);
      for (const figure of figures) addCell(row, figure, figure === "equal" ? "inf" : figure);
      if (difference) addDifference(row, figures[right], figures[left]);
    });
    this.sort();
  }
}

function addCell(row, text, value) {
  const cell = row.insertCell();
  cell.textContent = text ?? "\u2013";
  if (value !== null) cell.dataset.value = value;
}

function addDifference(row, ours, theirs) {
  const difference = Number(ours) - Number(theirs);
  if (ours === null || theirs === null || Number.isNaN(difference)) return addCell(row, null, null);
  const text = Math.abs(difference).toFixed((ours.split(".")[1] ?? "").length);
  addCell(row, `${difference < 0 ? "\u2212" : "+"}${text}`, difference);
}

for (const table of document.querySelectorAll(".means.sortable")) sortable(table);
for (const section of document.querySelectorAll(".gallery")) new Gallery(section);
