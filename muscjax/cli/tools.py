"""``muscjax doctor``, ``convert`` and ``backbones``: the machine, the data and the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muscjax.cli import options


def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="A data set to examine; none: this machine only.")
    ] = None,
    layout: options.Layout = "auto",
    category: options.Category = None,
    split: options.Split = "test",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars.")] = False,
) -> None:
    """Versions, devices and memory; of a data set, every fault at once and what a run will need."""
    from rich.console import Console

    from muscjax import doctor as examiner
    from muscjax.console import watch

    with watch(Console(stderr=True), quiet=quiet) as observe:
        found = examiner.examine(path, layout=layout, category=category, split=split, progress=observe)
    examiner.print_examination(Console(), found)
    raise typer.Exit(found.exit_code)


def convert(
    src: Annotated[Path, typer.Argument(help="A published checkpoint: .pth (needs torch) or .safetensors.")],
    dest: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    family: Annotated[str | None, typer.Option(help="dino, dinov2, deit, clip or point_mae.")] = None,
) -> None:
    """Convert a checkpoint to the weights file that --image-backbone and --point-backbone read."""
    from weights_convert import convert as run_conversion

    report = run_conversion(src, dest, family=family)
    ignored = f", {len(report.ignored)} keys ignored" if report.ignored else ""
    size = f"{report.parameters / 1e6:.1f} M parameters{ignored}"
    typer.echo(f"{report.path}: {report.family} from {report.layout}, {size}")


def backbones() -> None:
    """List the published backbones: licence, size, cached or not, and where they come from."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from muscjax.backbones import registry

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "for", "parameters", "licence", "cached", "from"):
        table.add_column(heading, overflow="fold")
    for row in registry.table():
        size = f"{row.millions:.1f} M" if row.millions else "-"
        table.add_row(row.name, row.kind, size, row.license, "yes" if row.cached else "no", row.source)
    Console().print(table)
