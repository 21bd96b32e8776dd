"""Every stage as a plain ``jnp`` expression, straight from the equations: what results are checked against.

None of it is fast and none of it is shared with the package. Arguments are those of the stage that
``muscjax.profile.stages.stage_of`` makes; configuration is the released one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


def pair_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """(M, C), (L, C) to Euclidean distances (M, L), float32."""
    squared = jnp.sum(x * x, axis=-1)[:, None] + jnp.sum(y * y, axis=-1)[None]
    return jnp.sqrt(jnp.maximum(squared - 2 * jnp.matmul(x, y.T, precision=HIGHEST), 0))


def all_distances(features: jax.Array) -> jax.Array:
    """(N, M, C) to (N, M, N - 1): one product for every ordered pair."""
    n = len(features)
    nearest = jax.jit(lambda x, y: jnp.min(pair_distances(x, y), axis=1))
    rows = [[nearest(features[i], features[j]) for j in range(n) if j != i] for i in range(n)]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows])


def average(distances: jax.Array, fraction: float = 0.3) -> jax.Array:
    k = max(1, int(fraction * distances.shape[-1]))
    return jnp.mean(jnp.sort(distances, axis=-1)[..., :k], axis=-1)


def scoring(features: jax.Array) -> jax.Array:
    return average(all_distances(features))


def rank_match(target: jax.Array, source: jax.Array) -> jax.Array:
    order = jnp.argsort(target, stable=True)
    return jnp.zeros_like(target).at[order].set(jnp.sort(source))


def enhance(image: np.ndarray, points: np.ndarray, patch: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """One sample's (M, R) and (G, R), section III-C as released; every group and reference counts."""
    to_image = np.zeros_like(image)
    for m in np.unique(patch):
        to_image[m] = points[patch == m].mean(axis=0)
    return fuse(image, to_image), fuse(points, image[patch])


def fuse(own: np.ndarray, cross: np.ndarray) -> jax.Array:
    spread = jnp.std(jnp.asarray(own), axis=1, ddof=1)
    confidence = 1 - rank_match(jnp.std(jnp.asarray(cross), axis=1, ddof=1), spread)
    reached = np.flatnonzero(cross.sum(axis=1) != 0)
    ours = jnp.asarray(own)[reached]
    matched = rank_match(jnp.asarray(cross)[reached].reshape(-1), ours.reshape(-1)).reshape(ours.shape)
    rescaled = jnp.asarray(cross).at[reached].set(matched)
    strong = confidence[:, None] * jnp.maximum(jnp.asarray(own), rescaled)
    ranked = rank_match(strong.reshape(-1), jnp.asarray(own).reshape(-1)).reshape(own.shape)
    return (jnp.asarray(own) + ranked) / 2


