"""One scan to what the page embeds of it: JPEG pictures, and planes of bytes that the page's script colours.

Choices, measured on rendered scans of 400×400 (a page of 150 has 12.7 MB):

* pictures as JPEG: 20 kB where PNG needs 230, and 27 where the noise of a depth picture costs PNG 114;
* the map once, losslessly, as numbers of 256 levels (15 kB) and not as coloured pictures: both heat
  scales, the overlay and the score under the pointer come from the same bytes, and another scale is free.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import zlib
from collections.abc import Sequence

import numpy as np

from muscjax.colormap import heat_limits
from muscjax.report import cloud

SIDE = 400  # pixels of the longer side of pictures, at most
SMALLEST_SIDE = 160
MAP_SIDE = 256  # maps are smooth: interpolation on the screen is as good as more pixels
FULL_SIZE_SCANS = 150  # above it pictures shrink with the number of scans
_QUALITY = {"image": 85, "depth": 70}


@dataclasses.dataclass(frozen=True)
class ReportScan:
    """What is known of one scan. All arrays show the same field of view; their sizes may differ."""

    name: str  # unique in its category, such as cable_gland/test/bent/000
    anomaly_map: np.ndarray  # (H, W) float32, finite
    score: float
    score_before: float  # before RsCon
    rank: int  # 1 is the most anomalous of its category
    image: np.ndarray | None = None  # (h, w, 3) or (h, w) uint8; None where the scan has only depth
    depth: np.ndarray | None = None  # (h, w) uint8, `muscjax.colormap.depth_picture`
    mask: np.ndarray | None = None  # (H, W), non-zero is defect; None where the truth is unknown
    category: str = ""
    label: int | None = None  # 0 normal, 1 defective, None unknown
    defect: str | None = None  # the kind of defect, where it has a name
    points: np.ndarray | None = None  # (P, 3) float32, metres, camera frame; None where there is no cloud
    places: np.ndarray | None = None  # (P, 2) float32, where the points lie: `muscjax.report.places`
    # Scans of the category whose scores RsCon mixed into this one's, with weights; its own has the rest to 1.
    neighbours: Sequence[tuple[str, float]] = ()
    pred_label: bool | None = None  # what the run called it, None where it did not decide


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture ready for an ``src``."""

    url: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Card:
    """One scan, encoded: some 100 kB of text where the scan had megabytes."""

    name: str
    category: str
    rank: int
    score: float
    score_before: float
    label: int | None
    defect: str | None
    set_limits: tuple[float, float]  # scores of no heat and of full heat, one pair for the category
    scan_limits: tuple[float, float]  # the same for this scan alone
    source_hw: tuple[int, int]  # of the picture, before it was reduced
    peak: tuple[int, int, float]  # y, x in pixels of the source, and the score there
    peak_on_defect: bool | None  # None without a mask, or with an empty one
    image: Picture | None
    depth: Picture | None
    planes: str  # JSON for the script: the map's and the mask's bytes
    has_mask: bool
    cloud: str = ""  # JSON for the script, empty without one
    neighbours: tuple[tuple[str, float], ...] = ()
    pred_label: bool | None = None

    @property
    def size(self) -> int:
        """Bytes in the page, without the markup around them and without the cloud's."""
        return sum(len(p.url) for p in (self.image, self.depth) if p is not None) + len(self.planes)


def picture_side(scans: int) -> int:
    """Pixels of the longer side of pictures, so that the page of so many scans stays about as large."""
    return int(max(SMALLEST_SIDE, SIDE * min(1.0, math.sqrt(FULL_SIZE_SCANS / max(scans, 1)))))


