"""An image network used more densely: patches every half side, and several depths joined into one token.

A patch grid sees a small defect well only where it lies well inside of a patch. Four passes over the image,
shifted by half a patch, put a patch every half side; their tokens form one grid, twice as fine, whose cells
tile the image. Two passes, the second shifted both ways, give every second of these patches, a quincunx, at a
quarter of the products. Early taps pay for it: blocks after the last one are not computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from muscjax.config import Config, NetworkConfig
from muscjax.errors import InputError
from muscjax.snamd import l2_normalise


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["network"],
    meta_fields=["patch_size", "image_size", "join", "overlap"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Overlapping:
    """``backbone(images (B, H, W, 3)) -> tokens (S, B, M, C)`` made of another one; a pytree like it."""

    network: Any
    patch_size: int
    image_size: int
    join: bool
    overlap: Literal["none", "quincunx", "full"]

    def __call__(self, images: jax.Array) -> jax.Array:
        tokens: Callable[[jax.Array], jax.Array] = self.network
        if self.join:
            tokens = partial(joined, self.network)
        if self.overlap == "none":
            return tokens(images)
        form = quincunx if self.overlap == "quincunx" else overlapping
        return form(tokens, images, patch_size=self.patch_size)

    def patch_grid(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patches of an image: of a quincunx, twice as many rows of bricks."""
        h, w = (size // self.patch_size for size in image_hw)
        down, across = {"none": (1, 1), "quincunx": (2, 1), "full": (2, 2)}[self.overlap]
        return down * h, across * w


def configured(network: Any, config: NetworkConfig) -> Any:
    """A registered network used as ``config`` says; the network itself where that is as it always was."""
    if config.depths:
        depth = network.spec.depth
        taps = sorted({max(round(share * depth), 1) - 1 for share in config.depths})
        network = dataclasses.replace(network, taps=tuple(taps))
    if not config.join and config.overlap == "none":
        return network
    assert config.overlap != "auto", "resolved by `resolved`"
    return Overlapping(network, network.spec.patch_size, network.image_size, config.join, config.overlap)


def resolved(config: Config, kinds: Collection[str]) -> Config:
    """The configuration with ``network.overlap`` decided, and the cells of its maps with it.

    kinds: of the runs that use an image network. Points cost several times what images do, so beside them the
    finest form is cheap; alone it would cost three times what the released procedure does.

    Raises:
      InputError: cells of a quincunx without one.
    """
    overlap = config.network.overlap if kinds else "none"
    if overlap == "auto":
        overlap = "quincunx" if set(kinds) == {"image"} else "full"
    if config.maps.cells == "bricks" and overlap != "quincunx":
        raise InputError("maps.cells: found bricks, which belong to network.overlap=quincunx of images")
    cells = "bricks" if overlap == "quincunx" else config.maps.cells
    return dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, overlap=overlap),
        maps=dataclasses.replace(config.maps, cells=cells),
    )


def joined(network: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """The mean of a network's unit tokens over its stages: (B, H, W, 3) -> (1, B, M, C).

    Unit tokens, so that no depth outweighs the others by the size of its numbers. One stage to score where
    there were several, and a patch must find one neighbour that is like it at every depth.
    """
    return jnp.mean(l2_normalise(network(images)), axis=0, keepdims=True)


def overlapping(
    network: Callable[[jax.Array], jax.Array], images: jax.Array, *, patch_size: int
) -> jax.Array:
    """Tokens of patches every half side, row by row of a grid twice as fine: (B, H, W, 3) -> (S, B, 4·M, C).

    The images are extended by a quarter of a patch on each side (edges repeated; of an odd half patch one
    side gets the pixel more), so that the grid's cells, half a patch wide, tile the image.

    Args:
      network: (B, H, W, 3) -> (S, B, M, C).
      images: sides that are multiples of ``patch_size``.
    """
    found = _passes(network, images, ((0, 0), (0, 1), (1, 0), (1, 1)), patch_size=patch_size)
    stages, batch, h, w, channels = found.shape[1:]
    grid = found.reshape(2, 2, stages, batch, h, w, channels)
    return grid.transpose(2, 3, 4, 0, 5, 1, 6).reshape(stages, batch, 4 * h * w, channels)


def quincunx(network: Callable[[jax.Array], jax.Array], images: jax.Array, *, patch_size: int) -> jax.Array:
    """Every second token of ``overlapping``, those whose row and column are both even or both odd.

    (B, H, W, 3) -> (S, B, 2·M, C), row by row of a grid of 2·h rows and w columns. Its cells, a patch wide
    and half a patch high, tile the image, and each holds the middle of its patch: a quarter of a patch left
    of the cell's own in even rows, right in odd ones, as bricks lie in a wall. Arguments as there.
    """
    found = _passes(network, images, ((0, 0), (1, 1)), patch_size=patch_size)
    stages, batch, h, w, channels = found.shape[1:]
    return jnp.moveaxis(found, 0, 3).reshape(stages, batch, 2 * h * w, channels)


def _passes(
    network: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    shifts: Sequence[tuple[int, int]],
    *,
    patch_size: int,
) -> jax.Array:
    """(P, S, B, h, w, C) tokens of the images moved by these many half patches down and across."""
    _, height, width, _ = images.shape
    half = patch_size // 2
    before = (half // 2, half - half // 2)
    padded = jnp.pad(images, ((0, 0), before, before, (0, 0)), mode="edge")

    def one(start: jax.Array) -> jax.Array:
        size = (images.shape[0], height, width, images.shape[3])
        zero = jnp.int32(0)
        return network(lax.dynamic_slice(padded, (zero, start[0], start[1], zero), size))

    found = lax.map(one, half * jnp.asarray(shifts, jnp.int32))  # (P, S, B, M, C)
    h, w = height // patch_size, width // patch_size
    return found.reshape(*found.shape[:3], h, w, found.shape[-1])
