// Zoom and place of one viewer, in style properties that all of its views share: they cannot come apart.

function makeZoom(viewer, changed) {
  const state = { zoom: 1, left: 0, top: 0, most: 16 }; // left and top: shares of the picture that are hidden there

  function set(zoom, left, top) {
    state.zoom = Math.min(Math.max(zoom, 1), state.most);
    const room = 1 - 1 / state.zoom;
    state.left = Math.min(Math.max(left, 0), room);
    state.top = Math.min(Math.max(top, 0), room);
    viewer.style.setProperty("--zoom", state.zoom);
    viewer.style.setProperty("--left", state.left);
    viewer.style.setProperty("--top", state.top);
    viewer.classList.toggle("zoomed", state.zoom > 1);
    changed(state);
  }

  // x and y: where in a view, as shares of it; the place under that point stays there.
  function by(factor, x = 0.5, y = 0.5) {
    const zoom = Math.min(Math.max(state.zoom * factor, 1), state.most);
    set(zoom, state.left + x * (1 / state.zoom - 1 / zoom), state.top + y * (1 / state.zoom - 1 / zoom));
  }

  function move(x, y) {
    set(state.zoom, state.left - x / state.zoom, state.top - y / state.zoom);
  }

  return { state, by, move, fit: () => set(1, 0, 0), again: () => set(state.zoom, state.left, state.top) };
}

let pageScrolled = -Infinity; // when the wheel last moved the page: a view that slides under it must not take over

addEventListener("wheel", event => {
  if (!event.defaultPrevented) pageScrolled = event.timeStamp;
}, { passive: true });

// Wheel, one pointer that drags, and two that pinch, on one view. `slide`, where there is one, may take a drag.
class Pointers {
  constructor(view, zoom, slide) {
    this.view = view;
    this.zoom = zoom;
    this.slide = slide;
    this.at = new Map(); // pointers that are down, by their ids
    this.mode = "";
    this.dragged = false;
    view.addEventListener("wheel", event => this.wheel(event), { passive: false });
    view.addEventListener("pointerdown", event => this.down(event));
    view.addEventListener("pointermove", event => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, event => this.up(event));
    for (const touch of ["touchstart", "touchmove"]) { // two fingers are ours, one may still scroll the page
      view.addEventListener(touch, event => event.touches.length > 1 && event.preventDefault(), { passive: false });
    }
  }

  place(event) {
    const box = this.view.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  wheel(event) {
    const pinched = event.ctrlKey; // as touch pads say it
    const scrolling = event.timeStamp - pageScrolled < 300 || (event.deltaY > 0 && this.zoom.state.zoom === 1);
    if (scrolling && !pinched) return;
    event.preventDefault();
    const at = this.place(event), step = Math.min(Math.max(event.deltaY, -120), 120);
    this.zoom.by(Math.exp(-step / (pinched ? 120 : 400)), at.x, at.y);
  }

  down(event) {
    if (event.button) return;
    this.view.setPointerCapture(event.pointerId);
    this.at.set(event.pointerId, this.place(event));
    this.dragged = this.at.size > 1;
    this.mode = this.at.size > 1 ? "pinch" : this.slide?.starts(this.place(event).x) ? "slide" : "pan";
    this.began = this.place(event);
  }

  move(event) {
    const before = this.at.get(event.pointerId), now = this.place(event);
    if (!before) return;
    this.dragged ||= Math.hypot(now.x - this.began.x, now.y - this.began.y) > 0.02;
    if (this.mode === "slide") this.slide.to(now.x);
    else if (this.mode === "pan") this.zoom.move(now.x - before.x, now.y - before.y);
    else this.pinch(event.pointerId, before, now);
    this.at.set(event.pointerId, now);
  }

  pinch(id, before, now) {
    const other = [...this.at].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const apart = point => Math.hypot(point.x - other.x, point.y - other.y);
    this.zoom.by(apart(now) / Math.max(apart(before), 0.01), (now.x + other.x) / 2, (now.y + other.y) / 2);
    this.zoom.move((now.x - before.x) / 2, (now.y - before.y) / 2);
  }

  up(event) {
    this.at.delete(event.pointerId);
    this.mode = this.at.size ? "pan" : "";
  }
}
