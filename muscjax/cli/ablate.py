"""``muscjax ablate``: the paper's ablations on a user's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muscjax.cli import options


def ablate(
    path: Annotated[Path, typer.Argument(help="A category, or a folder of categories, with labels.")],
    table: Annotated[
        list[str] | None,
        typer.Option(help="III, IV, V, VI, VII, VIII, fig10, fig11 or all (default); repeatable."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for tables, plots and what is kept between calls.")
    ] = Path("muscjax-ablate"),
    modality: options.Modality = "auto",
    image_backbone: options.ImageBackbone = "texture",
    point_backbone: options.PointBackbone = "fpfh",
    layout: options.Layout = "auto",
    category: options.Category = None,
    split: options.Split = "test",
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    set_: options.Assignments = None,
    image_size: options.ImageSize = None,
    map_size: options.MapSize = None,
    memory_budget: options.MemoryBudget = None,
    units: options.Units = "auto",
    clean: options.Clean = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no tables.")] = False,
) -> None:
    """Rerun the paper's ablations (Tables III-VIII, Fig. 10 and 11) on PATH; resumes where it was stopped."""
    options.one_of("--modality", modality, options.MODALITIES)
    options.one_of("--units", units, options.UNITS)
    chosen = options.configured(
        preset, config, set_, image_size=image_size, map_size=map_size, memory_budget=memory_budget
    )

    from rich.console import Console

    from muscjax import runtime
    from muscjax.ablate import runner, show
    from muscjax.console import watch
    from muscjax.requests import Request

    tables = runner.chosen_tables(table or ["all"])
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
    )
    with watch(Console(stderr=True), quiet=quiet) as observe:
        results = runner.run(request, chosen, tables, observe)
    if quiet:
        return
    console = Console()
    for one in tables:
        show.print_table(console, one, [row for row in results if row.table == one.name])
    console.print(f"results: {out}", markup=False, emoji=False, highlight=False, soft_wrap=True)
