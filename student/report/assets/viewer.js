// One viewer: two candidates divided by a line, all candidates beside them, their sub-band errors below.

function makeViewer(root, labels, step) {
  const one = selector => root.querySelector(selector);
  const sides = { left: one("select.left"), right: one("select.right") };
  const layers = { left: one(".before"), right: one(".after") }, tags = { left: one(".left-tag"), right: one(".right-tag") };
  const stage = one(".stage"), split = one(".split"), shots = [...root.querySelectorAll(".shot")];
  const zoom = makeZoom(root, state => {
    one(".factor").textContent = `${state.zoom < 10 ? Math.round(state.zoom * 10) / 10 : Math.round(state.zoom)}x`;
    const ratio = state.zoom * stage.clientWidth * devicePixelRatio / (record?.width || 1);
    root.classList.toggle("pixels", ratio >= 2);
  });
  let record = null, wanted = { left: 0, right: 0 };

  function place(side, candidate) {
    if (record?.pictures[candidate] === undefined) return;
    sides[side].value = candidate;
    layers[side].src = record.pictures[candidate];
    layers[side].alt = `${one(".name").textContent}: ${labels[candidate]}`;
    tags[side].textContent = labels[candidate];
    for (const shot of shots) {
      shot.querySelector(`.to-${side}`).setAttribute("aria-pressed", shot.dataset.candidate === sides[side].value);
    }
  }

  function choose(side, candidate) {
    wanted[side] = candidate;
    place(side, candidate);
  }

  function swap() {
    const [left, right] = [sides.left.value, sides.right.value];
    choose("left", right);
    choose("right", left);
  }

  function divide(share) {
    split.value = 100 * Math.min(Math.max(share, 0), 1);
    stage.style.setProperty("--split", `${split.value}%`);
  }

  function show(name, next, captions) {
    record = next;
    one(".name").textContent = name;
    one(".extent").textContent = next.extent;
    root.style.setProperty("--aspect", next.width / next.height);
    root.hidden = false;
    for (const option of [...sides.left, ...sides.right]) option.disabled = next.pictures[option.value] === undefined;
    shots.forEach((shot, candidate) => {
      const img = shot.querySelector("img"), source = next.pictures[candidate];
      shot.classList.toggle("missing", source === undefined);
      if (source) img.src = source; else img.removeAttribute("src");
      img.alt = `${name}: ${labels[candidate]}`;
      shot.querySelector(".shot-figures").textContent = source ? captions[candidate] : "no picture";
    });
    const there = Object.keys(next.pictures);
    place("left", next.pictures[wanted.left] === undefined ? there[0] : wanted.left);
    place("right", next.pictures[wanted.right] === undefined ? there[there.length - 1] : wanted.right);
    showMaps(next);
    zoom.state.most = Math.max(4, 16 * next.width / stage.clientWidth);
    zoom.fit();
  }

  function showMaps(next) {
    one(".bands").hidden = !next.maps;
    one(".white").textContent = next.white ?? "";
    for (const map of root.querySelectorAll(".map")) {
      const source = next.maps?.[map.dataset.candidate];
      map.hidden = !source;
      if (source) map.querySelector("img").src = source; else map.querySelector("img").removeAttribute("src");
      map.querySelector(".map-errors").textContent = next.errors?.[map.dataset.candidate] ?? "";
    }
  }

  function enlarge(large) {
    root.classList.toggle("large", large);
    document.documentElement.classList.toggle("behind", large);
    one(".enlarge").setAttribute("aria-pressed", large);
    one(".enlarge").textContent = large ? "close" : "enlarge";
    zoom.again();
  }

  const keys = {
    "+": () => zoom.by(1.5), "=": () => zoom.by(1.5), "-": () => zoom.by(1 / 1.5), "0": zoom.fit,
    n: () => step(1), p: () => step(-1), x: swap, Escape: () => enlarge(false),
  };
  root.addEventListener("keydown", event => {
    const inForm = event.target.tagName === "SELECT" && event.key.length === 1 && /[a-z0-9]/i.test(event.key);
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || inForm || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
  stage.addEventListener("keydown", event => {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    const zoomed = zoom.state.zoom > 1 && event.shiftKey;
    if (!x && (!y || !zoomed)) return;
    event.preventDefault();
    if (zoomed) zoom.move(-x / 10, -y / 10); else divide(split.value / 100 + x / 50);
  });

  for (const side of ["left", "right"]) {
    sides[side].addEventListener("change", () => choose(side, sides[side].value));
    for (const shot of shots) {
      shot.querySelector(`.to-${side}`).addEventListener("click", () => choose(side, shot.dataset.candidate));
    }
  }
  split.addEventListener("input", () => divide(split.value / 100));
  one(".swap").addEventListener("click", swap);
  one(".in").addEventListener("click", keys["+"]);
  one(".out").addEventListener("click", keys["-"]);
  one(".fit").addEventListener("click", zoom.fit);
  one(".next").addEventListener("click", keys.n);
  one(".previous").addEventListener("click", keys.p);
  one(".enlarge").addEventListener("click", () => enlarge(!root.classList.contains("large")));
  const near = x => zoom.state.zoom === 1 || Math.abs(x - split.value / 100) * stage.clientWidth < 24;
  listen(stage, zoom, { starts: near, to: divide });
  for (const shot of shots) {
    const view = shot.querySelector(".view"), drag = listen(view, zoom, null);
    view.addEventListener("click", () => drag.wasDragged() || choose("right", shot.dataset.candidate));
  }
  addEventListener("resize", zoom.again);
  const start = (left, right) => { wanted = { left, right }; };
  return { show, start };
}
