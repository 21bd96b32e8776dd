"""Where a pixel of the original image lies: working pixel, image patch, point and group centres."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from muscjax import maps
from muscjax.errors import InputError
from muscjax.types import Cloud, Frame, PointGroups

_NOTHING = (None, np.zeros(0, np.int32), np.zeros(0, np.float32))  # no point, no centres, no shares
Box = tuple[float, float, float, float]  # top, left, bottom, right, in pixels; edges, not centres


@dataclasses.dataclass(frozen=True)
class Place:
    """One pixel in every grid of the method."""

    source_yx: tuple[int, int]  # pixel of the original image
    working_yx: tuple[int, int]  # pixel of the map
    grid_hw: tuple[int, int] | None  # of the image patches; None without image features
    patch: int | None  # flat image patch that holds the pixel
    patch_box: Box | None  # its cell in the original image
    point: int | None  # row of the cloud at the pixel; None on the background
    groups: np.ndarray  # (k,) int32, the nearest group centres, the nearest first; empty on the background
    group_weights: np.ndarray  # (k,) float32, their shares in the interpolation; they add up to 1
    group_box: Box | None  # the extent of the nearest group in the original image
    group_yx: np.ndarray  # (k, 2) int32, pixels of the centres in the original image

    @property
    def group(self) -> int | None:
        """The nearest group."""
        return int(self.groups[0]) if len(self.groups) else None


def locate(
    pixel_yx: tuple[int, int],
    frame: Frame,
    *,
    grid_hw: tuple[int, int] | None,
    cloud: Cloud | None,
    groups: PointGroups | None,
    neighbours: int,
    scores: np.ndarray | None = None,
    working_yx: tuple[int, int] | None = None,
) -> Place:
    """The place of one pixel of the original image in one sample.

    cloud, groups: of that sample, host arrays. neighbours: centres in the interpolation.
    scores: (G,) of the groups, by which the point is chosen where several lie in one pixel; None: the first.
    working_yx: the map's pixel, where that is what was looked for; of those that share one pixel of the
        original image, None takes the one that holds its centre.
    Raises InputError where the pixel lies outside of the image or of the part that was used.
    """
    working = to_working(frame, pixel_yx) if working_yx is None else working_yx
    patch = box = None
    if grid_hw is not None:
        (height, width), (h, w) = frame.working_hw, grid_hw
        row, column = working[0] * h // height, working[1] * w // width
        patch, box = row * w + column, patch_box(frame, grid_hw, row * w + column)
    point, near, weights = _NOTHING
    if cloud is not None and groups is not None:
        flat = working[0] * frame.working_hw[1] + working[1]
        point, near, weights = _shown(flat, cloud, groups, neighbours, scores)
    centres, extent = np.zeros((0, 2), np.int32), None
    if cloud is not None and groups is not None and len(near):
        extent = group_box(frame, cloud, groups, int(near[0]))
        centres = np.stack([centre_yx(frame, int(p)) for p in np.asarray(groups.pixel)[near]])
    return Place(pixel_yx, working, grid_hw, patch, box, point, near, weights, extent, centres)


def _shown(
    flat: int, cloud: Cloud, groups: PointGroups, neighbours: int, scores: np.ndarray | None
) -> tuple[int | None, np.ndarray, np.ndarray]:
    """The point in a flat working pixel, with its ``nearest_centres``.

    Of several the one with the highest value, which is what the map keeps (``maps.scatter_to_grid``).
    """
    rows = np.flatnonzero(np.asarray(cloud.valid) & (np.asarray(cloud.pixel) == flat)).tolist()
    if not rows:
        return _NOTHING
    mixed = [nearest_centres(np.asarray(cloud.points)[row], groups, neighbours) for row in rows]
    values = [0.0 if scores is None else float(np.sum(share * scores[ids])) for ids, share in mixed]
    best = int(np.argmax(values))
    return rows[best], *mixed[best]


def nearest_centres(point: np.ndarray, groups: PointGroups, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and shares of the centres that ``maps.interpolate_points`` mixes at one point (3,)."""
    squared = np.square(np.asarray(groups.centers) - point).sum(axis=1, dtype=np.float32)
    squared = np.where(np.asarray(groups.valid), squared, np.float32(np.inf))
    near = np.argsort(squared, kind="stable")[:neighbours]
    near = near[np.isfinite(squared[near])].astype(np.int32)
    share = 1 / (squared[near] + np.float32(maps.IDW_EPSILON))
    return near, (share / share.sum(dtype=np.float32)).astype(np.float32)


