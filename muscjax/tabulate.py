"""Metrics as the paper's table: printed, and as ``results.csv`` and ``results.json``; all in per cent.

Under every result stand what it has to be held against: its interval, the maps that know nothing but where
the object is, and what was published for the same data and networks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscjax import outputs
from muscjax.published import Beside

if TYPE_CHECKING:
    from rich.console import Console

Summary = Mapping[str, Any]

# Name in results.csv, heading (two lines), and where the value stands in a `metrics.summary`.
COLUMNS = (
    ("auroc_cls", "image\nAUROC", "image", "auroc"),
    ("f1_max_cls", "image\nF1", "image", "f1_max"),
    ("ap_cls", "image\nAP", "image", "ap"),
    ("auroc_seg", "pixel\nAUROC", "pixel", "auroc"),
    ("f1_max_seg", "pixel\nF1", "pixel", "f1_max"),
    ("ap_seg", "pixel\nAP", "pixel", "ap"),
    ("pro_musc", "PRO\nmusc", "pixel", "aupro_musc"),
    ("pro_mvtec", "PRO\nmvtec", "pixel", "aupro_mvtec"),
    ("object_ap", "obj.\nAP", "pixel", "foreground_ap"),
    ("hit_rate", "hit\nrate", "pixel", "hit_rate"),
)
IN_FULL = 3  # up to so many categories each one shows every yardstick and its intervals
MEAN = "mean"


def rows(summaries: Mapping[str, Summary], beside: Beside | None = None) -> list[dict[str, Any]]:
    """One row per category and metric, and per metric of the mean where there are several categories.

    Returns ``{"category", "metric", "value", "low", "high", "published", "published_with", "difference",
    "yardsticks"}``: per cent or None; ``low`` and ``high`` are the 95 % interval over scans, ``difference``
    is to a value published with the same networks, ``yardsticks`` maps names to values. A mean is given only
    where every category has a value.
    """
    out = []
    for category, group, published in _blocks(summaries, beside):
        for name, _, part, metric in COLUMNS:
            value = _mean(group, part, metric)
            interval = _interval(group, part, metric)
            known = None if published is None else published.get(name)
            out.append(
                {
                    "category": category,
                    "metric": name,
                    "value": _rounded(value),
                    "low": None if interval is None else _rounded(interval[0]),
                    "high": None if interval is None else _rounded(interval[1]),
                    "published": known,
                    "published_with": None if known is None or beside is None else beside.networks,
                    "difference": _rounded(_difference(value, known, beside)),
                    "yardsticks": {
                        title: _rounded(_mean(made, part, metric))
                        for title, made in _yardsticks(group).items()
                    },
                }
            )
    return out


def write_results(
    out: str | os.PathLike, summaries: Mapping[str, Summary], beside: Beside | None = None
) -> None:
    """``results.csv`` (a column per yardstick) and ``results.json`` (`rows`, with remarks) into ``out``."""
    found = rows(summaries, beside)
    titles = list(dict.fromkeys(title for row in found for title in row["yardsticks"]))
    flat = [
        {
            **{k: v for k, v in row.items() if k != "yardsticks"},
            **{_column(t): row["yardsticks"].get(t) for t in titles},
        }
        for row in found
    ]
    columns = ["category", "metric", "value", "low", "high", "published", "published_with", "difference"]
    outputs.write_csv(Path(out, "results.csv"), [*columns, *map(_column, titles)], flat)
    remarks = None
    if beside is not None:
        remarks = {name: getattr(beside, name) for name in ("dataset", "networks", "same", "notes")}
    outputs.write_json(Path(out, "results.json"), {"unit": "per cent", "published": remarks, "rows": found})


def print_metrics(
    console: Console,
    summaries: Mapping[str, Summary],
    beside: Beside | None = None,
    *,
    notes: Sequence[str] = (),
) -> None:
    """`muscjax.metrics.summary` of each category as one table, in per cent, and of their mean.

    Under each result: its 95 % interval over scans, the trivial maps, the published numbers and the
    difference to them. Of more than `IN_FULL` categories each shows one line ``trivial``, the better of the
    trivial maps under each metric, and only the mean shows all. Below the table: the chance band of the image
    AUROC, the reason for each value that is not defined, the remarks of ``beside``, and ``notes``.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, title_justify="left")
    table.add_column("%", overflow="fold")
    for _, heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for category, group, published in _blocks(summaries, beside):
        full = len(group) > 1 or len(summaries) <= IN_FULL
        if full:
            table.add_section()
        table.add_row(escape(category), *(_text(v) for v in _values(group)))
        for name, cells in _lines(group, published, beside, full=full):
            table.add_row(f"  {escape(name)}", *cells, style="dim")
    console.print(table)
    remarks = (*_legend(summaries), *_remarks(summaries), *(() if beside is None else beside.notes), *notes)
    for note in remarks:
        console.print(escape(note), highlight=False, soft_wrap=True)


