"""What the preset does not do, for ``benchmarks.directions``: other tokens, tiles, other nearest patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax import cae, pipeline, rows
from muscjax.config import Config
from muscjax.pipeline import AVERAGES, Extracted
from muscjax.snamd import l2_normalise
from muscjax.stages import score_stage
from muscjax.totals import add_part, count_of, features_of, patch_scores
from muscjax.types import Array, PatchScores

QUARTERS = (1, 2, 3)  # turns of the references, beside the unturned ones


def whitened(tokens: np.ndarray, power: float = 0.5) -> np.ndarray:
    """Channels turned to the set's principal axes and divided by their deviation to this power."""
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    variance, axes = np.linalg.eigh(centred.T @ centred / len(flat))
    scale = np.maximum(variance, 1e-8 * variance[-1]) ** (-power / 2)
    return (centred @ axes * scale).reshape(tokens.shape).astype(np.float32)


def centred(tokens: np.ndarray) -> np.ndarray:
    """Unit tokens less the set's mean token."""
    moved = tokens - tokens.mean(axis=(1, 2), keepdims=True)
    return np.asarray(l2_normalise(jnp.asarray(moved)))


def placed(tokens: np.ndarray, weight: float = 0.4) -> np.ndarray:
    """With the patch's place in the picture beside the token."""
    side = round(tokens.shape[2] ** 0.5)
    line = (np.arange(side) + 0.5) * (2 / side) - 1
    place = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2) * weight
    shape = (*tokens.shape[:3], 2)
    return np.concatenate([tokens, np.broadcast_to(place, shape).astype(np.float32)], axis=-1)


@partial(jax.tree_util.register_dataclass, data_fields=["network"], meta_fields=["tile", "patch_size"])
@dataclasses.dataclass(frozen=True, eq=False)
class Tiled:
    """An image network over pictures twice as large, in tiles of its own size that overlap by half.

    (B, 2·tile, 2·tile, 3) -> (S, B, 4·M, C): nine passes; where tiles overlap, the mean of their tokens.
    """

    network: Any
    tile: int
    patch_size: int

    def __call__(self, images: jax.Array) -> jax.Array:
        side = self.tile // self.patch_size
        line = (0, side // 2, side)
        starts = [np.asarray((row, column)) for row in line for column in line]

        def one(start: jax.Array) -> jax.Array:
            first = start * self.patch_size
            size = (*images.shape[:1], self.tile, self.tile, images.shape[3])
            return self.network(lax.dynamic_slice(images, (0, first[0], first[1], 0), size))

        found = lax.map(one, jnp.asarray(starts, jnp.int32))
        found = found.reshape(*found.shape[:3], side, side, found.shape[-1])
        total = jnp.zeros((*found.shape[1:3], 2 * side, 2 * side, found.shape[-1]), found.dtype)
        count = np.zeros((2 * side, 2 * side, 1), np.float32)
        for number, (row, column) in enumerate(starts):
            total = total.at[:, :, row : row + side, column : column + side].add(found[number])
            count[row : row + side, column : column + side] += 1
        mean = total / count[None, None]
        return mean.reshape(*mean.shape[:2], 4 * side * side, mean.shape[-1])


def enlarged(images: Any, side: int) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, side, side, 3) uint8, by cubic interpolation."""
    resize = jax.jit(lambda image: jax.image.resize(image, (side, side, 3), "cubic"))
    found = [resize(np.asarray(image, np.float32)) for image in images]
    return np.stack([np.clip(np.rint(image), 0, 255).astype(np.uint8) for image in found])


def turned(images: Any, extract: Callable[[np.ndarray], Extracted]) -> np.ndarray:
    """Features of the pictures after each of ``QUARTERS``, their patches in one row: (S, N, 3·M, C)."""
    pictures = np.asarray(images)
    found = [extract(np.ascontiguousarray(np.rot90(pictures, k, axes=(1, 2)))) for k in QUARTERS]
    return np.concatenate([np.asarray(one.features.image) for one in found], axis=2)


@partial(jax.jit, static_argnames="nearest")
def distances(queries: Array, references: Array, valid: Array | None, *, nearest: int) -> jax.Array:
    """To the ``nearest``-th nearest patch in every sample; patches at equal distances count as one.

    Args:
      queries: (N, M, C) float32. references: (N, R, C) float32. valid: (N, R) bool or None.

    Returns:
      (N, M, N) float32.
    """
    queries, references = jnp.asarray(queries), jnp.asarray(references)
    own, lengths = (jnp.sum(x * x, axis=2) for x in (queries, references))
    lengths = lengths if valid is None else jnp.where(valid, lengths, jnp.inf)

    exact = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def to_one(query: jax.Array, length: jax.Array, reference: jax.Array, squared: jax.Array) -> jax.Array:
        table = length[:, None] + squared[None] - 2 * exact(query, reference.T)
        least = jnp.min(table, axis=1)
        for _ in range(nearest - 1):
            table = jnp.where(table <= least[:, None], jnp.inf, table)
            least = jnp.min(table, axis=1)
        return jnp.sqrt(jnp.maximum(least, 0))

    def row(of: tuple[jax.Array, jax.Array]) -> jax.Array:
        return lax.map(lambda other: to_one(*of, *other), (references, lengths))

    return jnp.swapaxes(lax.map(row, (queries, own)), 1, 2)


def score(extracted: Extracted, config: Config, *, nearest: int, beside: np.ndarray | None) -> PatchScores:
    """``pipeline.score`` with other distances.

    nearest: which of the nearest patches counts. beside: (S, N, R, C), further reference patches of the
    images, or None.
    """
    features, groups = extracted.features, extracted.groups
    _, plan = pipeline.plan_of(features, config)
    given = features_of(features)
    n = count_of(features)
    references: tuple[Any, Any] = given
    if beside is not None:
        references = (np.concatenate([np.asarray(features.image), beside], axis=2), features.points)
    masks = (None, None if groups is None else groups.valid)
    entries, totals = rows.paired_entries(features), [None, None]
    for pair in entries:
        sides = [None if x is None else jnp.asarray(x[entry]) for x, entry in zip(given, pair, strict=True)]
        known = tuple(
            None if x is None else distances(x, reference[entry], mask, nearest=nearest)
            for x, reference, entry, mask in zip(sides, references, pair, masks, strict=True)
        )
        found = score_stage(
            *sides,
            groups,
            jnp.asarray(n, jnp.int32),
            plan=plan,
            known=known,
            scoring_config=config.scoring,
            cae_config=config.cae,
            grid_hw=extracted.grid_hw,
            map_hw=extracted.map_hw,
            fuse=cae.enhance,
            average=AVERAGES[config.scoring.average],
        )
        add_part(totals, found, n, len(entries))
    return patch_scores(features, totals)