def _scale(frame: Frame) -> tuple[tuple[float, float], tuple[int, int]]:
    """Source pixels per working pixel, and the used part's corner in source pixels."""
    top, bottom, left, right = frame.pad
    whole = (top + frame.source_hw[0] + bottom, left + frame.source_hw[1] + right)
    y, x, h, w = frame.crop or (0, 0, *whole)
    return (h / frame.working_hw[0], w / frame.working_hw[1]), (y - top, x - left)


def to_working(frame: Frame, pixel_yx: tuple[int, int]) -> tuple[int, int]:
    """The working pixel that holds the centre of a source pixel.

    Raises:
        InputError: outside of the image, or cut away.
    """
    height, width = frame.source_hw
    if not (0 <= pixel_yx[0] < height and 0 <= pixel_yx[1] < width):
        raise InputError(
            f"--at {pixel_yx[0]},{pixel_yx[1]}: outside of the image, expected y,x below {height},{width}"
        )
    found = [
        int((p + 0.5 - corner) // scale) for p, scale, corner in zip(pixel_yx, *_scale(frame), strict=True)
    ]
    if any(not 0 <= p < size for p, size in zip(found, frame.working_hw, strict=True)):
        raise InputError(f"--at {pixel_yx[0]},{pixel_yx[1]}: in a part of the image that was cut away")
    return found[0], found[1]


def to_source(frame: Frame, working_yx: tuple[int, int]) -> tuple[int, int]:
    """The source pixel at the centre of a working pixel, clipped to the source."""
    found = [
        int(np.clip(np.floor((p + 0.5) * scale + corner), 0, size - 1))
        for p, scale, corner, size in zip(working_yx, *_scale(frame), frame.source_hw, strict=True)
    ]
    return found[0], found[1]


def centre_yx(frame: Frame, flat: int) -> np.ndarray:
    """(2,) int32, the source pixel at the centre of a flat working pixel."""
    return np.asarray(to_source(frame, divmod(flat, frame.working_hw[1])), np.int32)


def inside(frame: Frame) -> np.ndarray:
    """(H, W) bool, working pixels whose centres lie in the source, not in its padding."""
    axes = [
        (np.arange(n) + 0.5) * scale + corner
        for n, scale, corner in zip(frame.working_hw, *_scale(frame), strict=True)
    ]
    rows, columns = ((a >= 0) & (a < size) for a, size in zip(axes, frame.source_hw, strict=True))
    return rows[:, None] & columns[None, :]


def box_of(frame: Frame, top: float, left: float, bottom: float, right: float) -> Box:
    """A box given by its edges in working pixels, in source pixels, clipped to the source."""
    (down, across), (y, x) = _scale(frame)
    height, width = frame.source_hw
    edges = (
        np.clip([top * down + y, bottom * down + y], 0, height),
        np.clip([left * across + x, right * across + x], 0, width),
    )
    return float(edges[0][0]), float(edges[1][0]), float(edges[0][1]), float(edges[1][1])


def patch_box(frame: Frame, grid_hw: tuple[int, int], patch: int) -> Box:
    """The cell of a flat image patch in source pixels."""
    row, column = divmod(patch, grid_hw[1])
    down, across = (size / n for size, n in zip(frame.working_hw, grid_hw, strict=True))
    return box_of(frame, row * down, column * across, (row + 1) * down, (column + 1) * across)


def group_box(frame: Frame, cloud: Cloud, groups: PointGroups, group: int) -> Box:
    """The extent of a group's points in source pixels."""
    flat = np.asarray(cloud.pixel)[np.asarray(groups.indices)[group]]
    rows, columns = np.divmod(flat, frame.working_hw[1])
    return box_of(frame, rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


def of_sample(tree: Any, sample: int) -> Any:
    """One sample's leaves of a batched pytree, on the host."""
    import jax

    return None if tree is None else jax.tree.map(lambda leaf: np.asarray(leaf[sample]), tree)


def default_frames(working_hw: tuple[int, int], count: int) -> Sequence[Frame]:
    """Frames of samples whose source is the working grid itself."""
    return (Frame(working_hw, working_hw),) * count
