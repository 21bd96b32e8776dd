"""An explanation as tables on the console, in the order of the computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from muscjax.explain.files import Explained
from muscjax.explain.parts import Side, Stage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CLOSEST = 5  # references that are listed

_MIXED = 4  # patches that a line names; bilinear interpolation has no more


def print_explanation(console: Console, explained: Explained) -> None:
    """Where the place lies, what its map value is made of, the references behind it, and the scan's score."""
    told, names = explained.explanation, short_names([scan.name for scan in explained.dataset.scans])

    def line(text: str) -> None:
        console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    line(headline(explained))
    for note in told.notes:
        line(f"note: {note}")
    console.print(_sum(explained))
    for kind, side in (("image", told.image), ("points", told.points)):
        if side is not None:
            count = len(side.final()[0])
            line(f"{kind_of_row(kind)} {side.row}: distances to the {count} references, by stage")
            console.print(_stages(side))
            line(f"for comparison, the median {kind_of_row(kind)} of all scans scores {side.typical:.4f}")
            console.print(_references(side, names))
    rank = f"rank {told.scan.rank} of {len(names)}"
    line(f"the scan's score {told.scan.pred_score:.4f}, {rank}: {rescoring(explained)}")
    if len(told.scan.neighbours):
        console.print(_neighbours(explained, names))


def headline(explained: Explained) -> str:
    """One line: the scan, the place in all grids, and its value."""
    place = explained.explanation.place
    grids = [f"map pixel ({place.working_yx[0]}, {place.working_yx[1]})"]
    if place.patch is not None and place.grid_hw is not None:
        row, column = divmod(place.patch, place.grid_hw[1])
        grids.append(f"patch ({row}, {column}) of {place.grid_hw[0]}×{place.grid_hw[1]}")
    if place.group is not None:
        grids.append(f"group {place.group}")
    y, x = place.source_yx
    return f"{explained.scan.name} at y={y}, x={x}: {', '.join(grids)}"


def rescoring(explained: Explained) -> str:
    """What became of the map's maximum, in words."""
    scan, settings = explained.explanation.scan, explained.inputs.config.rscon
    y, x = scan.peak_yx
    text = f"map maximum {scan.map_max:.4f} at y={y}, x={x}"
    if not settings.enabled:
        return f"{text}; RsCon is off"
    if settings.normalise:
        text += f", {scan.base:.4f} on the set's scale of 0...1"
    return f"{text}, {scan.pred_score:.4f} after RsCon"


def span(side: Side, stage: Stage) -> str:
    """The stage's name among those of its side: ``block 2 of 3``, its degree, "" of the only one.

    A single block is scored with each block of the other modality: ``pairing 2 of 3``.
    """
    blocks = 1 + max(other.block for other in side.stages)
    levels = 1 + max(other.level for other in side.stages)
    names = [f"block {stage.block + 1} of {blocks}"] if blocks > 1 else []
    names += [f"degree {stage.level + 1} of {levels}"] if levels > 1 else []
    if len(side.stages) > blocks * levels:
        number = next(i for i, other in enumerate(side.stages, start=1) if other is stage)
        names = [f"pairing {number} of {len(side.stages)}"]
    return ", ".join(names)


def kind_of_row(kind: str) -> str:
    """What a row of the modality is called."""
    return "image patch" if kind == "image" else "point group"


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        left = heading in ("of", "from", "stage", "closest references", "neighbour")
        table.add_column(
            heading, justify="left" if left else "right", overflow="fold", no_wrap=heading == "stage"
        )
    return table


def _sum(explained: Explained) -> Table:
    """The map's value as a sum."""
    parts, place = explained.explanation.contributions, explained.explanation.place
    table = _table("of", "value", "from")
    if len(parts.cells):
        table.add_row(
            "image", f"{parts.image:.4f}", _mix("patch", parts.cells, parts.cell_weights, parts.cell_scores)
        )
    if explained.inputs.kind != "image":
        groups = _mix("group", place.groups, place.group_weights, parts.group_scores)
        table.add_row("points", f"{parts.points:.4f}", groups or "no point here")
        table.add_row("blur", f"{parts.blur:+.4f}", "blurring of the points' map")
    table.add_section()
    table.add_row("map", f"{parts.value:.4f}", "")
    return table


