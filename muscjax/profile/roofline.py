"""Each stage against what the device could do at best, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from muscjax.profile import counting, program, rates
from muscjax.profile.stages import Stage

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Row:
    """A stage in all the times that the whole runs it; seconds.

    ``bytes`` are those that no program can avoid: its arguments read and its results written once.
    ``program_bytes`` and ``program_flops`` are the compiler's own, with the body of every loop once.
    """

    name: str
    times: int
    operations: counting.Operations
    bytes: float
    program_flops: float | None
    program_bytes: float | None
    peak_bytes: int | None
    compile_s: float
    floor: float
    bound: Literal["ops", "bytes"]
    measured: float  # median
    spread: tuple[float, float]  # quartiles
    inside: str = ""

    @property
    def gap(self) -> float:
        return self.measured / self.floor if self.floor else float("inf")


def compulsory_bytes(built: program.Program) -> float:
    """Arguments and results of a program, once each."""
    sizes = built.memory()
    if sizes["arguments"] is not None and sizes["results"] is not None:
        return float(sizes["arguments"] + sizes["results"])
    leaves = jax.tree.leaves((built.arguments, jax.eval_shape(built.compiled, *built.arguments)))
    return float(sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))


def measured_rows(
    stages: Sequence[Stage], best: rates.Rates, *, rounds: int, least: float = 0.05
) -> tuple[list[Row], dict[str, program.Program], dict[str, list[float]]]:
    """Compile and time every stage in turns; rows, and by name the compiled programs and their seconds."""
    built = {stage.name: program.build(stage.function, stage.arguments) for stage in stages}
    times = program.interleaved(built, rounds=rounds, least=least)
    return [_row(stage, built[stage.name], times[stage.name], best) for stage in stages], built, times


def _row(stage: Stage, built: program.Program, times: Sequence[float], best: rates.Rates) -> Row:
    operations = counting.count(stage.function, *stage.arguments) * stage.times
    moved = compulsory_bytes(built) * stage.times
    by_operations, by_bytes = operations.total / best.matmul, moved / best.bandwidth
    cost, spent = built.cost(), program.summary(times)
    low, high = spent["iqr"]
    return Row(
        name=stage.name,
        times=stage.times,
        operations=operations,
        bytes=moved,
        program_flops=cost["flops"] and cost["flops"] * stage.times,
        program_bytes=cost["bytes"] and cost["bytes"] * stage.times,
        peak_bytes=built.memory()["peak"],
        compile_s=built.compile_s,
        floor=max(by_operations, by_bytes),
        bound="ops" if by_operations >= by_bytes else "bytes",
        measured=spent["median"] * stage.times,
        spread=(low * stage.times, high * stage.times),
        inside=stage.inside,
    )


def print_table(
    console: Console, rows: Sequence[Row], best: rates.Rates, whole: float, whole_name: str
) -> None:
    """One line per stage, the whole below; stages inside another are indented and not added up."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for heading in ("×", "Gop", "MB", "bound", "floor\nms", "measured\nms", "gap", "%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"  {row.name}" if row.inside else row.name,
            str(row.times),
            _short(row.operations.total / 1e9) + ("+" if row.operations.open_loops else ""),
            _short(row.bytes / 1e6),
            row.bound,
            _short(1e3 * row.floor),
            _short(1e3 * row.measured),
            _short(row.gap),
            f"{100 * row.measured / whole:.0f}",
        )
    outer = [row for row in rows if not row.inside]
    floor, spent = sum(row.floor for row in outer), sum(row.measured for row in outer)
    table.add_section()
    total = sum((row.operations.total for row in outer), 0.0)
    moved = sum(row.bytes for row in outer)
    table.add_row(
        "stages together", "", _short(total / 1e9), _short(moved / 1e6), "",
        _short(1e3 * floor), _short(1e3 * spent), _short(spent / floor), f"{100 * spent / whole:.0f}",
    )  # fmt: skip
    table.add_row(whole_name, "", "", "", "", "", _short(1e3 * whole), _short(whole / floor), "100")
    console.print(table)
    shape = "·".join(map(str, best.shape))
    notes = [
        f"Floor: the larger of operations at {best.matmul / 1e9:.4g} Gop/s (best plain {best.precision} "
        f"product, {shape}) and of arguments and results once at {best.bandwidth / 1e9:.3g} GB/s, both "
        "measured in this process.",
        "A stage counts in all the times that the whole runs it; each is compiled by itself.",
    ]
    if any(row.operations.open_loops for row in rows):
        notes.append("+ a loop whose length only the data know; its body counts once.")
    for note in notes:
        console.print(note, highlight=False)


def _short(value: float) -> str:
    """Three digits at most, none behind what a table needs."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.1g}"


def plain_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as a record, gaps included."""
    return [dataclasses.asdict(row) | {"gap": row.gap} for row in rows]