def _lines(group, published, beside: Beside | None, *, full: bool) -> list[tuple[str, list[str]]]:
    """What stands under a result: (name, cells)."""
    lines = []
    if full:
        intervals = [_interval(group, part, metric) for _, _, part, metric in COLUMNS]
        if any(intervals):
            lines.append(("95 %", [_band(i) for i in intervals]))
    made = {title: _values(summaries) for title, summaries in _yardsticks(group).items()}
    if full:
        lines += [(title.removesuffix(" mask"), [_text(v) for v in values]) for title, values in made.items()]
    elif made:
        best = [
            max((v for v in column if v is not None), default=None)
            for column in zip(*made.values(), strict=True)
        ]
        lines.append(("trivial", [_text(v) for v in best]))
    if published is not None and beside is not None:
        known = [published.get(name) for name, _, _, _ in COLUMNS]
        cells = ["" if v is None else f"{v:.1f}" for v in known]
        lines.append(("published" if beside.same else "(published)", cells))
        if beside.same:
            apart = [_difference(v, k, beside) for v, k in zip(_values(group), known, strict=True)]
            lines.append(("difference", ["" if v is None else f"{v:+.1f}" for v in apart]))
    return lines


def _legend(summaries: Mapping[str, Summary]) -> list[str]:
    """What the trivial maps are, in a sentence for each sort that is there."""
    names = {yardstick["name"] for summary in summaries.values() for yardstick in summary["yardsticks"]}
    out = []
    if names - {"picture centre"}:
        out.append(
            "foreground, blurred: the object's mask and the mask blurred; they know where it is, no more."
        )
    if "picture centre" in names:
        out.append("picture centre: a map that falls from the middle to the corners and looks at nothing.")
    if len(summaries) > IN_FULL and names:
        out.append("trivial: the better of these maps under each metric.")
    return out


def _remarks(summaries: Mapping[str, Summary]) -> list[str]:
    notes = []
    for name, summary in summaries.items():
        size = "" if summary["size"] is None else f", maps {summary['size'][0]}×{summary['size'][1]}"
        notes.append(f"{name}: {summary['scans']} scans, {summary['defective']} defective{size}.")
        if summary["chance_band_image_auroc"] is not None:
            low, high = summary["chance_band_image_auroc"]
            notes[-1] += f" Image AUROC by chance: {100 * low:.1f}-{100 * high:.1f} (95 %)."
        undefined: dict[str, list[str]] = {}
        for part in ("image", "pixel"):
            for metric, reason in (summary[part] or {}).get("reasons", {}).items():
                undefined.setdefault(reason, []).append(f"{part} {metric}")
        notes += [f"{name}: {why}, so there is no {', '.join(names)}." for why, names in undefined.items()]
    return notes


def _blocks(summaries: Mapping[str, Summary], beside: Beside | None):
    """(category, its summaries, published values) of each category, then of the mean of several."""
    for name, summary in summaries.items():
        yield name, [summary], None if beside is None else beside.categories.get(name)
    if len(summaries) > 1:
        yield MEAN, list(summaries.values()), None if beside is None else beside.mean


def _yardsticks(group: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Summaries of the trivial maps by name, of those that every member of the group has."""
    found: dict[str, list[Summary]] = {}
    for summary in group:
        for yardstick in summary["yardsticks"]:
            found.setdefault(yardstick["name"], []).append(yardstick)
    return {name: members for name, members in found.items() if len(members) == len(group)}


def _values(group: Sequence[Summary]) -> list[float | None]:
    return [_mean(group, part, metric) for _, _, part, metric in COLUMNS]


def _mean(group: Sequence[Summary], part: str, metric: str) -> float | None:
    values = [(summary[part] or {}).get(metric) for summary in group]
    known = [v for v in values if v is not None]
    return 100 * sum(known) / len(known) if known and len(known) == len(values) else None


def _interval(group: Sequence[Summary], part: str, metric: str) -> tuple[float, float] | None:
    if len(group) != 1 or not group[0].get("intervals"):
        return None
    found = group[0]["intervals"].get(part, {}).get(metric)
    return None if found is None else (100 * found[0], 100 * found[1])


def _difference(value: float | None, known: float | None, beside: Beside | None) -> float | None:
    """To what was published, where that was with the same networks."""
    if value is None or known is None or beside is None or not beside.same:
        return None
    return value - known


def _band(interval: tuple[float, float] | None) -> str:
    low, high = ("", "") if interval is None else (f"{interval[0]:.0f}", f"{interval[1]:.0f}")
    return low if low == high else f"{low}-{high}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _column(title: str) -> str:
    return title.replace(" ", "_")