def _mix(word: str, rows: np.ndarray, weights: np.ndarray, scores: np.ndarray) -> str:
    order = np.argsort(-weights, kind="stable")
    shown, rest = order[:_MIXED], order[_MIXED:]
    parts = [f"{100 * weights[i]:.0f} % of {word} {rows[i]}: {scores[i]:.3f}" for i in shown]
    if rest.size:
        share = weights[rest].sum()
        mean = np.sum(weights[rest] * scores[rest]) / share if share > 0 else 0.0
        parts.append(f"{100 * share:.0f} % of {rest.size} more: {mean:.3f}")
    return ", ".join(parts)


def _stages(side: Side) -> Table:
    table = _table(
        "stage",
        "averaged",
        "smallest",
        "largest\naveraged",
        "largest",
        "lambda",
        "score\nbefore CAE",
        "score",
    )
    for stage in side.stages:
        finite = stage.final[np.isfinite(stage.final)]
        table.add_row(
            span(side, stage) or "all",
            f"{stage.inside.sum()} of {len(finite)}",
            *(f"{v:.4f}" if np.size(v) else "-" for v in _ends(stage, finite)),
            "-" if stage.confidence is None else f"{stage.confidence:.3f}",
            f"{stage.score_before:.4f}",
            f"{stage.score:.4f}",
        )
    if len(side.stages) > 1:
        table.add_section()
        table.add_row("mean", *5 * [""], f"{side.score_before:.4f}", f"{side.score:.4f}")
    return table


def _ends(stage: Stage, finite: np.ndarray) -> list:
    if not len(finite):
        return [np.zeros(0)] * 3
    return [finite[0], stage.final[stage.inside][-1], finite[-1]]


def shown_stage(side: Side) -> Stage:
    """The stage whose matched patches are shown: the second-last block, as for the salient feature."""
    last = max(stage.block for stage in side.stages)
    return next(stage for stage in side.stages if stage.block == max(last - 1, 0))


def listed(side: Side) -> list[tuple[int, float, bool]]:
    """The closest references by mean final distance, and the farthest.

    Number, distance, and whether every stage averaged it.
    """
    ids, mean = side.final()
    counts = {
        int(j): sum(bool(s.inside[np.flatnonzero(s.references == j)[0]]) for s in side.stages) for j in ids
    }
    chosen = [*range(min(CLOSEST, len(ids)))]
    finite = int(np.isfinite(mean).sum())
    if finite > CLOSEST:
        chosen.append(finite - 1)
    return [(int(ids[i]), float(mean[i]), counts[int(ids[i])] == len(side.stages)) for i in chosen]


def _references(side: Side, names: list[str]) -> Table:
    stage = shown_stage(side)
    table = _table("closest references", "distance", "CAE", "final", "matched y, x", "averaged")
    rows = listed(side)
    for j, mean, all_stages in rows:
        at = int(np.flatnonzero(stage.references == j)[0])
        top, left, bottom, right = stage.nearest_box[at]
        if j == rows[-1][0] and len(rows) > CLOSEST:
            table.add_section()
        own = np.mean([s.own[s.references == j][0] for s in side.stages])
        table.add_row(
            names[j],
            f"{own:.4f}",
            f"{mean - own:+.4f}" if np.isfinite(own) else "-",
            f"{mean:.4f}",
            f"{(top + bottom) / 2:.0f}, {(left + right) / 2:.0f}",
            "yes"
            if all_stages
            else "no"
            if not any(s.inside[s.references == j][0] for s in side.stages)
            else "partly",
        )
    return table


def _neighbours(explained: Explained, names: list[str]) -> Table:
    scan = explained.explanation.scan
    table = _table("neighbour", "weight", "its score")
    for j, weight, score in zip(scan.neighbours.tolist(), scan.weights, scan.scores, strict=True):
        itself = " (itself)" if j == explained.explanation.sample else ""
        table.add_row(names[j] + itself, f"{weight:.3f}", f"{score:.4f}")
    return table


def short_names(names: list[str]) -> list[str]:
    """Names without the folders that all of them begin with."""
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ["/".join(p[shared:]) for p in parts]
