  // ---- viewer: one scan, large ----

  const viewer = $("viewer"), stage = $("stage");

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function fill(facts, lines) {
    facts.replaceChildren(...lines.map(([name, value]) => {
      const row = document.createElement("div");
      row.append(element("dt", name), element("dd", value));
      return row;
    }));
  }

  function choices(place, options, pressed, act) { // buttons of which one is pressed
    place.replaceChildren(...options.map(([value, caption]) => {
      const button = element("button", caption, { type: "button", "data-value": value, "aria-pressed": value === pressed });
      button.addEventListener("click", () => {
        act(value);
        stage.focus({ preventScroll: true }); // this button is replaced, and the keys go on
      });
      return button;
    }));
  }

  function showNeighbours(card) { // whose scores were mixed into this one's: links where there is a picture to open
    const list = card.neighbours.split(" ").filter(Boolean).map((pair) => pair.split(":"));
    $("neighbours").hidden = !list.length;
    const others = list.reduce((sum, [, weight]) => sum + Number(weight), 0);
    $("own").textContent = `${(100 * (1 - others)).toFixed(0)} %`;
    $("neighbours").querySelector("ul").replaceChildren(...list.map(([rank, weight]) => {
      const same = (other) => other.category === card.category && other.rank === rank;
      const linked = cards.find(same), line = document.createElement("li");
      const name = element(linked ? "button" : "span", (linked ?? rows.find(same)).short, linked ? { type: "button" } : {});
      linked && name.addEventListener("click", () => {
        open(linked);
        stage.focus({ preventScroll: true });
      });
      line.append(name, element("span", `${(100 * weight).toFixed(1)} %`));
      return line;
    }));
  }

  function enlarge() {
    const card = state.open;
    if (!card) return;
    if (!card.kinds.some(([kind]) => kind === state.kind)) state.kind = "overlay";
    $("viewer-rank").textContent = card.rank;
    $("viewer-name").textContent = card.name;
    const chip = card.element.querySelector(".chip");
    $("viewer-chip").hidden = !chip;
    $("viewer-chip").className = chip?.className ?? "chip";
    $("viewer-chip").textContent = chip?.textContent ?? "";
    choices($("tabs"), card.kinds, state.kind, (kind) => { state.kind = kind; enlarge(); });
    const solid = state.kind === "solid";
    stage.classList.toggle("solid", solid);
    for (const id of ["colours", "solid-keys"]) $(id).hidden = !solid;
    if (solid) {
      if (state.colour === "picture" && !card.img("image")) state.colour = "heat";
      choices($("colours"), tints(card), state.colour, tint);
    }
    const [x, y, peak] = card.peak.split(" ");
    fill($("viewer-facts"), [
      ["Rank", `${card.rank} of ${card.of}`],
      ["Score", say(card.score)],
      ["Before re-scoring", say(card.before)],
      ["At the threshold", card.element.querySelector(".call").textContent],
      ...(card.pred ? [["The run called it", card.pred]] : []),
      ["Highest pixel", `${say(peak)} at x ${x}, y ${y}`],
      ...(card.hit ? [["Highest pixel on the defect", card.hit]] : []),
      ...(card.category ? [["Category", card.category]] : []),
    ]);
    legend($("viewer-cold"), $("viewer-hot"), card);
    $("viewer-scale").textContent = state.scale === "set" ? "Heat scale: whole set" : "Heat scale: this scan alone";
    showNeighbours(card);
    $("readout").textContent = "Point at the picture to read its score.";
    stage.setAttribute("aria-label", `${card.kinds.find(([kind]) => kind === state.kind)[1]} of ${card.name}`);
    Promise.all([solid ? loadSolid(card) : load(card), ...card.images.map((img) => img.decode())])
      .then(([cloud]) => {
        if (state.open !== card || (state.kind === "solid") !== solid) return;
        if (solid) drawSolid(stage, card, cloud);
        else paint(stage, card, state.kind, 800);
      })
      .catch(fail);
  }

  function open(card) {
    state.open = card;
    if (!viewer.open) viewer.showModal();
    enlarge();
  }

  function step(by) {
    const shown = cards.filter((card) => !card.element.hidden);
    const at = Math.min(shown.length - 1, Math.max(0, shown.indexOf(state.open) + by));
    if (shown[at] && shown[at] !== state.open) open(shown[at]);
  }

  function turn(by) {
    const kinds = state.open.kinds.map(([kind]) => kind), at = kinds.indexOf(state.kind) + by;
    state.kind = kinds[(at + kinds.length) % kinds.length];
    enlarge();
  }

  for (const card of cards) {
    card.element.addEventListener("click", (event) => {
      state.kind = event.target.closest("figure")?.dataset.kind ?? "overlay";
      open(card);
    });
  }
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => {
    const card = state.open;
    state.open = null;
    card.element.scrollIntoView({ block: "nearest" });
    card.element.querySelector("button").focus({ preventScroll: true });
  });
  const keys = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowUp: () => turn(-1),
    ArrowDown: () => turn(1),
    Home: () => step(-cards.length),
    End: () => step(cards.length),
    s: () => choose(state.scale === "set" ? "scan" : "set"),
    o: () => setOutline(!state.outline),
  };
  viewer.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const act = (state.kind === "solid" && solidKeys[event.shiftKey && event.key.startsWith("Arrow") ? `Shift${key}` : key]) || keys[key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  function read(event) { // the score and the pixel under the pointer
    const card = state.open;
    if (!card?.data) return;
    const box = stage.getBoundingClientRect(), { map, source } = card.data;
    let u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
    if (u < 0 || v < 0 || u >= 1 || v >= 1) return;
    if (state.kind === "solid") {
      const point = view.at?.hit[Math.floor(v * stage.height) * stage.width + Math.floor(u * stage.width)] ?? -1;
      if (point < 0) return;
      const pixel = view.at.solid.pixel[point];
      [u, v] = [((pixel % map.w) + 0.5) / map.w, (Math.floor(pixel / map.w) + 0.5) / map.h];
    }
    const number = map.at[Math.floor(v * map.h) * map.w + Math.floor(u * map.w)];
    $("readout").textContent = `Score ${say(map.levels[number], 3)} at x ${Math.floor(u * source[0])}, y ${Math.floor(v * source[1])}`;
  }
  stage.addEventListener("pointermove", read);

