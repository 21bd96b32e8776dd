  const $ = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const say = (value, digits = 4) => String(Number(Number(value).toPrecision(digits)));
  const page = JSON.parse($("page").textContent);
  const heat = bytes(page.heat);
  const state = { scale: "set", outline: $("outline") !== null, open: null, kind: "overlay", colour: "heat" };

  // ---- cards: what the page says of each scan, and the bytes of its map, unpacked once ----

  async function inflate(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function unpack({ w, h, data }) {
    const out = await inflate(data);
    for (let i = w; i < w * h; i++) out[i] += out[i - w]; // rows hold differences
    return { w, h, at: out };
  }

  const entry = (element) => ({
    element,
    ...element.dataset,
    label: element.dataset.kind,
    value: Number(element.dataset.value), // the score that decides
    short: element.querySelector("bdi").textContent,
  });

  const stored = (card, part) => card.element.querySelector(`script[data-part="${part}"]`);

  const cards = [...document.querySelectorAll(".card")].map((element) => {
    const card = {
      ...entry(element),
      visible: false,
      data: null,
      pending: null,
      images: [...element.querySelectorAll("img")],
      img(kind) { return element.querySelector(`figure[data-kind="${kind}"] img`); },
      get under() { return this.img("image") || this.img("depth"); },
      kinds: [...element.querySelectorAll("figure")].map((f) => [f.dataset.kind, f.querySelector("figcaption").textContent]),
    };
    if (stored(card, "cloud")) card.kinds.push(["solid", "3D"]);
    return card;
  });
  const rows = [...document.querySelectorAll(".rest tbody tr")].map(entry); // scans without pictures

  function load(card) {
    card.pending ??= (async () => {
      const { map: packed, mask: packedMask, set, scan, source } = JSON.parse(stored(card, "planes").textContent);
      const [map, mask] = await Promise.all([unpack(packed), packedMask && unpack(packedMask)]);
      map.levels = new Float32Array(bytes(packed.levels).buffer);
      card.data = { map, mask, limits: { set, scan }, source };
    })();
    return card.pending;
  }

