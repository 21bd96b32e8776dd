"""What an explanation holds: plain arrays, one dataclass per question."""

from __future__ import annotations

import dataclasses

import numpy as np

from muscjax.explain.place import Place


@dataclasses.dataclass(frozen=True)
class Stage:
    """One tapped block's view of one patch (or group): all references, the closest after CAE first."""

    block: int  # of the tapped blocks, from 0
    level: int  # degree within the block, where each is scored apart
    references: np.ndarray  # (R,) int32, sample numbers
    own: np.ndarray  # (R,) float32, distance to the nearest patch of each; inf where it has none (Eq. 8)
    nearest: np.ndarray  # (R,) int32, that patch
    nearest_box: np.ndarray  # (R, 4) float32, top, left, bottom, right in the reference's original image
    final: np.ndarray  # (R,) float32, the distances that are averaged: after CAE, or ``own``
    inside: np.ndarray  # (R,) bool, averaged (Eq. 9)
    confidence: float | None  # λ; None where CAE did nothing
    aligned: np.ndarray | None  # (R,) float32, the other modality's distance at this place (Eq. 10)
    rescaled: np.ndarray | None  # (R,) ``aligned`` on the scale of this modality
    enhanced: np.ndarray | None  # (R,) E = λ · max(own, rescaled) (Eq. 11)
    matched: np.ndarray | None  # (R,) E on the scale of this modality
    score_before: float  # average without CAE
    score: float


@dataclasses.dataclass(frozen=True)
class Side:
    """One modality at the place."""

    row: int  # the patch or group
    stages: tuple[Stage, ...]
    score_before: float  # mean over stages
    score: float
    typical: float  # median score of all scans' groups, or patches that hold a group, to hold it against

    def final(self) -> tuple[np.ndarray, np.ndarray]:
        """References and the mean over stages of their final distances, the closest first."""
        ids = np.sort(self.stages[0].references)
        rows = [stage.final[np.argsort(stage.references)] for stage in self.stages]
        mean = np.mean(rows, axis=0)
        order = np.argsort(mean, kind="stable")
        return ids[order], mean[order]


@dataclasses.dataclass(frozen=True)
class Contributions:
    """The map's value at the place as a sum: ``image`` + ``points`` + ``blur``.

    Where modalities are balanced these are their shares of the value, and the scores below are as they were.
    """

    value: float
    image: float  # of the upsampled grid
    cells: np.ndarray  # (c,) int32, patches that it mixes, 4 at most where it is bilinear
    cell_weights: np.ndarray  # (c,) float32
    cell_scores: np.ndarray  # (c,) float32
    points: float  # of the inverse-distance interpolation; 0 on the background
    group_scores: np.ndarray  # (k,) float32, of ``Place.groups``
    blur: float  # what blurring the 3D map changed


@dataclasses.dataclass(frozen=True)
class ScanScore:
    """The scan's own score: the map's maximum, brought to 0...1 over the set, then mixed by RsCon."""

    rank: int  # by ``pred_score``, 1 is the most anomalous; ties as in scores.csv
    map_max: float
    peak_yx: tuple[int, int]  # of the map, in the original image
    base: float  # what RsCon begins with: ``map_max``, normalised where the configuration says so
    neighbours: (
        np.ndarray
    )  # (K,) int32, scans whose scores are mixed, the most similar first; itself among them
    weights: np.ndarray  # (K,) float32
    scores: np.ndarray  # (K,) float32, theirs, on the scale of ``base``
    pred_score: float
    salient_patch: int | None  # where the feature is taken by which scans are compared
    salient_group: int | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Everything behind one place of one scan."""

    sample: int
    place: Place
    image: Side | None
    points: Side | None
    contributions: Contributions
    scan: ScanScore
    anomaly_map: np.ndarray  # (H, W) float32, of the scan, working size
    notes: tuple[str, ...]  # what a reader has to know, one line each
