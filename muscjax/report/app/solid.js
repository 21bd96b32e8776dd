  // ---- solid: a cloud of points as discs with a depth buffer, on a plain canvas: no graphics driver to depend on ----
  // Axes are the picture's own: x right, y down, z away from the reader. Lengths are shares of the cloud's radius.

  const GROUND = 0xff100d0c; // of the canvas, as the bytes of its pixels
  const view = { turn: null, zoom: 1, x: 0, y: 0, at: null }; // kept from scan to scan; turn: nine numbers, row by row

  function loadSolid(card) {
    card.solid ??= (async () => {
      const { n, step, data } = JSON.parse(stored(card, "cloud").textContent);
      const [at] = await Promise.all([inflate(data), load(card)]);
      const column = (k) => { // sums of the differences, whose low and high bytes stand apart
        const out = new Uint16Array(n), low = 2 * k * n, high = low + n;
        for (let i = 0, sum = 0; i < n; i++) out[i] = sum += at[low + i] + 256 * at[high + i];
        return out;
      };
      const axes = [column(0), column(1), column(2)], pixel = column(3), { w, h } = card.data.map;
      const middle = axes.map((axis) => (axis.reduce((a, b) => Math.max(a, b), 0) + axis.reduce((a, b) => Math.min(a, b), 65535)) / 2);
      let radius = 1;
      for (let i = 0; i < n; i++) radius = Math.max(radius, Math.hypot(...axes.map((axis, k) => axis[i] - middle[k])));
      const points = Float32Array.from({ length: 3 * n }, (_, j) => (axes[j % 3][(j / 3) | 0] - middle[j % 3]) / radius);
      const solid = { n, points, pixel, w, h, metres: radius * step };
      return Object.assign(solid, relief(solid));
    })();
    return card.solid;
  }

  function relief({ n, points, pixel, w, h }) { // the surface's direction at each point, and the usual gap between points
    const there = new Int32Array(w * h).fill(-1), gaps = [];
    for (let i = 0; i < n; i++) {
      there[pixel[i]] = i;
      if (i && pixel[i] - pixel[i - 1] < w / 4) gaps.push(pixel[i] - pixel[i - 1]);
    }
    const cells = gaps.sort((a, b) => a - b)[gaps.length >> 1] ?? 1; // pixels for each point
    const reach = Math.ceil(1.5 * Math.sqrt(cells)), normals = new Float32Array(3 * n), lengths = [];
    for (let i = 0; i < n; i++) {
      const px = pixel[i] % w, py = (pixel[i] / w) | 0;
      let xx = 0, xy = 0, yy = 0, xz = 0, yz = 0, nearest = Infinity;
      for (let v = Math.max(0, py - reach); v <= Math.min(h - 1, py + reach); v++) {
        for (let u = Math.max(0, px - reach); u <= Math.min(w - 1, px + reach); u++) {
          const j = there[v * w + u];
          if (j < 0 || j === i) continue;
          const x = points[3 * j] - points[3 * i], y = points[3 * j + 1] - points[3 * i + 1], z = points[3 * j + 2] - points[3 * i + 2];
          const weight = 1 / (x * x + y * y + z * z + 1e-9); // across an edge the near side counts
          xx += weight * x * x; xy += weight * x * y; yy += weight * y * y; xz += weight * x * z; yz += weight * y * z;
          nearest = Math.min(nearest, x * x + y * y);
        }
      }
      // z = a x + b y by least squares; where the neighbours say nothing, towards the reader.
      const det = xx * yy - xy * xy, sure = det > 1e-6 * (xx + yy) ** 2;
      const a = sure ? (xz * yy - yz * xy) / det : 0, b = sure ? (yz * xx - xz * xy) / det : 0, length = Math.hypot(a, b, 1);
      normals.set([a / length, b / length, -1 / length], 3 * i);
      if (nearest < Infinity) lengths.push(Math.sqrt(nearest));
    }
    return { normals, gap: lengths.sort((a, b) => a - b)[lengths.length >> 1] ?? 0.05 };
  }

  const colourings = { // each a function from a point to its colour, written into out
    heat(solid, { data: { map, limits } }) { // as the overlay: the colder, the more of the bare surface
      const level = levels(map, limits[state.scale]);
      return (i, out) => {
        const hot = level[map.at[solid.pixel[i]]], at = 3 * Math.round(255 * hot), part = opacity(hot);
        for (let k = 0; k < 3; k++) out[k] = 180 + part * (heat[at + k] - 180);
      };
    },
    picture(solid, card) {
      const context = surface(solid.w, solid.h).getContext("2d", { willReadFrequently: true });
      context.drawImage(card.img("image"), 0, 0, solid.w, solid.h);
      const { data } = context.getImageData(0, 0, solid.w, solid.h);
      return (i, out) => { for (let k = 0; k < 3; k++) out[k] = 30 + 0.88 * data[4 * solid.pixel[i] + k]; };
    },
    depth({ n, points }) { // pale is near, blue is far, between the 2nd and the 98th of a hundred
      const order = Float32Array.from({ length: n }, (_, i) => points[3 * i + 2]).sort();
      const low = order[Math.floor(0.02 * n)], span = order[Math.floor(0.98 * (n - 1))] - low || 1;
      return (i, out) => {
        const far = Math.min(1, Math.max(0, (points[3 * i + 2] - low) / span));
        out[0] = 244 - 206 * far; out[1] = 240 - 150 * far; out[2] = 214 - 44 * far;
      };
    },
  };

  function inks(solid, card) { // three bytes for each point, made anew when the colours are
    const made = state.colour + state.scale;
    if (solid.made !== made) {
      const colour = colourings[state.colour](solid, card), out = [0, 0, 0];
      Object.assign(solid, { made, inks: new Uint8Array(3 * solid.n) });
      for (let i = 0; i < solid.n; i++) {
        colour(i, out);
        solid.inks.set(out, 3 * i);
      }
    }
    return solid.inks;
  }

  function drawSolid(canvas, card, solid) {
    const { naturalWidth, naturalHeight } = card.under, fit = 800 / Math.max(naturalWidth, naturalHeight);
    const width = (canvas.width = Math.max(1, Math.round(naturalWidth * fit)));
    const height = (canvas.height = Math.max(1, Math.round(naturalHeight * fit)));
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const paper = new Uint32Array(image.data.buffer).fill(GROUND);
    const depth = new Float32Array(width * height).fill(Infinity), hit = new Int32Array(width * height).fill(-1);

    const { n, points, normals } = solid, ink = inks(solid, card), m = view.turn;
    const turned = (axis, from, i) => m[axis] * from[3 * i] + m[axis + 1] * from[3 * i + 1] + m[axis + 2] * from[3 * i + 2];
    const scale = 0.5 * Math.min(width, height) * view.zoom;
    const radius = Math.min(60, Math.max(1, 1.3 * solid.gap * scale)), tall = Math.floor(radius);
    const wide = Array.from({ length: tall + 1 }, (_, dy) => Math.floor(Math.sqrt(radius * radius - dy * dy)));

    for (let i = 0; i < n; i++) {
      const u = Math.round(width * (0.5 + view.x) + scale * turned(0, points, i));
      const v = Math.round(height * (0.5 + view.y) + scale * turned(3, points, i)), away = turned(6, points, i);
      if (u < -radius || v < -radius || u >= width + radius || v >= height + radius) continue;
      // A lamp at the reader's upper left; both sides of the surface are lit.
      const light = 0.32 + 0.86 * Math.abs(0.42 * turned(0, normals, i) + 0.48 * turned(3, normals, i) + 0.77 * turned(6, normals, i));
      const lit = (k) => Math.min(255, light * ink[3 * i + k]);
      const colour = (0xff000000 | (lit(2) << 16) | (lit(1) << 8) | lit(0)) >>> 0;
      for (let y = Math.max(0, v - tall); y <= Math.min(height - 1, v + tall); y++) {
        const half = wide[Math.abs(y - v)], end = y * width + Math.min(width - 1, u + half);
        for (let at = y * width + Math.max(0, u - half); at <= end; at++) {
          if (away >= depth[at]) continue;
          depth[at] = away;
          paper[at] = colour;
          hit[at] = i;
        }
      }
    }
    context.putImageData(image, 0, 0);
    ruler(context, solid.metres / scale);
    view.at = { hit, solid };
    canvas.dataset.painted = `solid ${state.colour}`;
  }

  function ruler(context, metres) { // a round length near a fifth of the picture; metres: of one pixel
    const { width, height } = context.canvas, about = (metres * width) / 5, power = 10 ** Math.floor(Math.log10(about));
    const length = power * [5, 2, 1].find((m) => m * power <= about * 1.0001), end = 20 + length / metres;
    context.fillStyle = context.strokeStyle = "#c9ced6";
    context.lineWidth = 2;
    context.stroke(new Path2D(`M20 ${height - 27}V${height - 20}H${end}V${height - 27}`));
    context.font = "22px system-ui, sans-serif";
    const [by, unit] = length < 1e-3 ? [1e6, "µm"] : length < 1 ? [1e3, "mm"] : [1, "m"];
    context.fillText(`${say(length * by, 2)} ${unit}`, 20, height - 36);
  }

  function turn3d(right, down) { // radians about the picture's vertical and horizontal axes
    const times = (p, q) => Array.from({ length: 9 }, (_, i) => [0, 1, 2].reduce((sum, k) => sum + p[i - (i % 3) + k] * q[3 * k + (i % 3)], 0));
    const [c, s] = [Math.cos(right), Math.sin(right)], [k, t] = [Math.cos(down), Math.sin(down)];
    view.turn = times([1, 0, 0, 0, k, -t, 0, t, k], times([c, 0, -s, 0, 1, 0, s, 0, c], view.turn));
  }

  function zoom3d(by, x = 0, y = 0) { // the place at x, y (shares of the canvas from its middle) stays
    const zoom = Math.min(40, Math.max(0.3, view.zoom * by));
    view.x = x - ((x - view.x) * zoom) / view.zoom;
    view.y = y - ((y - view.y) * zoom) / view.zoom;
    view.zoom = zoom;
  }

  function reset3d() {
    Object.assign(view, { turn: [1, 0, 0, 0, 1, 0, 0, 0, 1], zoom: 1, x: 0, y: 0 });
    turn3d(-0.3, 0.4); // a little from the side: straight ahead it would look like the picture
  }

  reset3d();

