"""``muscjax profile``: where the time goes on this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def profile(
    target: Annotated[str, typer.Argument(help="scoring, grouping, backbone or pipeline.")],
    workload: Annotated[
        str | None, typer.Option(help="A named workload of that kind; an unknown name lists them.")
    ] = None,
    scans: Annotated[
        int | None, typer.Option(help="Scans of a set, instead of the workload's; pipeline: 8.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for HLO, trace and profile.json.")] = Path(
        "muscjax-profile"
    ),
    precision: Annotated[str, typer.Option(help="float32, tf32 or bfloat16.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Rounds in which all stages take their turn.")] = 5,
    trace: Annotated[bool, typer.Option(help="Record one run for Perfetto.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the table.")] = False,
) -> None:
    """Every stage against what this device could do at best; HLO before and after optimisation; a trace."""
    from rich.console import Console

    from muscjax import outputs
    from muscjax import profile as profiler
    from muscjax.errors import InputError

    if precision not in ("float32", "tf32", "bfloat16"):
        raise InputError(f"--precision {precision!r}: expected float32, tf32 or bfloat16")
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: expected at least 1")
    chosen = profiler.choose(target, workload, scans or (8 if target == "pipeline" else None))
    folder = outputs.open_output(out)
    errors = Console(stderr=True)
    record = profiler.profile(
        chosen,
        folder,
        precision=precision,
        rounds=rounds,
        trace=trace,
        say=(lambda text: None) if quiet else lambda text: errors.print(text, highlight=False),
    )
    console = Console()
    profiler.show(console, record)
    console.print(f"results: {folder}", markup=False, highlight=False, soft_wrap=True)
