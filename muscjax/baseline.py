"""MuSc (Li et al., ICLR 2024), the image-only forerunner, as replacements for two stages of this pipeline.

Its scoring is the one that MuSc-V2 kept (``scoring.interval_average``); what differs is the pooling (LNAMD,
every degree scored apart) and the re-scoring (RsCIN, by the image's class feature).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import rscon, snamd
from muscjax.config import SnamdConfig
from muscjax.types import Array

RSCIN_WINDOWS = (1, 2, 3)  # k; VisA uses 1, 8, 9
_EPS = 1e-5  # of torch.nn.LayerNorm


def layer_norm(tokens: Array) -> Array:
    """(h, w, C) float32 with mean 0 and variance 1 over all its entries, no affine part."""
    centred = tokens - jnp.mean(tokens)
    return centred / jnp.sqrt(jnp.mean(centred * centred) + _EPS)


def pool_grid(tokens: Array, config: SnamdConfig) -> Array:
    """LNAMD: (h, w, C) to one level per degree (degrees, h·w, C), unit norm. A stage for ``pipeline``.

    The image is normalised as a whole, then each r × r window is averaged per channel; cells outside of the
    grid count as zeros. That is what unfolding to C·r² numbers and pooling them to C adaptively amounts to,
    since the bins are exactly the windows of the channels. ``config``: ``degrees`` alone is read.
    """
    config = dataclasses.replace(config, image=True, divide_by="count", zero_padding=True)
    return snamd.pool_grid(
        layer_norm(jnp.asarray(tokens)),
        config,
        weight=snamd.uniform_weight,
        combine=snamd.separate_degrees,
    )


def quarters(depth: int) -> tuple[int, ...]:
    """The last block of each quarter of a network, counted from 0: (5, 11, 17, 23) of 24."""
    return tuple(sorted({max(depth * (i + 1) // 4 - 1, 0) for i in range(4)}))


@dataclasses.dataclass(frozen=True, eq=False)
class Rscin:
    """RsCIN: ``rscon.rescore`` between the images' class features. A stage for ``pipeline.finish``.

    class_features: (N, D), of all scans, in their order.
    """

    class_features: np.ndarray
    windows: tuple[int, ...] = RSCIN_WINDOWS

    def __call__(self, scores: Any, features: Any, *, valid: Any, **of_rscon: Any) -> jax.Array:
        """As ``rscon.rescore``; the salient features and the configured windows are not read."""
        del features, of_rscon
        padded = np.zeros((len(scores), self.class_features.shape[1]), np.float32)
        padded[: len(self.class_features)] = self.class_features
        return rscon.rescore(scores, jnp.asarray(padded), windows=self.windows, normalise=True, valid=valid)
