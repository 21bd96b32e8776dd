"""An explanation as one picture: the place, what it was compared with, and what the comparison gave."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muscjax import datasets, outputs
from muscjax.colormap import depth_picture, overlay
from muscjax.datasets import Scan
from muscjax.explain import tables
from muscjax.explain.files import Explained
from muscjax.explain.parts import Side, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _RULE = "#22252b", "#6b7280", "#d5d8de"
_COLOURS = {"image": "#2868b0", "points": "#c4601d", "blur": "#8a8f98", "scan": "#3f7d58"}
_MARK = "#17d4e6"  # on pictures: away from the colours of the heat
_LEAST_CROP = 0.22  # of the image's shorter side
_AROUND = 5.0  # sides of the crop in sides of the matched box
_DOTS = 110


def available() -> str | None:
    """None where a picture can be drawn, else the line that says how to get what is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return "explanation.png needs matplotlib; install muscjax[report] (pip install 'muscjax[report]')"
    return None


def write(path: Path, explained: Explained) -> None:
    """The picture as PNG; needs matplotlib."""
    figure = draw(explained)
    with outputs.replaced(path) as file:
        figure.savefig(file, format="png", dpi=_DOTS, facecolor="white")


def draw(explained: Explained) -> Figure:
    """Top row: scan, place, sum, RsCon. Then per modality the references and the sorted distances."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    told = explained.explanation
    sides = [
        (kind, side) for kind, side in (("image", told.image), ("points", told.points)) if side is not None
    ]
    settings: Any = {"font.size": 9, "axes.edgecolor": _RULE, "text.color": _INK, "axes.labelcolor": _FAINT}
    settings |= {
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
    }
    with rc_context(settings):
        figure = Figure(figsize=(15, 5.0 + 5.4 * len(sides)), layout="constrained")
        figure.suptitle(_title(explained), x=0.01, ha="left", fontsize=13)
        bands: Any = figure.subfigures(
            1 + len(sides), 1, height_ratios=[4.4] + [5.4] * len(sides), squeeze=False
        )
        _top(bands[0, 0], explained)
        for band, (kind, side) in zip(bands[1:, 0], sides, strict=True):
            upper, lower = band.subfigures(2, 1, height_ratios=[2.9, 2.4])
            _references(upper, explained, kind, side)
            _distances(lower, kind, side)
    return figure


def _title(explained: Explained) -> str:
    told, count = explained.explanation, len(explained.dataset.scans)
    y, x = told.place.source_yx
    return (
        f"{explained.scan.name} at y={y}, x={x}: anomaly {told.contributions.value:.3f}\n"
        f"Scan score {told.scan.pred_score:.3f}, rank {told.scan.rank} of {count}"
    )


def _top(band: Any, explained: Explained) -> None:
    import jax

    from muscjax import maps

    whole, near, total, scan = band.subplots(1, 4, width_ratios=[3.4, 3.4, 3.2, 4.2])
    told = explained.explanation
    frame = explained.inputs.prepared[told.sample].frame
    kind = "points" if explained.inputs.kind == "points" else "image"
    shown = _picture(explained, told.sample, kind)
    heat = np.asarray(jax.jit(maps.to_source, static_argnums=1)(told.anomaly_map, frame))
    y, x = told.place.source_yx
    whole.imshow(overlay(shown, heat, limits=explained.limits))
    whole.plot([x], [y], "+", ms=16, mew=2, color=_MARK)
    whole.set_title("Scan under its heat; + is the place")
    side = max(_LEAST_CROP * min(shown.shape[:2]), 16)
    boxes = [told.place.patch_box] if told.place.patch_box is not None and told.image is not None else []
    if boxes:
        side = max(side, _AROUND * (boxes[0][2] - boxes[0][0]))
    _crop(near, shown, (y + 0.5, x + 0.5), side)
    for box in boxes:
        _rectangle(near, box, _COLOURS["image"])
    if len(told.place.group_yx):
        near.plot(
            told.place.group_yx[:, 1] + 0.5,
            told.place.group_yx[:, 0] + 0.5,
            "o",
            ms=6,
            mfc="none",
            mew=1.6,
            color=_COLOURS["points"],
        )
    near.plot([x + 0.5], [y + 0.5], "+", ms=9, mew=1.4, color=_MARK)
    legend = [
        text
        for text, there in (("box: image patch", boxes), ("circles: group centres", len(told.place.group_yx)))
        if there
    ]
    near.set_title("The place" + (f" ({'; '.join(legend)})" if legend else ""))
    for axes in (whole, near):
        _bare(axes)
    _sum(total, explained)
    _rescoring(scan, explained)


def _sum(axes: Axes, explained: Explained) -> None:
    """The map's value as bars, and each modality's score before CAE as a mark."""
    told, kind = explained.explanation, explained.inputs.kind
    parts = told.contributions
    rows = [("image", parts.image)] if kind != "points" else []
    rows += [("points", parts.points), ("blur", parts.blur)] if kind != "image" else []
    start = 0.0
    for place, (name, value) in enumerate(rows):
        axes.barh(place, value, left=start, color=_COLOURS[name], height=0.62)
        axes.text(
            max(start + value, start),
            place,
            f" {value:+.3f}" if start else f" {value:.3f}",
            va="center",
            fontsize=9,
        )
        start += value
    axes.barh(len(rows), parts.value, color=_INK, height=0.62)
    axes.text(parts.value, len(rows), f" {parts.value:.3f}", va="center", fontsize=9, weight="bold")
    names = {"image": "image", "points": "points", "blur": "blur of\npoints"}
    axes.set_yticks(range(len(rows) + 1), [*(names[name] for name, _ in rows), "map"])
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, start), 1.28 * max(parts.value, parts.image + parts.points, 1e-6))
    lines = []
    for name, side in (("image", told.image), ("points", told.points)):
        if side is not None:
            changed = side.stages[0].confidence is not None
            score = f"{side.score_before:.3f}, after CAE {side.score:.3f}" if changed else f"{side.score:.3f}"
            lines.append(f"{tables.kind_of_row(name)} {score}; median of all {side.typical:.3f}")
    axes.set_title("What the anomaly here is made of")
    axes.set_xlabel("\n".join(lines), fontsize=8.5, loc="left", color=_INK)
    _open(axes)


def _rescoring(axes: Axes, explained: Explained) -> None:
    """The scan's score before and after, beside the scores that RsCon mixed in."""
    told, scan = explained.explanation, explained.explanation.scan
    names = tables.short_names([s.name for s in explained.dataset.scans])
    rows: list[tuple[str, float, str, str]] = [("before", scan.base, _INK, "")]
    for j, weight, score in zip(scan.neighbours.tolist(), scan.weights, scan.scores, strict=True):
        label = "itself" if j == told.sample else names[j]
        rows.append((label, float(score), _COLOURS["scan"], f"× {weight:.2f}"))
    rows.append(("after", scan.pred_score, _INK, ""))
    for place, (_, value, colour, text) in enumerate(rows):
        axes.barh(place, value, color=colour, height=0.66)
        axes.text(max(value, 0), place, f" {value:.3f} {text}", va="center", fontsize=8.5)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlim(0, 1.45 * max(*(row[1] for row in rows), 1e-6))
    settings = explained.inputs.config.rscon
    title = "Scan score: RsCon is off"
    if settings.enabled:
        title = "Scan score, and the similar scans that RsCon mixes in"
    axes.set_title(title)
    _open(axes)


