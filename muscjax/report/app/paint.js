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

  const levels = ({ levels: scores }, [low, high]) => // each of the map's numbers on 0...1
    Float32Array.from({ length: 256 }, (_, i) => {
      const score = scores[Math.min(i, scores.length - 1)];
      return high > low ? Math.min(1, Math.max(0, (score - low) / (high - low))) : 0;
    });
  const opacity = (level) => 0.92 * level ** 0.6 * Math.min(1, level / 0.2);

  function heatLayer({ map, limits }, scale, opaque) {
    const level = levels(map, limits[scale]);
    return colours(map, (i) => {
      const at = 3 * Math.round(255 * level[i]), alpha = opaque ? 1 : opacity(level[i]);
      return [heat[at], heat[at + 1], heat[at + 2], Math.round(255 * alpha)];
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

