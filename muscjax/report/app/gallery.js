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

  const chosen = (id) => $(id)?.value ?? "";
  const filters = [ // a scan is shown where all hold
    (card) => !chosen("category") || card.category === chosen("category"),
    (card) => `${card.label}/`.startsWith(chosen("kind") && `${chosen("kind")}/`),
    (card) => [card.call, card.error, ""].includes(chosen("call")),
    (card) => chosen("from") === "" || card.value >= Number(chosen("from")),
    (card) => chosen("to") === "" || card.value <= Number(chosen("to")),
  ];
  const controls = ["category", "kind", "call", "from", "to"].map($).filter(Boolean);

  function refresh() {
    const every = [...cards, ...rows];
    for (const card of every) card.element.hidden = !filters.every((holds) => holds(card));
    const shown = cards.filter((card) => !card.element.hidden), count = every.filter((card) => !card.element.hidden).length;
    const filtered = controls.some((control) => control.value !== "");
    for (const set of sets) {
      const place = document.querySelector(`.set[data-set="${set.index}"]`);
      place.hidden = filtered && set.cards.every((card) => card.element.hidden);
    }
    $("clear").hidden = !filtered;
    $("none").hidden = count > 0;
    $("count").textContent = count === every.length ? `${count} scans` : `${count} of ${every.length} scans`;
    const categories = new Set(shown.map((card) => card.category));
    legend($("cold"), $("hot"), categories.size === 1 && state.scale === "set" ? shown[0] : null);
    $("meaning").textContent = state.scale === "set"
      ? `One scale for ${sets.length > 1 ? "each category" : "all"}: colours can be compared between scans.`
      : "Each scan on a scale of its own: where it is hottest, not how hot. A flawless scan has a hottest place too.";
    cards.filter((card) => card.visible).forEach(show);
  }

  function legend(cold, hot, card) {
    const limits = card && JSON.parse(stored(card, "planes").textContent)[state.scale];
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
  for (const control of controls) for (const event of ["input", "change"]) control.addEventListener(event, refresh);
  $("clear").addEventListener("click", () => {
    for (const control of controls) control.value = "";
    refresh();
  });