def _references(band: Any, explained: Explained, kind: str, side: Side) -> None:
    """The place itself, the closest references and the farthest, each at its matched patch."""
    told, stage, rows = explained.explanation, tables.shown_stage(side), tables.listed(side)
    span = tables.span(side, stage)
    band.suptitle(
        f"{tables.kind_of_row(kind).capitalize()} {side.row} and what matched it in the closest of "
        f"{len(stage.references)} references and in the farthest" + (f" ({span})" if span else ""),
        x=0.01,
        ha="left",
        fontsize=10.5,
        color=_COLOURS[kind],
    )
    names = tables.short_names([scan.name for scan in explained.dataset.scans])
    own = told.place.patch_box if kind == "image" else told.place.group_box
    tiles: list[tuple[int, Any, str]] = [(told.sample, own, f"{names[told.sample]}\nthis place")]
    for j, mean, inside in rows:
        farthest = len(rows) > tables.CLOSEST and j == rows[-1][0]
        word = "farthest" if farthest else "averaged" if inside else "not averaged"
        box = stage.nearest_box[int(np.flatnonzero(stage.references == j)[0])]
        tiles.append((j, box, f"{names[j]}\n{mean:.3f}, {word}"))
    axes = band.subplots(1, tables.CLOSEST + 2)
    for place in axes[len(tiles) :]:
        place.set_axis_off()
    for place, (j, box, title) in zip(axes, tiles, strict=False):
        shown = _picture(explained, j, kind)
        size = max(_LEAST_CROP * min(shown.shape[:2]), _AROUND / 2 * float(box[2] - box[0]), 16)
        _crop(place, shown, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), size)
        _rectangle(place, box, _COLOURS[kind])
        place.set_title(title, fontsize=9, weight="bold" if j == told.sample else "normal")
        _bare(place)


