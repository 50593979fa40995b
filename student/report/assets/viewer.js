// One viewer: two candidates divided by a line, all candidates beside them, their sub-band errors below.

class Viewer {
  constructor(root, labels, step) {
    this.root = root;
    this.labels = labels;
    this.record = null;
    this.wanted = { left: 0, right: 0 }; // stays from image to image, also past one where a candidate has no picture
    this.sides = { left: this.one("select.left"), right: this.one("select.right") };
    this.stage = this.one(".stage");
    this.split = this.one(".split");
    this.shots = [...root.querySelectorAll(".shot")];
    this.zoom = makeZoom(root, state => this.zoomed(state));
    this.keys = {
      "+": () => this.zoom.by(1.5), "=": () => this.zoom.by(1.5), "-": () => this.zoom.by(1 / 1.5), "0": this.zoom.fit,
      n: () => step(1), p: () => step(-1), x: () => this.swap(), Escape: () => this.enlarge(false),
    };
    this.listenToButtons();
    this.listenToKeys();
    this.listenToPointers();
  }

  one(selector) {
    return this.root.querySelector(selector);
  }

  listenToButtons() {
    const clicks = { ".in": "+", ".out": "-", ".fit": "0", ".next": "n", ".previous": "p", ".swap": "x" };
    for (const [selector, key] of Object.entries(clicks)) this.one(selector).addEventListener("click", this.keys[key]);
    this.one(".enlarge").addEventListener("click", () => this.enlarge(!this.root.classList.contains("large")));
    this.split.addEventListener("input", () => this.divide(this.split.value / 100));
    for (const side of ["left", "right"]) {
      this.sides[side].addEventListener("change", () => this.choose(side, this.sides[side].value));
      for (const shot of this.shots) {
        shot.querySelector(`.to-${side}`).addEventListener("click", () => this.choose(side, shot.dataset.candidate));
      }
    }
  }

  listenToKeys() {
    this.root.addEventListener("keydown", event => {
      const letter = event.key.length === 1;
      const action = this.keys[letter ? event.key.toLowerCase() : event.key];
      const typing = event.target.tagName === "SELECT" && letter && /[a-z0-9]/i.test(event.key);
      if (!action || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      action();
    });
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.stage.addEventListener("keydown", event => {
      const [x, y] = arrows[event.key] ?? [0, 0], moves = event.shiftKey && this.zoom.state.zoom > 1;
      if (!x && !(y && moves)) return;
      event.preventDefault();
      if (moves) this.zoom.move(-x / 10, -y / 10);
      else this.divide(this.split.value / 100 + x / 50);
    });
  }

  listenToPointers() {
    const near = x => Math.abs(x - this.split.value / 100) * this.stage.clientWidth < 24;
    const slide = { starts: x => this.zoom.state.zoom === 1 || near(x), to: share => this.divide(share) };
    new Pointers(this.stage, this.zoom, slide);
    for (const shot of this.shots) {
      const view = shot.querySelector(".view"), pointers = new Pointers(view, this.zoom, null);
      view.addEventListener("click", () => pointers.dragged || this.choose("right", shot.dataset.candidate));
    }
    addEventListener("resize", this.zoom.again);
  }

  // name: of the image; record: its pictures and maps; captions: by candidate.
  show(name, record, captions) {
    this.record = record;
    this.root.hidden = false;
    this.root.style.setProperty("--aspect", record.width / record.height);
    this.one(".name").textContent = name;
    this.one(".extent").textContent = record.extent;
    this.shots.forEach((shot, candidate) => this.fill(shot, record.pictures[candidate], name, captions[candidate]));
    for (const side of ["left", "right"]) {
      for (const option of this.sides[side]) option.disabled = record.pictures[option.value] === undefined;
      const there = Object.keys(record.pictures), other = there[side === "left" ? 0 : there.length - 1];
      this.place(side, record.pictures[this.wanted[side]] === undefined ? other : this.wanted[side]);
    }
    this.showMaps();
    this.zoom.state.most = Math.max(4, 16 * record.width / this.stage.clientWidth);
    this.zoom.fit();
  }

  fill(shot, source, name, caption) {
    const img = shot.querySelector("img");
    shot.classList.toggle("missing", source === undefined);
    setSource(img, source);
    img.alt = `${name}: ${this.labels[shot.dataset.candidate]}`;
    shot.querySelector(".shot-figures").textContent = source ? caption : "no picture";
  }

  showMaps() {
    const { maps, errors, white } = this.record;
    this.one(".bands").hidden = !maps;
    this.one(".white").textContent = white ?? "";
    for (const map of this.root.querySelectorAll(".map")) {
      const candidate = map.dataset.candidate;
      map.hidden = !maps?.[candidate];
      setSource(map.querySelector("img"), maps?.[candidate]);
      map.querySelector(".map-errors").textContent = errors?.[candidate] ?? "";
    }
  }

  choose(side, candidate) {
    if (this.record.pictures[candidate] === undefined) return;
    this.wanted[side] = candidate;
    this.place(side, candidate);
  }

  place(side, candidate) {
    const layer = this.one(side === "left" ? ".before" : ".after");
    this.sides[side].value = candidate;
    setSource(layer, this.record.pictures[candidate]);
    layer.alt = `${this.one(".name").textContent}: ${this.labels[candidate]}`;
    this.one(`.${side}-tag`).textContent = this.labels[candidate];
    for (const shot of this.shots) {
      const here = shot.dataset.candidate === this.sides[side].value;
      shot.querySelector(`.to-${side}`).setAttribute("aria-pressed", here);
    }
  }

  swap() {
    const [left, right] = [this.sides.left.value, this.sides.right.value];
    this.choose("left", right);
    this.choose("right", left);
  }

  divide(share) {
    this.split.value = 100 * Math.min(Math.max(share, 0), 1);
    this.stage.style.setProperty("--split", `${this.split.value}%`);
  }

  zoomed({ zoom }) {
    if (!this.record) return;
    this.one(".factor").textContent = `${zoom < 10 ? Math.round(zoom * 10) / 10 : Math.round(zoom)}x`;
    const ratio = zoom * this.stage.clientWidth * devicePixelRatio / this.record.width;
    this.root.classList.toggle("pixels", ratio >= 2);
  }

  enlarge(large) {
    const button = this.one(".enlarge");
    this.root.classList.toggle("large", large);
    document.documentElement.classList.toggle("behind", large);
    button.setAttribute("aria-pressed", large);
    button.textContent = large ? "close" : "enlarge";
    this.zoom.again();
  }
}

function setSource(img, source) {
  if (source) img.src = source;
  else img.removeAttribute("src");
}
