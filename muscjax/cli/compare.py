"""``muscjax compare``: two runs of the same scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muscjax.errors import InputError


def compare(
    run_a: Annotated[Path, typer.Argument(help="A folder that muscjax detect wrote.")],
    run_b: Annotated[Path, typer.Argument(help="Another one of the same scans.")],
    truth: Annotated[
        Path | None, typer.Option(help="The data set; by default the folder that RUN_A was made from.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and compare.csv.")] = None,
    top: Annotated[int, typer.Option(help="How many of the scans that changed most are shown.")] = 10,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap's draws.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no table.")] = False,
) -> None:
    """What changed from RUN_A to RUN_B: settings, metrics with a paired bootstrap, and scans."""
    for name, value, least in (("--top", top, 0), ("--resamples", resamples, 10), ("--seed", seed, 0)):
        if value < least:
            raise InputError(f"{name}: found {value}, expected at least {least}")
    from rich.console import Console

    from muscjax import compare as comparing
    from muscjax import outputs
    from muscjax.console import watch

    if out is not None:
        outputs.open_output(out)
    with watch(Console(stderr=True), quiet=quiet) as observe:
        found = comparing.compare(run_a, run_b, truth=truth, observe=observe, resamples=resamples, seed=seed)
    if out is not None:
        comparing.write(out, found)
    if not quiet:
        comparing.print_comparison(Console(), found, top=top)
