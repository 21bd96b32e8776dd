"""``muscjax demo`` and ``muscjax synth``: the synthetic product line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the rendered scans and the results.")] = Path(
        "muscjax-demo"
    ),
    part: Annotated[str, typer.Option(help="housing, knob, cap, biscuit, rope or gear.")] = "cap",
    scans: Annotated[int, typer.Option(help="Scans of the line.")] = 48,
    defective: Annotated[float, typer.Option(help="Share of them with a defect.")] = 0.375,
    seed: Annotated[int, typer.Option(help="Another seed, another line.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars.")] = False,
) -> None:
    """Render a synthetic product line, find its defects by image, by points and by both, write a report."""
    from rich.console import Console

    from muscjax import config, runtime
    from muscjax import demo as demonstration
    from muscjax.console import watch

    runtime.prepare()
    with watch(Console(stderr=True), quiet=quiet) as observe:
        rows = demonstration.demo(
            out,
            part=part,
            scans=scans,
            defective=defective,
            seed=seed,
            config=config.released(),
            observe=observe,
        )
    console = Console()
    demonstration.print_rows(console, rows)
    console.print(f"results: {out}", markup=False, emoji=False, highlight=False, soft_wrap=True)


def synth(
    out: Annotated[Path, typer.Option(help="Folder to write OUT/<part> into.")],
    part: Annotated[str, typer.Option(help="housing, knob, cap, biscuit, rope or gear.")] = "cap",
    scans: Annotated[int, typer.Option(help="How many.")] = 200,
    defective: Annotated[float, typer.Option(help="Share of them with a defect.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed, another line.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the scans, pixels.")] = 256,
) -> None:
    """Write a synthetic product line (RGB, XYZ, masks) to disk in the MVTec 3D-AD layout."""
    from muscjax.datasets import synthetic

    typer.echo(synthetic.write_line(out, part=part, scans=scans, defective=defective, seed=seed, size=size))
