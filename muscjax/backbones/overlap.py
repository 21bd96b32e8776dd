"""An image network used more densely: patches every half side, and several depths joined into one token.

A patch grid sees a small defect well only where it lies well inside of a patch. Four passes over the image,
shifted by half a patch, put a patch every half side; their tokens form one grid, twice as fine, whose cells
tile the image. Early taps pay for it: blocks after the last one are not computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from muscjax.config import NetworkConfig
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
    overlap: bool

    def __call__(self, images: jax.Array) -> jax.Array:
        tokens: Callable[[jax.Array], jax.Array] = self.network
        if self.join:
            tokens = partial(joined, self.network)
        if not self.overlap:
            return tokens(images)
        return overlapping(tokens, images, patch_size=self.patch_size)


def configured(network: Any, config: NetworkConfig) -> Any:
    """A registered network used as ``config`` says; the network itself where that is as it always was."""
    if config.depths:
        depth = network.spec.depth
        taps = sorted({max(round(share * depth), 1) - 1 for share in config.depths})
        network = dataclasses.replace(network, taps=tuple(taps))
    if not (config.join or config.overlap):
        return network
    return Overlapping(network, network.spec.patch_size, network.image_size, config.join, config.overlap)


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
    _, height, width, _ = images.shape
    h, w = height // patch_size, width // patch_size
    half = patch_size // 2
    before = (half // 2, half - half // 2)
    padded = jnp.pad(images, ((0, 0), before, before, (0, 0)), mode="edge")
    starts = jnp.asarray([(y, x) for y in (0, half) for x in (0, half)], jnp.int32)

    def one(start: jax.Array) -> jax.Array:
        size = (images.shape[0], height, width, images.shape[3])
        zero = jnp.int32(0)
        return network(lax.dynamic_slice(padded, (zero, start[0], start[1], zero), size))

    found = lax.map(one, starts)  # (4, S, B, M, C)
    stages, batch, _, channels = found.shape[1:]
    grid = found.reshape(2, 2, stages, batch, h, w, channels)
    return grid.transpose(2, 3, 4, 0, 5, 1, 6).reshape(stages, batch, 4 * h * w, channels)
