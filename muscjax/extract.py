"""From scans to pooled features: the backbones and SNAMD over batches, on the host in between."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax import ipg, snamd
from muscjax.config import Config
from muscjax.errors import InputError
from muscjax.types import Array, Cloud, PointGroups

Progress = Callable[[str, int, int], None]  # stage, done, total

CLOUD_BATCH = 4
SAMPLE_BUCKET = 8  # the smallest padded number of samples


@dataclasses.dataclass(frozen=True)
class Bound:
    """A descriptor and its configuration as one callable.

    Two of them are equal where function and configuration are, so a second set of scans finds the programs
    of the first; a ``functools.partial`` made anew would compile anew.
    """

    function: Callable[..., Array]
    config: Any

    def __call__(self, *data: Any) -> Array:
        return self.function(*data, config=self.config)


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that says nothing."""
    del stage, done, total


def _traceable(backbone: Any) -> Any:
    """A callable that jit takes as an argument: parameters stay arguments, a plain function is static."""
    leaves = jax.tree.leaves(backbone)
    if leaves and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
        return backbone
    return jax.tree_util.Partial(backbone)


@functools.partial(jax.jit, static_argnames=("config", "grid_hw", "pool"))
def _image_batch(
    backbone: Any, images: Array, *, config: Any, grid_hw: tuple[int, int] | None, pool: Callable
) -> Array:
    tokens = backbone(images)  # (S, B, M, C)
    batch, m, c = tokens.shape[1:]
    grid_hw = grid_hw or grid_of(m, (images.shape[1], images.shape[2]))
    pooled = lax.map(lambda grid: pool(grid, config), tokens.reshape(-1, *grid_hw, c))
    pooled = pooled.reshape(-1, batch, *pooled.shape[1:])
    return jnp.moveaxis(pooled, 2, 1).reshape(-1, batch, m, c)  # levels of a stage become stages


@functools.partial(jax.jit, static_argnames=("config", "group", "pool"))
def _cloud_batch(backbone: Any, clouds: Cloud, *, config: Any, group: Callable, pool: Callable):
    def one(cloud: Cloud) -> tuple[Array, PointGroups]:
        groups = group(cloud, config[0])
        tokens = backbone(cloud, groups)  # (S, G, C)
        pooled = [pool(stage, groups, config[1], curvature_threshold=config[2]) for stage in tokens]
        return jnp.stack(pooled), groups  # (S, levels, G, C)

    features, groups = lax.map(one, clouds)
    return features, groups


def grid_of(m: int, image_hw: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) patch grid of ``m`` patches over an image of that shape.

    Raises:
        InputError: no grid of that many roughly square patches covers the image.
    """
    pairs = [(h, m // h) for h in range(1, m + 1) if m % h == 0]
    # How oblong a patch would be: the logarithm of its sides' ratio.
    oblong = [abs(math.log(image_hw[0] * w / (image_hw[1] * h))) for h, w in pairs]
    if min(oblong) > math.log(1.5):
        raise InputError(f"{m} patches form no grid over an image of {image_hw[0]}×{image_hw[1]}")
    return pairs[int(np.argmin(oblong))]


def extract_images(
    images: Sequence[Any] | Array,
    backbone: Callable[[Array], Array],
    config: Config,
    *,
    grid_hw: tuple[int, int] | None = None,
    pool: Callable = snamd.pool_grid,
    progress: Progress = silent,
) -> tuple[np.ndarray, int]:
    """Pooled image features of all samples.

    Args:
        images: (N, H, W, 3) uint8 or float32 in [0, 1]; or anything with a length whose slices are such
            arrays, read one batch at a time.
        backbone: (B, H, W, 3) -> (S, B, M, C); a function, or a pytree that is callable.
        grid_hw: the grid of the M patches; None: ``grid_of`` the image's shape.
        pool: the stage that ``snamd.pool_grid`` is.

    Returns:
        (S, N, M, C) float32 on the host, and the levels per stage: every level is a stage of its own.
    """
    backbone, total = _traceable(backbone), len(images)
    first = np.asarray(images[0:1])
    run = functools.partial(_image_batch, backbone, config=config.snamd, grid_hw=grid_hw, pool=pool)
    one = jax.ShapeDtypeStruct((1, *first.shape[1:]), first.dtype)
    shape = jax.eval_shape(run, one).shape
    levels = shape[0] // jax.eval_shape(backbone, one).shape[0]
    # A transformer block holds about four token-sized activations and the attention matrix; sixteen times
    # the tapped output bounds it from above for the networks of the paper.
    batch = int(np.clip(config.run.memory_budget // (64 * int(np.prod(shape))), 1, min(8, total)))
    out = np.empty((shape[0], total, *shape[2:]), np.float32)
    pending: tuple[int, Array] | None = None
    for start in range(0, total, batch):
        chunk = np.asarray(images[start : start + batch])
        count = len(chunk)
        result = run(np.concatenate([chunk, np.repeat(chunk[-1:], batch - count, axis=0)]))
        if pending is not None:  # the device works on this batch while the previous one is stored
            _store(out, *pending)
            progress("image features", pending[0] + batch, total)
        pending = (start, result)
    assert pending is not None
    _store(out, *pending)
    progress("image features", total, total)
    return out, levels


def _store(out: np.ndarray, start: int, result: Array) -> None:
    part = out[:, start : start + result.shape[1]]
    part[...] = np.asarray(result)[:, : part.shape[1]]
    _check_finite("image", part, range(start, start + part.shape[1]))


def _check_finite(kind: str, features: np.ndarray, ids: Sequence[int]) -> None:
    """(S, B, M, C) of the samples ``ids``: a NaN would be nobody's neighbour and look normal."""
    finite = np.isfinite(features).all(axis=(0, 2, 3))
    if not finite.all():
        raise InputError(f"{kind} features of scan {ids[int(np.argmin(finite))]} are not finite")


