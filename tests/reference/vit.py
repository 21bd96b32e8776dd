"""A vision transformer in float64 NumPy, from the equations, one image and one head at a time."""

from __future__ import annotations

import math

import numpy as np

Params = dict[str, np.ndarray]


def cubic_taps(sample: float, size: int) -> tuple[list[int], list[float]]:
    """Four neighbours and weights of a cubic convolution with a = -0.75; outside indices are clamped."""
    a, base = -0.75, math.floor(sample)
    indices, weights = [], []
    for k in range(base - 1, base + 3):
        d = abs(sample - k)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weights.append(near if d <= 1 else far)
        indices.append(min(max(k, 0), size - 1))
    return indices, weights


def interpolate_positions(stored: np.ndarray, grid: tuple[int, int], offset: float) -> np.ndarray:
    """Positions (side, side, C) at another grid; ``offset`` is DINO's 0.1 on the scale, else 0."""
    side = stored.shape[0]
    out = np.zeros((*grid, stored.shape[-1]))
    for i in range(grid[0]):
        rows, row_weights = cubic_taps((i + 0.5) * side / (grid[0] + offset) - 0.5, side)
        for j in range(grid[1]):
            columns, column_weights = cubic_taps((j + 0.5) * side / (grid[1] + offset) - 0.5, side)
            for r, u in zip(rows, row_weights, strict=True):
                for c, v in zip(columns, column_weights, strict=True):
                    out[i, j] += u * v * stored[r, c]
    return out


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def block(x: np.ndarray, p: Params, name: str, heads: int, eps: float, act, keys: np.ndarray) -> np.ndarray:
    """One pre-norm block on tokens (T, C); ``keys`` (T,) bool says which tokens may be attended to."""

    def dense(y: np.ndarray, layer: str) -> np.ndarray:
        return y @ p[f"{name}.{layer}.kernel"] + p.get(f"{name}.{layer}.bias", 0.0)

    y = layer_norm(x, p[f"{name}.norm1.scale"], p[f"{name}.norm1.bias"], eps)
    q, k, v = np.split(dense(y, "qkv"), 3, axis=-1)
    size = x.shape[-1] // heads
    mixed = np.zeros_like(q)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        logits = q[:, part] @ k[:, part].T / math.sqrt(size)
        logits[:, ~keys] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
    x = x + dense(mixed, "out") * p.get(f"{name}.scale1", 1.0)
    y = layer_norm(x, p[f"{name}.norm2.scale"], p[f"{name}.norm2.bias"], eps)
    return x + dense(act(dense(y, "fc1")), "fc2") * p.get(f"{name}.scale2", 1.0)


def features(
    p: Params, image: np.ndarray, spec, taps, final_norm: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """Patch tokens of the tapped blocks and the class token, of one image (H, W, 3) in [0, 1]."""
    image = (image - np.array(spec.mean)) / np.array(spec.std)
    size = spec.patch_size
    h, w = image.shape[0] // size, image.shape[1] // size
    stored = p["positions"][1:].reshape(spec.grid, spec.grid, -1)
    offset = 0.1 if spec.interpolation == "dino" else 0.0
    places = stored if (h, w) == (spec.grid,) * 2 else interpolate_positions(stored, (h, w), offset)
    tokens = [p["cls"] + p["positions"][0], *p.get("registers", [])]
    for i in range(h):
        for j in range(w):
            patch = image[i * size : (i + 1) * size, j * size : (j + 1) * size].reshape(-1)
            tokens.append(patch @ p["patch.kernel"] + p.get("patch.bias", 0.0) + places[i, j])
    x = np.stack(tokens)
    if spec.pre_norm:
        x = layer_norm(x, p["pre_norm.scale"], p["pre_norm.bias"], spec.eps)
    act = {"gelu": gelu, "quick_gelu": quick_gelu}[spec.activation]
    seen = {}
    for i in range(spec.depth):
        x = block(x, p, f"block_{i}", spec.heads, spec.eps, act, np.ones(len(x), bool))
        normed = layer_norm(x, p["norm.scale"], p["norm.bias"], spec.eps)
        seen[i] = normed if final_norm else x
    token = normed[0] @ p["projection.kernel"] if spec.projection else normed[0]
    return [seen[i][1 + spec.registers :] for i in taps], token