def encode(scan: ReportScan, *, limits: tuple[float, float], side: int = SIDE) -> Card:
    """Everything that the page shows of one scan. Safe to call from threads.

    limits: `muscjax.colormap.heat_limits` of the whole category. side: from `picture_side`.
    Raises ValueError for arrays of another shape or type than `ReportScan` says.
    """
    shown = scan.image if scan.image is not None else scan.depth
    if shown is None:
        raise ValueError(f"{scan.name}: neither a picture nor depth, expected one of them")
    heat = np.asarray(scan.anomaly_map, np.float32)
    if heat.ndim != 2 or not np.isfinite(heat).all():
        raise ValueError(f"{scan.name}: map of shape {heat.shape}, expected two axes of finite numbers")
    mask = None if scan.mask is None else np.asarray(scan.mask) != 0
    if mask is not None and mask.ndim != 2:
        raise ValueError(f"{scan.name}: mask of shape {mask.shape}, expected two axes")
    limits = (float(limits[0]), float(limits[1]))
    own = heat_limits([heat])
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    source_hw = shown.shape[:2]
    map_side = min(side, MAP_SIDE)
    reduced = _reduced(heat, map_side)
    planes: dict[str, object] = {
        "map": _levels(reduced, limits, own),
        "set": limits,
        "scan": own,
        "source": (source_hw[1], source_hw[0]),
    }
    if mask is not None:
        # Any defect pixel counts: a thin scratch must not vanish with the reduction.
        planes["mask"] = _plane(_reduced(mask.astype(np.float32), map_side) > 0.0)
    return Card(
        name=scan.name,
        category=scan.category,
        rank=scan.rank,
        score=float(scan.score),
        score_before=float(scan.score_before),
        label=None if scan.label is None else int(scan.label != 0),
        defect=scan.defect,
        set_limits=limits,
        scan_limits=own,
        source_hw=source_hw,
        peak=(
            _centre(int(y), heat.shape[0], source_hw[0]),
            _centre(int(x), heat.shape[1], source_hw[1]),
            float(heat.max()),
        ),
        peak_on_defect=_on_defect(heat, mask),
        image=None if scan.image is None else _picture(scan.image, side, scan.name, "image"),
        depth=None if scan.depth is None else _picture(scan.depth, side, scan.name, "depth"),
        planes=json.dumps(planes, separators=(",", ":"), allow_nan=False),
        has_mask=mask is not None,
        cloud=_cloud(scan, reduced.shape, side),
        neighbours=_neighbours(scan),
        pred_label=None if scan.pred_label is None else bool(scan.pred_label),
    )


def _cloud(scan: ReportScan, hw: tuple[int, int], side: int) -> str:
    """The cloud's JSON; its points shrink in number as the pictures do in pixels."""
    if scan.points is None or scan.places is None:
        return ""
    points, where = np.asarray(scan.points), np.asarray(scan.places)
    if points.ndim != 2 or points.shape[1] != 3 or where.shape != (len(points), 2):
        raise ValueError(
            f"{scan.name}: points {points.shape} and places {where.shape}, expected (P, 3) and (P, 2)"
        )
    if not (np.isfinite(points).all() and np.isfinite(where).all()):
        raise ValueError(f"{scan.name}: points with NaN or infinity, expected finite numbers")
    return cloud.pack(points, where, hw=hw, count=round(cloud.MAX_POINTS * min(1.0, (side / SIDE) ** 2)))


def _neighbours(scan: ReportScan) -> tuple[tuple[str, float], ...]:
    """The heaviest first."""
    found = [(str(name), float(weight)) for name, weight in scan.neighbours]
    if not all(math.isfinite(weight) for _, weight in found):
        raise ValueError(f"{scan.name}: neighbours with NaN or infinity, expected finite weights")
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def _centre(index: int, length: int, target: int) -> int:
    """The pixel of a line of ``target`` pixels that lies under pixel ``index`` of ``length``."""
    return min(int((index + 0.5) * target / length), target - 1)


def _on_defect(heat: np.ndarray, mask: np.ndarray | None) -> bool | None:
    """Whether the highest pixel is defect; of several highest ones, whether most are."""
    if mask is None or not mask.any() or mask.shape != heat.shape:
        return None
    return bool(mask[heat == heat.max()].mean() > 0.5)


def _picture(pixels: np.ndarray, side: int, name: str, kind: str) -> Picture:
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"{name}: {kind} {pixels.shape} {pixels.dtype}, expected uint8 (h, w, 3) or (h, w)")
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=_QUALITY[kind], optimize=True)
    url = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
    return Picture(url, picture.width, picture.height)


def _reduced(values: np.ndarray, side: int) -> np.ndarray:
    """(h, w) float32 with a longer side of at most ``side``, averaged; never enlarged."""
    from PIL import Image

    height, width = values.shape
    share = side / max(height, width)
    if share >= 1.0:
        return values
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))


def _levels(values: np.ndarray, *limits: tuple[float, float]) -> dict[str, object]:
    """The map as numbers of at most 256 levels.

    Even steps over the whole range would leave few of them to the scale of a set whose extreme scan is far
    off, so each scale gets 112 of its own between no heat and full heat.
    """
    low, high = float(values.min()), float(values.max())
    spans = [np.linspace(low, high, 32)]
    for pair in limits:
        start, end = np.clip(pair, low, high)
        spans.append(np.linspace(start, end, 112))
    levels = np.unique(np.concatenate(spans).astype(np.float32))
    middles = (levels[1:] + levels[:-1]) / np.float32(2)
    numbers = np.searchsorted(middles, values).astype(np.uint8)
    table = base64.b64encode(levels.astype("<f4").tobytes()).decode("ascii")
    return {**_plane(numbers), "levels": table}


def _plane(values: np.ndarray) -> dict[str, object]:
    """(h, w) bytes: each row less the one above it (modulo 256), deflated, in base 64."""
    values = np.ascontiguousarray(values, np.uint8)
    above = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
    packed = zlib.compress((values - above).tobytes(), 6)
    return {
        "w": values.shape[1],
        "h": values.shape[0],
        "data": base64.b64encode(packed).decode("ascii"),
    }
