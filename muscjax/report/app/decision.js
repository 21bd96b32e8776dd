  // ---- decision: one threshold for each category, what it calls, and where it stands in the figures ----

  const STEPS = 400; // of a slider over the range of its figure, and a few beyond, to call all and none
  const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

  const sets = page.sets.map((set, index) => ({
    ...set,
    index,
    places: [...document.querySelectorAll(`[data-set="${index}"]`)],
    cards: [...cards, ...rows].filter((card) => Number(card.element.closest("[data-set]").dataset.set) === index),
    at: set.starts[0],
  }));

  function tally(set) {
    const sum = { called: 0, found: 0, alarms: 0, missed: 0, passed: 0 };
    set.scores.forEach((score, i) => {
      const called = score > set.at, label = set.labels[i];
      if (called) sum.called += 1;
      if (label === null) return;
      sum[called ? (label ? "found" : "alarms") : label ? "missed" : "passed"] += 1;
    });
    return sum;
  }

  function words(sum, scans) {
    const { called, found, alarms, missed, passed } = sum;
    return {
      called: `${called} of ${scans}`,
      precision: share(found, found + alarms),
      recall: share(found, found + missed),
      f1: share(2 * found, 2 * found + alarms + missed),
      alarms: `${alarms} of ${alarms + passed}`,
      missed: `${missed} of ${found + missed}`,
    };
  }

  function mark(card, at) {
    const called = card.value > at, truth = card.label.split("/")[0];
    card.call = called ? "defective" : "normal";
    card.error = !truth || truth === card.call ? "" : called ? "alarm" : "missed";
    const chip = card.element.querySelector(".call");
    chip.className = `call ${card.call} ${card.error}`;
    chip.textContent = { alarm: "false alarm", missed: "missed defect" }[card.error] ?? `called ${card.call}`;
  }

  function decide(set, at) {
    set.at = at;
    const [low, high] = set.range, x = Math.min(1.01, Math.max(-0.01, (at - low) / (high - low)));
    const sum = tally(set), said = { value: say(at, 3), ...words(sum, set.scores.length) };
    for (const place of set.places) {
      place.style.setProperty("--at", `${Math.min(100, Math.max(0, 100 * x))}%`);
      for (const slider of place.querySelectorAll("input.threshold")) {
        slider.value = Math.round(STEPS * x);
        slider.setAttribute("aria-valuetext", `${say(at, 3)}: ${said.called} called defective`);
      }
      for (const text of place.querySelectorAll("[data-live]")) text.textContent = said[text.dataset.live];
      for (const button of place.querySelectorAll("button[data-start]")) {
        button.setAttribute("aria-pressed", String(set.starts[button.dataset.start] === at));
      }
    }
    const recall = sum.found / (sum.found + sum.missed);
    point(set, "roc", sum.alarms / (sum.alarms + sum.passed), recall);
    point(set, "pr", recall, sum.found / (sum.found + sum.alarms));
    // The bars of the cards begin at the lowest score, the figure may begin below it.
    const lowest = Math.min(...set.scores), span = Math.max(...set.scores) - lowest;
    const bar = span > 0 ? Math.min(100, Math.max(0, (100 * (at - lowest)) / span)) : 100;
    set.places.forEach((place) => place.style.setProperty("--bar", `${bar}%`));
    set.cards.forEach((card) => mark(card, at));
    total();
  }

  function point(set, curve, right, up) { // where nothing is called there is no precision, and no point
    for (const dot of set.places.flatMap((place) => [...place.querySelectorAll(`.${curve} circle`)])) {
      dot.style.display = Number.isNaN(up) ? "none" : "";
      if (Number.isNaN(up)) continue;
      dot.setAttribute("cx", 100 * right);
      dot.setAttribute("cy", 100 * (1 - up));
    }
  }

  function total() {
    if (!$("total")) return;
    const sums = sets.map(tally), sum = {};
    for (const key of Object.keys(sums[0])) sum[key] = sums.reduce((all, one) => all + one[key], 0);
    const said = words(sum, sets.reduce((all, set) => all + set.scores.length, 0));
    for (const text of $("total").querySelectorAll("[data-live]")) text.textContent = said[text.dataset.live];
  }

  function offer(set) {
    const move = (at) => { decide(set, at); refresh(); };
    for (const place of set.places) {
      for (const slider of place.querySelectorAll("input.threshold")) {
        slider.addEventListener("input", () => move(set.range[0] + (slider.value / STEPS) * (set.range[1] - set.range[0])));
      }
      for (const button of place.querySelectorAll("button[data-start]")) {
        button.addEventListener("click", () => move(set.starts[button.dataset.start]));
      }
    }
  }