def _distances(band: Any, kind: str, side: Side) -> None:
    """Per stage: final distances ascending with the averaged ones shaded, and those before CAE."""
    axes = np.atleast_1d(band.subplots(1, len(side.stages), sharey=True))
    for place, stage in zip(axes, side.stages, strict=True):
        _curve(place, kind, side, stage)
    axes[0].set_ylabel("distance")


def _curve(axes: Axes, kind: str, side: Side, stage: Stage) -> None:
    finite = np.isfinite(stage.final)
    rank, count = np.arange(1, 1 + int(finite.sum())), int(stage.inside.sum())
    axes.axvspan(0.5, count + 0.5, color=_COLOURS[kind], alpha=0.12, lw=0)
    if stage.confidence is not None:
        axes.plot(rank, stage.own[finite], ".", ms=5, color=_FAINT, label="before CAE")
    final = "after CAE" if stage.confidence is not None else "distance"
    axes.plot(rank, stage.final[finite], "-", lw=1.8, color=_COLOURS[kind], label=final)
    axes.hlines(stage.score, 0.5, count + 0.5, color=_INK, lw=1.4, label=f"average of the {count} smallest")
    change = f"{stage.score:.3f}"
    if stage.confidence is not None:
        change = f"{stage.score_before:.3f} → {stage.score:.3f}, λ {stage.confidence:.2f}"
    span = tables.span(side, stage)
    axes.set_title((f"{span}: score " if span else "Score ") + change)
    axes.set_xlabel("references, the closest first")
    axes.set_xlim(0.5, max(len(rank), 1) + 0.5)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _open(axes)


def _picture(explained: Explained, sample: int, kind: str) -> np.ndarray:
    """(h, w, 3) uint8 of the scan's own size: the photograph, or for points the depth where there is any."""
    from PIL import Image

    scan: Scan = explained.dataset.scans[sample]
    if kind == "image" and scan.image is not None:
        return datasets.load_image(scan.image)
    grey = depth_picture(datasets.load_scan_xyz(scan, units=explained.request.units))
    height, width = explained.inputs.prepared[sample].frame.source_hw
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(resized)[..., None], 3, axis=2)


def _crop(axes: Axes, picture: np.ndarray, centre: tuple[float, float], side: float) -> None:
    """Show a square of the picture around a place, moved inside where it would leave the picture."""
    height, width = picture.shape[:2]
    side = min(side, height, width)
    top = float(np.clip(centre[0] - side / 2, 0, height - side))
    left = float(np.clip(centre[1] - side / 2, 0, width - side))
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="bilinear")
    axes.set_xlim(left, left + side)
    axes.set_ylim(top + side, top)


def _rectangle(axes: Axes, box: Any, colour: str) -> None:
    from matplotlib.patches import Rectangle

    top, left, bottom, right = (float(v) for v in box)
    for edge, width in (("white", 3.2), (colour, 1.8)):
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=edge, lw=width))


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _open(axes: Axes) -> None:
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
