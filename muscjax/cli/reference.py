"""``muscjax reference``: the kept scans that ``detect --reference`` scores new ones against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from muscjax.cli import options
from muscjax.errors import InputError

reference = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Keep scans of a line, so that new ones are scored against them: detect PATH --reference STORE.",
)

Store = Annotated[Path, typer.Argument(help="Folder of the reference set.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no lines.")]


@reference.command()
def add(
    context: typer.Context,
    store: Store,
    path: Annotated[Path, typer.Argument(help="The scans: a category, or a folder of images.")],
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
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Then score all kept scans by each other, as the verb does.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Keep the scans of PATH in STORE, which is made where there is none.

    A store that is there has its own options; those below may only repeat them. Scans that are kept already
    are passed over.
    """
    options.one_of("--modality", modality, options.MODALITIES)
    options.one_of("--units", units, options.UNITS)
    asked: dict[str, Any] = {
        "modality": modality,
        "image_backbone": image_backbone,
        "point_backbone": point_backbone,
        "units": units,
        "clean": clean,
    }
    base = None
    if (store / "reference.json").exists():
        asked, base = options.of_store(store, context, asked)
    chosen = options.configured(
        preset, config, set_, image_size=image_size, map_size=map_size, memory_budget=memory_budget, base=base
    )

    from rich.console import Console

    from muscjax import reference as keeping
    from muscjax import runtime
    from muscjax.console import watch
    from muscjax.requests import Request

    runtime.prepare()
    request = Request(path=path, out=store, layout=layout, category=category, split=split, **asked)
    with watch(Console(stderr=True), quiet=quiet) as observe:
        added = keeping.add(store, request, chosen, observe)
        kept = added.kept
        if rescore:
            kept, _ = keeping.rescore(store, observe, memory_budget=chosen.run.memory_budget)
    if quiet:
        return
    known = f", {added.known} were there already" if added.known else ""
    typer.echo(f"added {len(added.new)} scans{known}: {store} keeps {len(kept)}")
    if kept.stale:
        typer.echo(f"next: muscjax reference rescore {store}, when all scans are added")


@reference.command()
def prune(
    store: Store,
    keep: Annotated[int | None, typer.Option(help="How many scans stay, the newest.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Name of a scan that goes; repeatable.")] = None,
    quiet: Quiet = False,
) -> None:
    """Take scans out of STORE: all but the newest --keep, or those named by --drop."""
    if (keep is None) == (not drop):
        raise InputError("reference prune: give either --keep or --drop")
    from muscjax import reference as keeping

    kept, gone = keeping.prune(store, keep=keep, drop=drop or ())
    if quiet:
        return
    typer.echo(f"took out {len(gone)} scans: {store} keeps {len(kept)}")
    for line in keeping.remarks(kept):
        typer.echo(line)


@reference.command()
def info(
    store: Store,
    scans: Annotated[bool, typer.Option("--scans", help="List the kept scans with their scores.")] = False,
    examine: Annotated[
        bool, typer.Option("--examine", help="Read all of it in a process that may die: a store of others.")
    ] = False,
) -> None:
    """What STORE keeps, what it was made with, and whether its frozen numbers are of this set."""
    from muscjax import reference as keeping

    kept = keeping.open_kept(store)
    if examine:
        keeping.examine(kept)
    for line in keeping.told(kept, scans=scans):
        typer.echo(line)


@reference.command()
def rescore(
    store: Store,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores.csv and the maps of the kept scans.")
    ] = None,
    memory_budget: options.MemoryBudget = None,
    quiet: Quiet = False,
) -> None:
    """Score the kept scans by each other, as detect would, and freeze scale, neighbours and threshold."""
    from rich.console import Console

    from muscjax import config, outputs, runtime
    from muscjax import reference as keeping
    from muscjax.console import watch

    budget = None if memory_budget is None else config.parse_bytes(memory_budget)
    if out is not None:
        outputs.open_output(out)
    runtime.prepare()
    with watch(Console(stderr=True), quiet=quiet) as observe:
        kept, detection = keeping.rescore(store, observe, memory_budget=budget)
        if out is not None:
            keeping.write(out, kept, detection)
    if quiet:
        return
    for line in keeping.told(kept):
        typer.echo(line)
    if out is not None:
        typer.echo(f"results: {out}")