def cae(image: jax.Array, points: jax.Array, patch: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Features (N, M, C), (N, G, C') and the patch of each centre (N, G) to both patch scores."""
    rows = np.asarray(all_distances(image)), np.asarray(all_distances(points))
    fused = [enhance(a, p, where) for a, p, where in zip(*rows, patch, strict=True)]
    return tuple(jnp.stack([average(pair[side]) for pair in fused]) for side in (0, 1))  # type: ignore


def grouping(points: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """(P, 3) to the centres' indices (G,) and the groups (G, K), each group ascending."""
    x = np.asarray(points, np.float32)
    allowed = (x * x).sum(1) > 1e-3 if config.skip_origin else np.ones(len(x), bool)
    nearest, picks = np.where(allowed, np.float32(np.inf), np.float32(-1)), [0]
    for _ in range(config.groups - 1):
        nearest = np.minimum(nearest, ((x - x[picks[-1]]) ** 2).sum(1))
        picks.append(int(np.argmax(nearest)))
    k, first = config.group_size, config.initial_size
    groups = []
    for center in x[picks]:
        squared = ((x - center) ** 2).sum(1)
        near = np.argsort(squared, kind="stable")[: 2 * k]
        groups.append(np.sort(_group(x, center, near, k, first, config.curvature_threshold)))
    return np.asarray(picks), np.stack(groups)


def _group(x: np.ndarray, center: np.ndarray, near: np.ndarray, k: int, first: int, threshold: float):
    offsets = x[near[1:k]] - center
    values = np.linalg.eigvalsh(np.cov((offsets / np.linalg.norm(offsets, axis=1).max()).T))
    if np.float32(values[0] / (values.sum() + 1e-8)) < np.float32(threshold):
        return near[:k]
    members = near[:first]
    while len(members) < k:
        support = np.setdiff1d(near, members, assume_unique=False)
        support = near[np.isin(near, support)]
        apart = ((x[members][:, None] - x[support][None]) ** 2).sum(-1).ravel()
        picked = np.argsort(apart, kind="stable")[: min(first, k - len(members))]
        members = np.concatenate([support[picked % len(support)], members])
    return members


def pool_grid(tokens: jax.Array, degrees: tuple[int, ...] = (1, 3, 5)) -> jax.Array:
    """(h, w, C) to (h·w, C) through the whole neighbourhood (r·r, h, w, C) of every degree."""
    h, w, c = tokens.shape
    found = []
    for r in degrees:
        padded = jnp.pad(tokens, ((r // 2, r // 2), (r // 2, r // 2), (0, 0)))
        window = jnp.stack([padded[y : y + h, x : x + w] for y in range(r) for x in range(r)])
        weight = jnp.exp(-jnp.sqrt(jnp.sum((window - tokens[None]) ** 2, axis=-1)))
        found.append(jnp.sum(weight[..., None] * window, axis=0) / jnp.sum(weight, axis=0)[..., None])
    pooled = sum(found[1:], found[0]) / len(degrees)
    return (pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)).reshape(h * w, c)


def pool_groups(
    tokens: jax.Array, centers: np.ndarray, curved: np.ndarray, degrees: tuple[int, ...] = (1, 3, 5)
) -> jax.Array:
    """(G, C) to (G, C); C counts in three equal parts."""
    unit = tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    apart = ((centers[:, None] - centers[None]) ** 2).sum(-1)
    np.fill_diagonal(apart, -1)
    order = np.argsort(apart, axis=1, kind="stable")
    found = []
    for r in degrees:
        window = unit[order[:, :r]]  # (G, r, C)
        weight = jnp.exp(-jnp.sqrt(jnp.sum((window - unit[:, None]) ** 2, axis=-1)))
        found.append(jnp.sum(weight[..., None] * window, axis=1) / jnp.sum(weight, axis=1)[:, None])
    joined = jnp.concatenate(found, axis=-1)
    pooled = jnp.mean(joined.reshape(*tokens.shape, len(degrees)), axis=-1)
    return jnp.where(jnp.asarray(curved)[:, None], unit, pooled)


def interpolate(scores: jax.Array, centers: jax.Array, points: jax.Array) -> jax.Array:
    """Whole distances (P, G), sorted; the three nearest."""
    squared = jnp.sum((points[:, None] - centers[None]) ** 2, axis=-1)
    order = jnp.argsort(squared, axis=1, stable=True)[:, :3]
    weight = 1 / (jnp.take_along_axis(squared, order, axis=1) + 1e-8)
    return jnp.sum(weight * scores[order], axis=1) / jnp.sum(weight, axis=1)


def _dense(x: jax.Array, params: Any) -> jax.Array:
    y = jnp.matmul(x, params["kernel"], precision=HIGHEST)
    return y + params["bias"] if "bias" in params else y


def _norm(x: jax.Array, params: Any, eps: float) -> jax.Array:
    mean, var = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + eps) * params["scale"] + params["bias"]


def _block(x: jax.Array, params: Any, heads: int, eps: float, activation: Any) -> jax.Array:
    b, t, c = x.shape
    qkv = _dense(_norm(x, params["norm1"], eps), params["qkv"]).reshape(b, t, 3, heads, c // heads)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("bihd,bjhd->bhij", q, k, precision=HIGHEST) / jnp.sqrt(jnp.float32(c // heads))
    mixed = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores, axis=-1), v, precision=HIGHEST)
    x = x + _dense(mixed.reshape(b, t, c), params["out"])
    hidden = activation(_dense(_norm(x, params["norm2"], eps), params["fc1"]))
    return x + _dense(hidden, params["fc2"])


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def vit(params: Any, images: jax.Array, spec: Any, positions: jax.Array) -> jax.Array:
    """Tokens (S, B, M, C) of the tapped blocks; ``positions`` (M, C) already fit the image."""
    mean, std = (jnp.asarray(v, jnp.float32) for v in (spec.mean, spec.std))
    x = (images.astype(jnp.float32) / 255 - mean) / std
    (b, height, width, _), p = x.shape, spec.patch_size
    h, w = height // p, width // p
    x = jnp.transpose(x.reshape(b, h, p, w, p, 3), (0, 1, 3, 2, 4, 5)).reshape(b, h * w, -1)
    x = _dense(x, params["patch"]) + positions
    first = jnp.broadcast_to(params["cls"] + params["positions"][0], (b, 1, spec.width))
    x = jnp.concatenate([first, x], axis=1)
    if spec.pre_norm:
        x = _norm(x, params["pre_norm"], spec.eps)
    quick = spec.activation == "quick_gelu"
    activation = (lambda v: v * jax.nn.sigmoid(1.702 * v)) if quick else _gelu
    found = []
    for i in range(max(spec.taps) + 1):
        x = _block(x, params[f"block_{i}"], spec.heads, spec.eps, activation)
        if i in spec.taps:
            tapped = _norm(x, params["norm"], spec.eps) if spec.final_norm else x
            found.append(tapped[:, 1:])
    return jnp.stack(found)


def point_mae(params: Any, neighbourhood: jax.Array, centers: jax.Array, spec: Any) -> jax.Array:
    """Groups (G, K, 3) relative to their centres (G, 3) to tokens (S, G, C), the layer on
    [global, local] taken whole."""
    encoder = params["encoder"]

    def norm(x: jax.Array, name: str) -> jax.Array:
        p = encoder[name]
        return jax.nn.relu((x - p["mean"]) / jnp.sqrt(p["var"] + spec.eps) * p["scale"] + p["bias"])

    local = _dense(norm(_dense(neighbourhood, encoder["first_1"]), "first_norm"), encoder["first_2"])
    whole = jnp.broadcast_to(jnp.max(local, axis=1, keepdims=True), local.shape)
    second, third = encoder["second_global"], encoder["second_local"]
    kernel = {"kernel": jnp.concatenate([second["kernel"], third["kernel"]]), "bias": second["bias"]}
    hidden = norm(_dense(jnp.concatenate([whole, local], axis=-1), kernel), "second_norm")
    x = jnp.max(_dense(hidden, encoder["second_2"]), axis=1)[None]
    position = _dense(_gelu(_dense(centers, params["position_1"])), params["position_2"])[None]
    found = []
    for i in range(max(spec.taps) + 1):
        x = _block(x + position, params[f"block_{i}"], spec.heads, spec.eps, _gelu)
        if i in spec.taps:
            found.append((_norm(x, params["norm"], spec.eps) if spec.final_norm else x)[0])
    return jnp.stack(found)
