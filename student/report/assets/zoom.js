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

let pageScrolled = 0; // when the wheel last moved the page: a view that slides under it must not take over

addEventListener("wheel", event => {
  if (!event.defaultPrevented) pageScrolled = event.timeStamp;
}, { passive: true });

// Wheel, one pointer that drags, and two that pinch, on one view. `slide(x)` is asked first whether it takes a drag.
function listen(view, zoom, slide) {
  const pointers = new Map();
  let mode = "", moved = 0;
  const place = event => {
    const box = view.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };

  view.addEventListener("wheel", event => {
    const scrolling = !event.ctrlKey && event.timeStamp - pageScrolled < 300;
    if (scrolling || (event.deltaY > 0 && zoom.state.zoom === 1 && !event.ctrlKey)) return;
    event.preventDefault();
    const at = place(event), step = Math.min(Math.max(event.deltaY, -120), 120);
    zoom.by(Math.exp(-step / (event.ctrlKey ? 120 : 400)), at.x, at.y);
  }, { passive: false });

  view.addEventListener("pointerdown", event => {
    if (event.button) return;
    view.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
    moved = pointers.size > 1 ? 1 : 0;
    mode = pointers.size > 1 ? "pinch" : slide?.starts(place(event).x) ? "slide" : "pan";
  });

  view.addEventListener("pointermove", event => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    if (mode === "slide") slide.to(now.x);
    else if (mode === "pan") zoom.move(now.x - before.x, now.y - before.y);
    else pinch(event.pointerId, before, now);
    pointers.set(event.pointerId, now);
  });

  function pinch(id, before, now) {
    const other = [...pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const apart = point => Math.hypot(point.x - other.x, point.y - other.y);
    zoom.by(apart(now) / Math.max(apart(before), 0.01), (now.x + other.x) / 2, (now.y + other.y) / 2);
    zoom.move((now.x - before.x) / 2, (now.y - before.y) / 2);
  }

  for (const touch of ["touchstart", "touchmove"]) { // two fingers are ours, one may still scroll the page
    view.addEventListener(touch, event => event.touches.length > 1 && event.preventDefault(), { passive: false });
  }

  for (const end of ["pointerup", "pointercancel"]) {
    view.addEventListener(end, event => {
      pointers.delete(event.pointerId);
      mode = pointers.size ? "pan" : "";
    });
  }
  return { wasDragged: () => moved > 0.02 };
}
