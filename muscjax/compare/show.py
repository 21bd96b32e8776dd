"""A comparison as tables on the console and as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from muscjax import outputs
from muscjax.compare.figures import METRICS, Comparison

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = (
    "category",
    "scan",
    "label",
    "score_a",
    "score_b",
    "rank_a",
    "rank_b",
    "quantile_change",
    "map_correlation",
)


def write(out: Path, comparison: Comparison) -> None:
    """compare.json with everything and compare.csv with the scans into the folder ``out``."""
    outputs.write_json(outputs.open_output(out) / "compare.json", comparison)
    outputs.write_csv(out / "compare.csv", COLUMNS, comparison.scans)


def print_comparison(console: Console, comparison: Comparison, *, top: int = 10) -> None:
    """The settings that differ, the metrics with their intervals, and the ``top`` scans that moved most."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    def table(*headings: str, right: int) -> Table:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, heading in enumerate(headings):
            made.add_column(heading, justify="right" if i >= right else "left", overflow="fold")
        return made

    def percent(value: float | None, form: str = ".1f") -> str:
        return "-" if value is None else format(100 * value, form)

    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    say(f"a: {comparison.a}\nb: {comparison.b}")
    if comparison.differs:
        made = table("setting", "a", "b", right=9)
        for field, a, b in comparison.differs:
            made.add_row(escape(field), escape(str(a)), escape(str(b)))
        console.print(made)
    else:
        say("settings: no difference")
    if comparison.metrics:
        made = table("category", "%", "a", "b", "b - a", "95 %", "", right=2)
        last = None
        for row in comparison.metrics:
            title = next(t for part, name, t in METRICS if f"{part} {name}" == row["metric"])
            band = (
                ""
                if row["low"] is None
                else f"{percent(row['low'], '+.1f')} … {percent(row['high'], '+.1f')}"
            )
            sure = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
            made.add_row(
                escape(row["category"]) if row["category"] != last else "",
                title,
                percent(row["a"]),
                percent(row["b"]),
                percent(row["difference"], "+.1f"),
                band,
                "*" if sure else "",
            )
            last = row["category"]
        console.print(made)
        say("95 %: paired bootstrap over scans; *: the interval leaves 0 out.")
    for name, value in comparison.rank_correlation.items():
        say(f"{name}: rank correlation of the scores {'-' if value is None else f'{value:.3f}'}")
    made = table("scans that changed most", "label", "rank a", "rank b", "quantile", "maps", right=2)
    for row in comparison.scans[:top]:
        made.add_row(
            escape(row["scan"]),
            "" if row["label"] is None else ("defective" if row["label"] else "good"),
            f"{row['rank_a']:g}",
            f"{row['rank_b']:g}",
            f"{row['quantile_change']:+.2f}",
            "-" if row["map_correlation"] is None else f"{row['map_correlation']:.2f}",
        )
    console.print(made)
    say("quantile: change of a scan's place among all, 1 for last to first; maps: correlation of both maps.")
    for note in comparison.notes:
        say(note)
