  // ---- hands on the solid: drag, wheel, pinch and keys ----

  let waiting = 0;
  function redraw() { // once for each picture that the screen shows, however many moves came in between
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      const card = state.open;
      if (card && state.kind === "solid") loadSolid(card).then((solid) => drawSolid(stage, card, solid));
    });
  }

  const tints = (card) => [["heat", "Heat"], ...(card.img("image") ? [["picture", "Picture"]] : []), ["depth", "Depth"]];

  function tint(colour) {
    state.colour = colour;
    enlarge();
  }

  const move = (change) => () => { change(); redraw(); };
  const solidKeys = {
    ShiftArrowLeft: move(() => turn3d(-0.15, 0)),
    ShiftArrowRight: move(() => turn3d(0.15, 0)),
    ShiftArrowUp: move(() => turn3d(0, -0.15)),
    ShiftArrowDown: move(() => turn3d(0, 0.15)),
    "+": move(() => zoom3d(1.25)),
    "=": move(() => zoom3d(1.25)),
    "-": move(() => zoom3d(0.8)),
    0: move(reset3d),
    c: () => {
      const all = tints(state.open).map(([value]) => value);
      tint(all[(all.indexOf(state.colour) + 1) % all.length]);
    },
  };

  const fingers = new Map(); // what is down on the stage, where it was last
  const middle = ({ clientX, clientY }) => { // shares of the stage from its middle
    const box = stage.getBoundingClientRect();
    return [(clientX - box.left) / box.width - 0.5, (clientY - box.top) / box.height - 0.5];
  };
  stage.addEventListener("pointerdown", (event) => {
    if (state.kind !== "solid") return;
    fingers.set(event.pointerId, event);
    stage.setPointerCapture(event.pointerId);
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => fingers.delete(event.pointerId));
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before || state.kind !== "solid") return;
    fingers.set(event.pointerId, event);
    const { width, height } = stage.getBoundingClientRect();
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    if (other) {
      const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      zoom3d(apart(event) / Math.max(1, apart(before)), ...middle(other));
    } else if (event.shiftKey || event.buttons > 1) {
      view.x += dx / width;
      view.y += dy / height;
    } else {
      turn3d((5 * dx) / width, (5 * dy) / width);
    }
    redraw();
  });
  stage.addEventListener("wheel", (event) => {
    if (state.kind !== "solid") return;
    event.preventDefault();
    zoom3d(Math.exp(-0.0015 * Math.max(-200, Math.min(200, event.deltaY))), ...middle(event));
    redraw();
  }, { passive: false });
  stage.addEventListener("dblclick", () => { if (state.kind === "solid") move(reset3d)(); });
  stage.addEventListener("contextmenu", (event) => { if (state.kind === "solid") event.preventDefault(); });

  sets.forEach((set) => {
    offer(set);
    decide(set, set.at);
  });
  refresh();
