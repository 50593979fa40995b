"use strict";
// One row of pictures shows one photo: magnify the same spot in all of them, enlarge the marked square, flip at full size.
for (const row of document.querySelectorAll(".shots")) {
  const [x, y, side] = row.dataset.box.split(" ").map(Number);
  for (const figure of row.children) {
    const frame = figure.querySelector(".frame"), img = figure.querySelector("img");
    const canvas = figure.querySelector("canvas");
    const draw = () => {
      canvas.width = canvas.height = side * 4;
      const pen = canvas.getContext("2d");
      pen.imageSmoothingEnabled = false;
      pen.drawImage(img, x, y, side, side, 0, 0, canvas.width, canvas.height);
    };
    img.complete && img.naturalWidth ? draw() : img.addEventListener("load", draw);
    frame.addEventListener("pointermove", event => {
      if (event.pointerType !== "mouse") return;
      const box = frame.getBoundingClientRect();
      row.style.setProperty("--x", `${100 * (event.clientX - box.left) / box.width}%`);
      row.style.setProperty("--y", `${100 * (event.clientY - box.top) / box.height}%`);
      row.classList.add("zooming");
    });
    frame.addEventListener("pointerleave", () => row.classList.remove("zooming"));
    frame.addEventListener("click", () => show([...row.children], figure));
  }
}

const viewer = document.getElementById("viewer"), stage = viewer.querySelector(".stage");
const large = viewer.querySelector("img"), caption = viewer.querySelector(".bar span");
let shown = [], at = 0, zoom = 1;

function show(figures, figure) {
  shown = figures;
  zoom = 1;
  viewer.showModal();
  flip(figures.indexOf(figure));
}

function flip(index) {
  at = (index + shown.length) % shown.length;
  const img = shown[at].querySelector("img");
  large.src = img.src;
  large.alt = img.alt;
  size();
  caption.textContent = shown[at].querySelector("figcaption").innerText.replace(/\s+/g, " ");
}

function size() {
  const natural = shown[at].querySelector("img");
  large.style.width = `${natural.naturalWidth * zoom}px`;
}

stage.addEventListener("click", () => { zoom = zoom === 4 ? 1 : zoom * 2; size(); });
viewer.addEventListener("keydown", event => {
  if (event.key === "ArrowRight") flip(at + 1);
  else if (event.key === "ArrowLeft") flip(at - 1);
  else return;
  event.preventDefault();
});
