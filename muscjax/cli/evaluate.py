"""``muscjax evaluate``: metrics of maps that anyone made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muscjax.cli import options


def evaluate(
    maps: Annotated[
        Path, typer.Option(help="Folder with <category>/test/<defect>/NNN.tiff (or .npy, .png), or a run's.")
    ],
    truth: Annotated[Path, typer.Option(help="The data set, or one category of it.")],
    scores: Annotated[
        Path | None, typer.Option(help="CSV with path and score; the maximum of each map by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json, results.csv and .json.")] = None,
    layout: options.Layout = "auto",
    category: options.Category = None,
    split: options.Split = "test",
    strict_size: Annotated[
        bool, typer.Option("--strict-size", help="Refuse maps of another size than their masks.")
    ] = False,
    intervals: Annotated[bool, typer.Option(help="Bootstrap 95 % intervals over the scans.")] = True,
    units: options.Units = "auto",
    clean: options.Clean = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no table.")] = False,
) -> None:
    """Metrics of the maps in a folder against a data set's ground truth, at the size of its masks."""
    options.one_of("--units", units, options.UNITS)
    from rich.console import Console

    from muscjax import evaluate as evaluation
    from muscjax import outputs, tabulate
    from muscjax.console import watch

    if out is not None:
        outputs.open_output(out)
    given = evaluation.Given(
        maps=maps,
        truth=truth,
        layout=layout,
        category=category,
        split=split,
        scores=scores,
        strict_size=strict_size,
        intervals=intervals,
        clean=clean,
        units=units,  # pyright: ignore[reportArgumentType] (checked above)
    )
    try:
        with watch(Console(stderr=True), quiet=quiet) as observe:
            summaries, notes = evaluation.evaluate(given, observe)
    except evaluation.Unusable as error:
        for problem in error.problems if len(error.problems) > 1 else ():
            typer.echo(problem, err=True)
        raise
    if out is not None:
        outputs.write_json(out / "metrics.json", summaries)
        tabulate.write_results(out, summaries)
    if not quiet:
        tabulate.print_metrics(Console(), summaries, notes=notes)