def extract_points(
    clouds: Sequence[Cloud],
    backbone: Callable[[Cloud, PointGroups], Array],
    config: Config,
    *,
    group: Callable = ipg.group,
    pool: Callable = snamd.pool_groups,
    progress: Progress = silent,
) -> tuple[np.ndarray, int, PointGroups]:
    """Groups and pooled point features of all samples.

    Args:
        clouds: N clouds, each padded to its own bucket.
        backbone: (cloud, groups) -> (S, G, C) for one cloud.
        group, pool: the stages that ``ipg.group`` and ``snamd.pool_groups`` are.

    Returns:
        (S, N, G, C) float32 on the host, the levels per stage, and the groups with a leading axis N.
    """
    backbone, total = _traceable(backbone), len(clouds)
    settings = (config.ipg, config.snamd, config.ipg.curvature_threshold)
    run = functools.partial(_cloud_batch, backbone, config=settings, group=group, pool=pool)
    features: np.ndarray | None = None
    groups: list[Any] = [None] * total
    done, levels = 0, 1
    for ids in batches_by_size(clouds, CLOUD_BATCH):
        padded = ids + ids[-1:] * (CLOUD_BATCH - len(ids))
        found, found_groups = jax.device_get(run(stack([clouds[i] for i in padded])))
        levels = found.shape[2]
        found = np.moveaxis(found.reshape(CLOUD_BATCH, -1, *found.shape[3:]), 0, 1)
        if features is None:
            features = np.empty((found.shape[0], total, *found.shape[2:]), np.float32)
        features[:, ids] = found[:, : len(ids)]
        _check_finite("point", found[:, : len(ids)], ids)
        for position, i in enumerate(ids):
            groups[i] = jax.tree.map(lambda leaf, p=position: leaf[p], found_groups)
        done += len(ids)
        progress("point features", done, total)
    assert features is not None
    return features, levels, stack(groups)


def stack(items: Sequence[Any]) -> Any:
    """Pytrees of equal shape joined along a new leading axis, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def batches_by_size(clouds: Sequence[Cloud], batch: int) -> list[list[int]]:
    """Sample numbers in batches whose clouds have the same padded shapes."""
    shapes: dict[Any, list[int]] = {}
    for i, cloud in enumerate(clouds):
        shapes.setdefault(tuple(leaf.shape for leaf in jax.tree.leaves(cloud)), []).append(i)
    return [ids[k : k + batch] for ids in shapes.values() for k in range(0, len(ids), batch)]


def pad_samples(array: Any, size: int) -> Any:
    """Zeros (False) up to ``size`` samples along the first axis."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
