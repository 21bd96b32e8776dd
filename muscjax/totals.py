"""From the patch scores of stages to those of the set: sums over stages, and what is taken at their peaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import streaming
from muscjax.extract import pad_samples
from muscjax.types import Array, Features, PatchScores, PointGroups


def pad_groups(groups: PointGroups | None, size: int) -> PointGroups | None:
    """Up to ``size`` samples, without members: by far the largest field, which scoring does not read."""
    if groups is None:
        return None
    small = dataclasses.replace(groups, indices=groups.indices[:, :, :0])
    return jax.tree.map(lambda leaf: pad_samples(np.asarray(leaf), size), small)


def on_host(found: Sequence[Array | None], n: int) -> list[np.ndarray | None]:
    """The first n samples, dealt or not; a slice on the device would compile for every n."""
    return [None if x is None else np.asarray(x).reshape(-1, x.shape[-1])[:n] for x in found]


def add_part(totals: list[Any], found: Sequence[Array | np.ndarray | None], n: int, parts: int) -> None:
    """Add one of ``parts`` equal shares of a mean to ``totals``, for each modality that is there."""
    for side, scores in enumerate(found):
        if scores is not None:  # on the host: a slice of n samples on the device would compile for every n
            part = np.asarray(scores)[:n] / np.float32(parts)
            totals[side] = part if totals[side] is None else totals[side] + part


def patch_scores(features: Features, totals: Sequence[Any]) -> PatchScores:
    """The stage means (N, M), (N, G) with the features of their highest patches."""
    salient = [
        _salient(x, levels, total)
        for x, levels, total in zip(features_of(features), features.levels, totals, strict=True)
        if x is not None
    ]
    image, points = (None if total is None else jnp.asarray(total) for total in totals)
    return PatchScores(image, points, jnp.asarray(np.concatenate(salient, axis=1)))


def _salient(features: Any, levels: int, scores: np.ndarray) -> np.ndarray:
    """(N, C) of the second-last tapped block at each sample's highest patch; the mean of its levels."""
    start = max(len(features) - 2 * levels, 0)
    chosen = [streaming.chosen_rows(x, np.argmax(scores, axis=1)) for x in features[start : start + levels]]
    return chosen[0] if levels == 1 else np.mean(chosen, axis=0)


def features_of(features: Features) -> tuple[Any, Any]:
    """Both modalities, each an array or None."""
    return features.image, features.points


def count_of(features: Features) -> int:
    """N, the number of samples."""
    return next(x for x in features_of(features) if x is not None).shape[1]
