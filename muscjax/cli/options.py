"""Options that several verbs share: what to read, and the configuration of the method."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muscjax.errors import InputError
from muscjax.names import LAYOUT_HELP

if TYPE_CHECKING:
    from muscjax.config import Config

Modality = Annotated[str, typer.Option(help="auto, image, points or both.")]
ImageBackbone = Annotated[str, typer.Option(help="texture (no weights), a converted file or a name.")]
PointBackbone = Annotated[str, typer.Option(help="fpfh (no weights), a converted file or a name.")]
Layout = Annotated[str, typer.Option(help=LAYOUT_HELP)]
Category = Annotated[str | None, typer.Option(help="One category of the data set; all by default.")]
Split = Annotated[str, typer.Option(help="Folder of the scans in layouts with splits.")]
Preset = Annotated[str | None, typer.Option(help="released (default), paper or muscjax.")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file with a table per stage.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="One field, such as cae.confidence=false; repeatable.")
]
ImageSize = Annotated[int | None, typer.Option(help="Side of the backbone's input, pixels.")]
MapSize = Annotated[int | None, typer.Option(help="Side of maps, masks and XYZ, pixels.")]
Subsets = Annotated[int | None, typer.Option(help="Parts that are scored apart.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the division into parts.")]
MemoryBudget = Annotated[str | None, typer.Option(help="Such as 4GiB.")]
FalseAlarms = Annotated[
    float | None, typer.Option(help="Share of normal scans that may be called defective; 0.05.")
]
Candidates = Annotated[
    str | None,
    typer.Option(
        help="all, or window:R: nearest of the patches R rows and columns away, for aligned products."
    ),
]
Units = Annotated[str, typer.Option(help="Of the XYZ files: m, mm or auto.")]
Clean = Annotated[bool, typer.Option(help="Remove the ground plane and outliers of XYZ scans.")]

MODALITIES = ("auto", "image", "points", "both")
UNITS = ("auto", "m", "mm")


def one_of(option: str, value: str, choices: Iterable[str]) -> None:
    """Nothing, or InputError where the value is no choice."""
    if value not in choices:
        raise InputError(f"{option}: found {value!r}, expected one of {', '.join(choices)}")


def configured(
    preset: str | None,
    config: Path | None,
    assignments: list[str] | None,
    *,
    image_size: int | None = None,
    map_size: int | None = None,
    subsets: int | None = None,
    seed: int | None = None,
    memory_budget: str | None = None,
    false_alarm_rate: float | None = None,
    candidates: str | None = None,
    base: Config | None = None,
) -> Config:
    """The configuration of a command line; ``--set`` has the last word.

    base: what stands where neither ``--preset`` nor ``--config`` says anything; None: ``released``.

    Raises:
        InputError: an unknown preset, file, stage or field, or both ``--preset`` and ``--config``.
    """
    from muscjax import config as configuration

    if config and preset:
        raise InputError("--preset and --config: give one of them; a file may name its preset")
    if config:
        chosen = configuration.from_toml(config)
    else:
        chosen = base if base is not None and not preset else configuration.preset(preset or "released")
    if base is not None:  # the window of a store is that of its first scans, whatever preset is named again
        kept = {"window": base.input.window, "window_side": base.input.window_side}
        chosen = dataclasses.replace(chosen, input=dataclasses.replace(chosen.input, **kept))
    short = {
        "input.image_size": image_size,
        "input.map_size": map_size,
        "run.subsets": subsets,
        "run.seed": seed,
        "run.memory_budget": None if memory_budget is None else configuration.parse_bytes(memory_budget),
        "decision.false_alarm_rate": false_alarm_rate,
        "scoring.window": None if candidates is None else _window(candidates),
    }
    given = [f"{field}={value}" for field, value in short.items() if value is not None]
    return configuration.override(chosen, *given, *(assignments or ()))


def _window(candidates: str) -> str:
    """``all`` or ``window:R`` as ``scoring.window``."""
    kind, _, radius = candidates.partition(":")
    if candidates == "all":
        return "none"
    if kind != "window" or not radius.isdecimal():
        raise InputError(f"--candidates: found {candidates!r}, expected all or window:R, such as window:2")
    return radius


def given(context: typer.Context) -> set[str]:
    """The parameters of the verb that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def of_store(folder: Path, context: typer.Context, asked: dict[str, Any]) -> tuple[dict[str, Any], Config]:
    """The options ``asked`` as the reference store in ``folder`` has them where the command line is silent.

    Returns:
        The options, and the configuration that the store was made with.
    """
    from muscjax import reference

    stored, base = reference.defaults(folder)
    here = given(context)
    return {name: value if name in here else stored.get(name, value) for name, value in asked.items()}, base
