"""``muscjax detect``: a data set to heat maps, a ranked list and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from muscjax.cli import options
from muscjax.errors import InputError


def detect(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A category, a folder of categories, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for maps, overlays, scores and metrics.")] = Path(
        "muscjax-out"
    ),
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
    metric_size: Annotated[str, typer.Option(help="working or original.")] = "working",
    subsets: options.Subsets = None,
    seed: options.Seed = None,
    memory_budget: options.MemoryBudget = None,
    false_alarm_rate: options.FalseAlarms = None,
    candidates: options.Candidates = None,
    units: options.Units = "auto",
    clean: options.Clean = True,
    overlays: Annotated[bool, typer.Option(help="Write a picture per scan.")] = True,
    reference: Annotated[
        Path | None,
        typer.Option(help="Score against this kept set, see muscjax reference, and with its options."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep the features in this folder; a run that finds them goes on.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="Devices of this host that score; all by default.")
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One of many processes, all with the same options.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, where no cluster says it.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many there are.")] = None,
    process: Annotated[int | None, typer.Option(help="Number of this one, from 0.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no table.")] = False,
) -> None:
    """Score every scan of PATH by all the others and write heat maps and a ranked list.

    With --reference, every scan is scored by the kept scans alone, however many there are in PATH.
    With --distributed, PATH is the same on all hosts, and process 0 writes the results.
    """
    options.one_of("--modality", modality, options.MODALITIES)
    options.one_of("--metric-size", metric_size, ("working", "original"))
    options.one_of("--units", units, options.UNITS)
    asked: dict[str, Any] = {
        "modality": modality,
        "image_backbone": image_backbone,
        "point_backbone": point_backbone,
        "units": units,
        "clean": clean,
    }
    base = None
    if reference is not None:
        asked, base = options.of_store(reference, context, asked)
    chosen = options.configured(
        preset,
        config,
        set_,
        image_size=image_size,
        map_size=map_size,
        subsets=subsets,
        seed=seed,
        memory_budget=memory_budget,
        false_alarm_rate=false_alarm_rate,
        candidates=candidates,
        base=base,
    )

    from rich.console import Console

    from muscjax import parallel, results, runtime, tabulate
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
        metric_size=metric_size,  # pyright: ignore[reportArgumentType] (checked above)
        overlays=overlays,
        reference=reference,
        store=store,
        **asked,
    )
    if distributed:
        from muscjax import team
        from muscjax.distributed import run as run_distributed

        if reference is not None:
            raise InputError("--reference: new scans need no other process; run it on parts of PATH instead")
        if devices is not None:
            raise InputError("--devices: a distributed run uses those that each process sees; leave it out")
        team.join(coordinator, processes, process)
        quiet = quiet or team.number() > 0
        with watch(Console(stderr=True), quiet=quiet) as observe:
            outcomes = run_distributed(request, chosen, observe)
    else:
        if any(value is not None for value in (coordinator, processes, process)):
            raise InputError("--coordinator, --processes and --process: they belong to --distributed")
        mesh = parallel.mesh_of(runtime.local_devices(devices))
        with watch(Console(stderr=True), quiet=quiet) as observe:
            outcomes = run(request, chosen, observe, mesh=mesh)
    if quiet:
        return
    console = Console()
    summaries = {o.dataset.category: o.summary for o in outcomes if o.summary is not None}
    if summaries:
        beside, why_not = results.beside(outcomes, request)
        tabulate.print_metrics(console, summaries, beside, notes=[why_not] if why_not else ())
    for outcome in outcomes:
        top = sorted(zip(-outcome.scores, outcome.dataset.scans, strict=True), key=lambda pair: pair[0])[:3]
        names = ", ".join(scan.name for _, scan in top)
        if outcome.decision.pred_label is not None:
            called = f"called defective: {int(outcome.decision.pred_label.sum())} of {len(outcome.scores)}"
            alarms = f"expected false alarms {outcome.decision.expected_false_alarms:.1f}"
            console.print(f"{outcome.dataset.category}: {called} ({alarms})", markup=False, highlight=False)
        console.print(f"most anomalous: {names}", markup=False, emoji=False, highlight=False, soft_wrap=True)
    console.print(f"results: {out}", markup=False, emoji=False, highlight=False, soft_wrap=True)
