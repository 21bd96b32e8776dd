"""The command line: verbs that parse, call and print. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from muscjax.errors import InputError

_TOO_LARGE = "out of memory: lower --memory-budget, --image-size or ipg.groups, or score --subsets"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Zero-shot anomaly detection of industrial scans by mutual scoring (MuSc-V2); no labels.",
)


@app.callback()
def _root() -> None:
    pass


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="A data set to examine; none: this machine only.")
    ] = None,
    layout: Annotated[str, typer.Option(help="auto, mvtec3d, mvtec or folder.")] = "auto",
    category: Annotated[
        str | None, typer.Option(help="One category of the data set; all by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Folder of the scans in layouts with splits.")] = "test",
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


@app.command()
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


@app.command()
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


def main() -> None:
    """Entry point: bad input ends in one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        _stop(str(error))
    except MemoryError:
        _stop(_TOO_LARGE)
    except RuntimeError as error:  # XLA's own errors are RuntimeErrors with a status in front
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _stop(_TOO_LARGE)


def _stop(message: str) -> NoReturn:
    typer.echo(f"muscjax: {message}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
