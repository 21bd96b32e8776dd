"""``muscjax detect``: a data set to heat maps, a ranked list and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muscjax.errors import InputError


def detect(
    path: Annotated[Path, typer.Argument(help="A category, a folder of categories, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for maps, overlays, scores and metrics.")] = Path(
        "muscjax-out"
    ),
    modality: Annotated[str, typer.Option(help="auto, image, points or both.")] = "auto",
    image_backbone: Annotated[
        str, typer.Option(help="texture (no weights), a converted file or a name.")
    ] = "texture",
    point_backbone: Annotated[
        str, typer.Option(help="fpfh (no weights), a converted file or a name.")
    ] = "fpfh",
    layout: Annotated[str, typer.Option(help="auto, mvtec3d, mvtec or folder.")] = "auto",
    category: Annotated[
        str | None, typer.Option(help="One category of the data set; all by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Folder of the scans in layouts with splits.")] = "test",
    preset: Annotated[str | None, typer.Option(help="released (default) or paper.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with a table per stage.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One field, such as cae.confidence=false; repeatable.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the backbone's input, pixels.")] = None,
    map_size: Annotated[int | None, typer.Option(help="Side of maps, masks and XYZ, pixels.")] = None,
    metric_size: Annotated[str, typer.Option(help="working or original.")] = "working",
    subsets: Annotated[int | None, typer.Option(help="Parts that are scored apart.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the division into parts.")] = None,
    memory_budget: Annotated[str | None, typer.Option(help="Such as 4GiB.")] = None,
    units: Annotated[str, typer.Option(help="Of the XYZ files: m, mm or auto.")] = "auto",
    clean: Annotated[bool, typer.Option(help="Remove the ground plane and outliers of XYZ scans.")] = True,
    overlays: Annotated[bool, typer.Option(help="Write a picture per scan.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no table.")] = False,
) -> None:
    """Score every scan of PATH by all the others and write heat maps and a ranked list."""
    for name, value, choices in (
        ("--modality", modality, ("auto", "image", "points", "both")),
        ("--metric-size", metric_size, ("working", "original")),
        ("--units", units, ("auto", "m", "mm")),
    ):
        if value not in choices:
            raise InputError(f"{name}: found {value!r}, expected one of {', '.join(choices)}")
    from muscjax import config as configuration

    chosen = configuration.from_toml(config) if config else configuration.preset(preset or "released")
    if config and preset:
        raise InputError("--preset and --config: give one of them; a file may name its preset")
    short = {
        "input.image_size": image_size,
        "input.map_size": map_size,
        "run.subsets": subsets,
        "run.seed": seed,
        "run.memory_budget": None if memory_budget is None else configuration.parse_bytes(memory_budget),
    }
    assignments = [f"{field}={value}" for field, value in short.items() if value is not None]
    chosen = configuration.override(chosen, *assignments, *(set_ or ()))

    from rich.console import Console

    from muscjax import outputs, runtime
    from muscjax.console import watch
    from muscjax.requests import Request
    from muscjax.run import run

    runtime.prepare()
    request = Request(
        path=path,
        out=out,
        layout=layout,
        category=category,
        split=split,
        modality=modality,  # pyright: ignore[reportArgumentType] (checked above)
        image_backbone=image_backbone,
        point_backbone=point_backbone,
        units=units,  # pyright: ignore[reportArgumentType]
        clean=clean,
        metric_size=metric_size,  # pyright: ignore[reportArgumentType]
        overlays=overlays,
    )
    with watch(Console(stderr=True), quiet=quiet) as observe:
        outcomes = run(request, chosen, observe)
    if quiet:
        return
    console = Console()
    summaries = {o.dataset.category: o.summary for o in outcomes if o.summary is not None}
    if summaries:
        outputs.print_metrics(console, summaries)
    for outcome in outcomes:
        top = sorted(zip(-outcome.scores, outcome.dataset.scans, strict=True), key=lambda pair: pair[0])[:3]
        names = ", ".join(scan.name for _, scan in top)
        console.print(f"most anomalous: {names}", markup=False, emoji=False, highlight=False, soft_wrap=True)
    console.print(f"results: {out}", markup=False, emoji=False, highlight=False, soft_wrap=True)
