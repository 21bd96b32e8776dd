"""A table on the console: one line per setting, the published value behind each number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from muscjax.ablate.runner import Result
from muscjax.ablate.tables import Table

if TYPE_CHECKING:
    from rich.console import Console

_HEADINGS = {
    "auroc_cls": "image\nAUROC",
    "f1_max_cls": "image\nF1",
    "ap_cls": "image\nAP",
    "f1_max_seg": "pixel\nF1",
    "ap_seg": "pixel\nAP",
    "foreground_ap": "obj.\nAP",
    "hit_rate": "hit\nrate",
    "ap_seg_defective": "AP, def.\nscans",
    "time_ms": "ms per\nscan",
    "cpu_ms": "CPU ms\nper scan",
}


def print_table(console: Console, table: Table, results: Sequence[Result]) -> None:
    """One table per category (and the mean over several), in per cent; yardstick rows dimmed.

    ``*`` marks a value whose paired 95 % interval against the method as configured leaves out 0.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table as Grid

    for category in dict.fromkeys(row.category for row in results):
        mine = [row for row in results if row.category == category]
        metrics = [name for name in table.metrics if any(row.metric == name for row in mine)]
        title = f"{_name(table)}: {table.title}, {category}"
        grid = Grid(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, title=escape(title), title_justify="left")
        grid.add_column("%", overflow="fold")
        modalities = dict.fromkeys(row.modality for row in mine)
        for name in metrics:
            grid.add_column(_HEADINGS[name], justify="right", no_wrap=True)
        stated = [name for name in metrics if any(r.metric == name and r.published is not None for r in mine)]
        if stated:
            grid.add_column("published", overflow="fold")
        for modality, setting in dict.fromkeys((row.modality, row.setting) for row in mine):
            cells = {row.metric: row for row in mine if (row.modality, row.setting) == (modality, setting)}
            label = f"{modality} {setting}" if len(modalities) > 1 else setting
            texts = [_text(cells.get(name)) for name in metrics]
            line = [*texts, " ".join(_published(cells.get(name)) for name in stated)] if stated else texts
            grid.add_row(
                escape(label), *line, style="dim" if any(row.yardstick for row in cells.values()) else None
            )
        console.print(grid)
        notes = ["*: differs from the method as configured (paired 95 % interval over scans)."]
        if stated:
            order = ", ".join(_HEADINGS[name].replace("\n", " ") for name in stated)
            notes.append(f"published: mean of the whole data set with ViT-B/8 and Point-MAE ({order}).")
        for note in notes:
            console.print(note, highlight=False, soft_wrap=True)


def _name(table: Table) -> str:
    return f"Fig. {table.name[3:]}" if table.name.startswith("fig") else f"Table {table.name}"


def _text(row: Result | None) -> str:
    if row is None:
        return "-"
    if row.std is not None:
        return f"{row.value:.1f}±{row.std:.1f}"
    apart = row.difference_low is not None and row.difference_high is not None
    sure = apart and not (row.difference_low or 0) <= 0 <= (row.difference_high or 0)
    return f"{row.value:.1f}{'*' if sure else ' '}"


def _published(row: Result | None) -> str:
    return "-" if row is None or row.published is None else f"{row.published:.1f}"
