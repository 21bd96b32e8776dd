"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const heat = bytes(JSON.parse($("page").textContent).heat);
  const say = (value, digits = 4) => String(Number(Number(value).toPrecision(digits)));
  const state = { scale: "set", outline: $("outline") !== null, open: null, kind: "overlay" };

  // ---- data: the bytes of a card, unpacked once ----

  async function unpack({ w, h, data }) {
    const stream = new Blob([bytes(data)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const out = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let i = w; i < w * h; i++) out[i] += out[i - w]; // rows hold differences
    return { w, h, at: out };
  }

  const cards = [...document.querySelectorAll(".card")].map((element) => ({
    element,
    ...element.dataset,
    visible: false,
    data: null,
    pending: null,
    images: [...element.querySelectorAll("img")],
    img(kind) { return element.querySelector(`figure[data-kind="${kind}"] img`); },
    get under() { return this.img("image") || this.img("depth"); },
    kinds: [...element.querySelectorAll("figure")].map((f) => [f.dataset.kind, f.querySelector("figcaption").textContent]),
    label: element.dataset.kind,
  }));

  function load(card) {
    card.pending ??= (async () => {
      const stored = JSON.parse(card.element.querySelector("script").textContent);
      const [map, mask] = await Promise.all([unpack(stored.map), stored.mask && unpack(stored.mask)]);
      map.levels = new Float32Array(bytes(stored.map.levels).buffer);
      card.data = { map, mask, limits: { set: stored.set, scan: stored.scan }, source: stored.source };
    })();
    return card.pending;
  }

  // ---- paint: one function per kind of panel, drawing into a canvas of any size ----

  function surface(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    return canvas;
  }

  function colours(map, pixel) { // a layer of the map's own size; pixel(level) -> [r, g, b, a]
    const layer = surface(map.w, map.h), context = layer.getContext("2d");
    const image = context.createImageData(map.w, map.h), table = Array.from({ length: 256 }, (_, i) => pixel(i));
    for (let i = 0; i < map.at.length; i++) image.data.set(table[map.at[i]], 4 * i);
    context.putImageData(image, 0, 0);
    return layer;
  }

  function heatLayer({ map, limits }, scale, opaque) {
    const [low, high] = limits[scale];
    return colours(map, (i) => {
      const score = map.levels[Math.min(i, map.levels.length - 1)];
      const level = high > low ? Math.min(1, Math.max(0, (score - low) / (high - low))) : 0;
      const entry = 3 * Math.round(255 * level);
      const alpha = opaque ? 1 : 0.92 * level ** 0.6 * Math.min(1, level / 0.2);
      return [heat[entry], heat[entry + 1], heat[entry + 2], Math.round(255 * alpha)];
    });
  }

  function outline(context, mask) { // a bright line with a dark one around it, on heat and on the bare picture
    const { width, height } = context.canvas, layer = surface(width, height), inner = layer.getContext("2d");
    const image = inner.createImageData(width, height), thick = Math.max(1, Math.round(Math.max(width, height) / 360));
    const inside = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const row = mask.w * Math.floor((y * mask.h) / height);
      for (let x = 0; x < width; x++) inside[y * width + x] = mask.at[row + Math.floor((x * mask.w) / width)];
    }
    const paint = (x, y, value) => {
      for (let dy = -thick; dy <= thick; dy++) {
        for (let dx = -thick; dx <= thick; dx++) {
          const v = y + dy, u = x + dx;
          if (v < 0 || u < 0 || v >= height || u >= width || inside[v * width + u] !== value) continue;
          image.data.set(value ? [0, 0, 0, 150] : [110, 240, 255, 255], 4 * (v * width + u));
        }
      }
    };
    for (const value of [1, 0]) { // beside each border: dark on the defect, bright just outside of it
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const i = y * width + x;
          if ((x + 1 < width && inside[i] !== inside[i + 1]) || (y + 1 < height && inside[i] !== inside[i + width])) {
            paint(x, y, value);
          }
        }
      }
    }
    inner.putImageData(image, 0, 0);
    context.drawImage(layer, 0, 0);
  }

  const draw = {
    image: (context, card) => context.drawImage(card.img("image"), 0, 0, context.canvas.width, context.canvas.height),
    depth: (context, card) => context.drawImage(card.img("depth"), 0, 0, context.canvas.width, context.canvas.height),
    map(context, card) {
      context.drawImage(heatLayer(card.data, state.scale, true), 0, 0, context.canvas.width, context.canvas.height);
    },
    mask(context, card) {
      const layer = colours(card.data.mask, (i) => (i ? [236, 239, 242, 255] : [20, 22, 26, 255]));
      context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
    },
    overlay(context, card) {
      const { width, height } = context.canvas;
      // Paler and darker, so that the hottest colour is brighter than the brightest part.
      context.fillStyle = "#333";
      context.fillRect(0, 0, width, height);
      context.globalAlpha = 0.7;
      context.drawImage(card.under, 0, 0, width, height);
      context.globalAlpha = 0.4;
      context.globalCompositeOperation = "saturation";
      context.fillStyle = "#888";
      context.fillRect(0, 0, width, height);
      context.globalAlpha = 1;
      context.globalCompositeOperation = "source-over";
      context.drawImage(heatLayer(card.data, state.scale, false), 0, 0, width, height);
      if (state.outline && card.data.mask) outline(context, card.data.mask);
    },
  };

  function paint(canvas, card, kind, side) {
    const { naturalWidth: w, naturalHeight: h } = card.under, share = side / Math.max(w, h);
    canvas.width = Math.max(1, Math.round(w * share));
    canvas.height = Math.max(1, Math.round(h * share));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    draw[kind](context, card);
    canvas.dataset.painted = state.scale;
  }

  // ---- gallery: cards are painted when they come near the window ----

  const stamp = () => state.scale + state.outline;

  function show(card) {
    if (!card.data || card.stamp === stamp()) return;
    card.stamp = stamp();
    for (const figure of card.element.querySelectorAll("figure")) {
      const canvas = figure.querySelector("canvas");
      if (canvas) paint(canvas, card, figure.dataset.kind, 288);
    }
  }

  function fail(error) {
    $("unsupported").hidden = false;
    $("unsupported").textContent = `Heat maps cannot be drawn here: ${error.message}. A browser of 2023 or later can.`;
  }

  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = cards.find((c) => c.element === target);
      card.visible = isIntersecting;
      if (isIntersecting) Promise.all([load(card), card.under.decode()]).then(() => show(card)).catch(fail);
    }
  }, { rootMargin: "700px" });
  cards.forEach((card) => near.observe(card.element));

  // Everything is unpacked in idle time: printing cannot wait for it.
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 30));
  const queue = [...cards];
  idle(function next() {
    if (queue.length) load(queue.shift()).then(() => idle(next), fail);
  });
  window.addEventListener("beforeprint", () => cards.forEach(show));

  const filters = [
    (card) => !$("category")?.value || card.category === $("category").value,
    (card) => !$("kind")?.value || `${card.label}/`.startsWith(`${$("kind").value}/`),
  ];

  function refresh() {
    for (const card of cards) card.element.hidden = !filters.every((holds) => holds(card));
    const shown = cards.filter((card) => !card.element.hidden);
    for (const set of document.querySelectorAll(".set")) {
      set.hidden = Boolean($("category")?.value) && set.dataset.category !== $("category").value;
    }
    $("count").textContent = shown.length === cards.length ? `${cards.length} scans` : `${shown.length} of ${cards.length} scans`;
    const sets = new Set(shown.map((card) => card.category));
    legend($("cold"), $("hot"), sets.size === 1 && state.scale === "set" ? shown[0] : null);
    $("meaning").textContent = state.scale === "set"
      ? `One scale for ${document.querySelectorAll(".set").length > 1 ? "each category" : "all"}: colours can be compared between scans.`
      : "Each scan on a scale of its own: where it is hottest, not how hot. A flawless scan has a hottest place too.";
    cards.filter((card) => card.visible).forEach(show);
  }

  function legend(cold, hot, card) {
    const limits = card && JSON.parse(card.element.querySelector("script").textContent)[state.scale];
    cold.textContent = limits ? `≤ ${say(limits[0], 3)}` : "no heat";
    hot.textContent = limits ? `≥ ${say(limits[1], 3)}` : "full heat";
  }

  function choose(scale) {
    state.scale = scale;
    document.querySelector(`input[name="scale"][value="${scale}"]`).checked = true;
    refresh();
    enlarge();
  }

  function setOutline(on) {
    if (!$("outline")) return;
    state.outline = $("outline").checked = on;
    refresh();
    enlarge();
  }

  document.querySelectorAll('input[name="scale"]').forEach((radio) => radio.addEventListener("change", () => choose(radio.value)));
  $("outline")?.addEventListener("change", (event) => setOutline(event.target.checked));
  for (const id of ["category", "kind"]) $(id)?.addEventListener("change", refresh);

  // ---- viewer: one scan, large ----

  const viewer = $("viewer");

  function fill(facts, rows) {
    facts.replaceChildren(...rows.map(([name, value]) => {
      const row = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      row.append(term, text);
      return row;
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
    $("tabs").replaceChildren(...card.kinds.map(([kind, caption]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = caption;
      button.setAttribute("aria-pressed", String(kind === state.kind));
      button.addEventListener("click", () => { state.kind = kind; enlarge(); });
      return button;
    }));
    const [x, y, peak] = card.peak.split(" ");
    fill($("viewer-facts"), [
      ["Rank", `${card.rank} of ${card.of}`],
      ["Score", say(card.score)],
      ["Before re-scoring", say(card.before)],
      ["Highest pixel", `${say(peak)} at x ${x}, y ${y}`],
      ...(card.hit ? [["Highest pixel on the defect", card.hit]] : []),
      ...(card.category ? [["Category", card.category]] : []),
    ]);
    legend($("viewer-cold"), $("viewer-hot"), card);
    $("viewer-scale").textContent = state.scale === "set" ? "Heat scale: whole set" : "Heat scale: this scan alone";
    $("readout").textContent = "Point at the picture to read its score.";
    $("stage").setAttribute("aria-label", `${card.kinds.find(([kind]) => kind === state.kind)[1]} of ${card.name}`);
    Promise.all([load(card), ...card.images.map((img) => img.decode())])
      .then(() => { if (state.open === card) paint($("stage"), card, state.kind, 800); })
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
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  $("stage").addEventListener("pointermove", (event) => {
    const card = state.open;
    if (!card?.data) return;
    const box = event.target.getBoundingClientRect(), { map, source } = card.data;
    const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
    if (u < 0 || v < 0 || u >= 1 || v >= 1) return;
    const number = map.at[Math.floor(v * map.h) * map.w + Math.floor(u * map.w)];
    $("readout").textContent = `Score ${say(map.levels[number], 3)} at x ${Math.floor(u * source[0])}, y ${Math.floor(v * source[1])}`;
  });

  refresh();
})();
