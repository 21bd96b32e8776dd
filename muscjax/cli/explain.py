"""``muscjax explain``: why a scan is hot at one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muscjax.cli import options
from muscjax.errors import InputError


def explain(
    context: typer.Context,
    scan: Annotated[
        str, typer.Argument(help="A scan's image or XYZ file, or with --run its name: gear/test/bent/000.")
    ],
    at: Annotated[
        str | None, typer.Option(help="y,x in pixels of the original image; the map's maximum by default.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Output folder of detect: its data set and options are used.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for picture and JSON; muscjax-explain, or one in RUN.")
    ] = None,
    modality: options.Modality = "auto",
    image_backbone: options.ImageBackbone = "texture",
    point_backbone: options.PointBackbone = "fpfh",
    layout: options.Layout = "auto",
    split: options.Split = "test",
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    set_: options.Assignments = None,
    image_size: options.ImageSize = None,
    map_size: options.MapSize = None,
    subsets: options.Subsets = None,
    seed: options.Seed = None,
    memory_budget: options.MemoryBudget = None,
    units: options.Units = "auto",
    clean: options.Clean = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no tables.")] = False,
) -> None:
    """Show why SCAN has its score at one place: matched references, distances, CAE and RsCon.

    All scans of the category are scored again, so it takes as long as detect. With --run, the options
    below are those of the run and cannot be given.
    """
    options.one_of("--modality", modality, options.MODALITIES)
    options.one_of("--units", units, options.UNITS)
    chosen = options.configured(
        preset,
        config,
        set_,
        image_size=image_size,
        map_size=map_size,
        subsets=subsets,
        seed=seed,
        memory_budget=memory_budget,
    )
    if run is not None:
        shared = {"scan", "at", "run", "out", "quiet"}
        for name in sorted(options.given(context) - shared):
            option = "--" + name.strip("_").replace("_", "-")
            raise InputError(f"{option}: the run in {run} has its own; leave it out, or leave --run out")
    pixel = None if at is None else _pixel(at)

    from rich.console import Console

    from muscjax import outputs, runtime
    from muscjax.console import watch
    from muscjax.explain import files, picture, tables
    from muscjax.requests import Request, recorded

    if run is not None:
        recorded(run)  # before its folder is taken for one to write into
    folder = outputs.open_output(out or run or Path("muscjax-explain"))
    request = Request(
        path=Path(),
        out=folder,
        layout=layout,
        split=split,
        modality=modality,  # pyright: ignore[reportArgumentType] (checked above)
        image_backbone=image_backbone,
        point_backbone=point_backbone,
        units=units,  # pyright: ignore[reportArgumentType]
        clean=clean,
    )
    runtime.prepare()
    with watch(Console(stderr=True), quiet=quiet) as observe:
        explained = files.explain_scan(scan, pixel, run=run, request=request, config=chosen, observe=observe)
    if out is None and run is not None:
        folder = outputs.inside(run, "explain", explained.stem, "")
    written = files.write(folder, explained)
    if quiet:
        return
    console = Console()
    tables.print_explanation(console, explained)
    missing = picture.available()
    if missing is not None:
        console.print(missing, markup=False, highlight=False, soft_wrap=True)
    for path in written:
        console.print(f"written: {path}", markup=False, emoji=False, highlight=False, soft_wrap=True)


def _pixel(text: str) -> tuple[int, int]:
    """``"120,88"`` as (120, 88)."""
    try:
        y, x = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--at {text!r}: expected y,x, two whole numbers such as 120,88") from None
    return y, x
