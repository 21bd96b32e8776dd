"""How far one sample is from all others: their features at once where they fit, else a block at a time.

Either way the products are those that the pipeline forms, in the same tiles, so that both ways agree to the
bit where their tiles are of one size.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import pipeline, scoring, streaming
from muscjax.config import Config
from muscjax.distances import Samples, inside_tile
from muscjax.errors import InputError
from muscjax.extract import SAMPLE_BUCKET, pad_samples
from muscjax.geometry import bucket_size
from muscjax.streaming import Walk
from muscjax.types import Array, Features

_KERNEL = ("tile", "precision", "implementation", "refine", "window")


def plan_of(features: Features, config: Config) -> tuple[int, scoring.Plan | Walk]:
    """The number of samples padded to its bucket, and how ``pipeline.score`` walks them.

    Raises:
        InputError: a memory budget that cannot hold the rows of one sample.
    """
    try:
        return pipeline.plan_of(features, config)
    except InputError:  # what else it refuses, ``walk_of`` refuses too
        size = bucket_size(pipeline.count_of(features), minimum=SAMPLE_BUCKET)
        shapes = [x.shape[2:] for x in pipeline.features_of(features) if x is not None]
        budget = config.run.memory_budget
        tile_bytes = pipeline.tile_bytes(budget)
        return size, streaming.walk_of(size, shapes, memory_budget=budget, tile_bytes=tile_bytes)


def distances(
    stage: Any,
    valid: np.ndarray | None,
    cells: np.ndarray | None,
    sample: int,
    *,
    size: int,
    plan: scoring.Plan | Walk,
    kernel: dict[str, Any],
) -> Array | np.ndarray:
    """(M, size) float32: from each patch of the sample to the nearest of every sample (Eq. 8).

    What stands for the sample itself and behind the last one does not count.

    Args:
        stage: (N, M, C), an array or a ``streaming.Stage``. valid, cells: (size, M), (size, M, 2) or None.
        kernel: keywords of ``distances.meet``.
    """
    settings = {**kernel, "tile": plan.tile}
    if isinstance(plan, scoring.Plan):
        whole = pad_samples(streaming.whole(stage), size)
        return _at_once(whole, jnp.asarray(sample, jnp.int32), valid=valid, cells=cells, **settings)

    def read(start: int, count: int) -> Samples:
        own, *beside = (
            None if x is None else pad_samples(x[start : start + count], count) for x in (stage, valid, cells)
        )
        return Samples(own, *beside)  # pyright: ignore[reportArgumentType] (on the host)

    found = np.full((stage.shape[1], size), np.inf, np.float32)
    first = sample - sample % plan.tile
    own, at = read(first, plan.tile), jnp.asarray(sample - first, jnp.int32)
    for start in range(0, len(stage), plan.references):
        met = np.asarray(_met(own, read(start, plan.references), at, **settings))
        found[:, start : start + plan.references] = met[:, : size - start]
    inside = np.asarray(_inside(own, at, **kernel))
    found[:, first : first + plan.tile] = inside[:, : size - first]
    return found


@functools.partial(jax.jit, static_argnames=_KERNEL)
def _at_once(features: Array, sample: Array, **settings: Any) -> Array:
    return scoring.sample_distances(features, sample, **settings)


@functools.partial(jax.jit, static_argnames=_KERNEL)
def _met(own: Samples, references: Samples, at: Array, **settings: Any) -> Array:
    """(M, R): of the tile ``own``, the rows of number ``at``."""
    found = scoring.min_distances(
        own.features,
        references.features,
        reference_valid=references.valid,
        query_cells=own.cells,
        reference_cells=references.cells,
        **settings,
    )
    return found[at]


@functools.partial(jax.jit, static_argnames=_KERNEL)
def _inside(own: Samples, at: Array, **kernel: Any) -> Array:
    """(M, T): the same rows within the tile, which another product gives."""
    return jnp.sqrt(inside_tile(own, kernel))[at]
