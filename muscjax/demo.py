"""A synthetic line from nothing to a report: what ``muscjax demo`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from muscjax import datasets, metrics, outputs
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.datasets import Scan, synthetic
from muscjax.evaluate import foreground
from muscjax.requests import Outcome, Request
from muscjax.run import run

if TYPE_CHECKING:
    from rich.console import Console

KINDS = ("image", "depth", "both")  # what shows a defect
MODALITIES = ("image", "points", "both")


@dataclasses.dataclass(frozen=True)
class Row:
    """One modality on the line, or maps that know nothing but where the object is."""

    modality: str
    image_auroc: float | None
    pixel_ap: float | None  # over all scans, the defects of every kind pooled
    hit_rate: float | None
    ap_by_kind: dict[str, float | None]  # over the good scans and those with defects of the kind
    hit_by_kind: dict[str, float | None]


def demo(
    out: Path, *, part: str, scans: int, defective: float, seed: int, config: Config, observe: Observer
) -> list[Row]:
    """Render a line, score it by image, by points and by both, and write the results below ``out``.

    Everything lies in ``out/line`` (the scans) and ``out/<modality>`` (maps, tables and report).

    Raises:
        InputError: an unknown part, options out of range, or a folder that cannot be written.
    """
    outputs.open_output(out)
    observe("rendering", 0, 1)
    line = synthetic.write_line(out / "line", part=part, scans=scans, defective=defective, seed=seed)
    observe("rendering", 1, 1)
    rows = []
    for modality in MODALITIES:
        request = Request(path=line, out=out / modality, modality=modality)
        (outcome,) = run(request, config, observe)
        rows.append(row(modality, outcome, out / modality))
    return [*rows, yardstick(outcome)]


def row(modality: str, outcome: Outcome, out: Path) -> Row:
    """Metrics of one run of a synthetic line, for all defects and for each kind alone, at source size."""
    import tifffile

    scans = outcome.dataset.scans
    maps = [tifffile.imread(outputs.map_path(out, scan.name)) for scan in scans]
    image = (outcome.summary or {}).get("image") or {}
    return _measured(modality, scans, maps, image.get("auroc"))


def yardstick(outcome: Outcome) -> Row:
    """The same metrics of the blurred object masks."""
    scans = outcome.dataset.scans
    inside = [_known(foreground(scan)) for scan in scans]
    maps = metrics.blurred_mask(inside)
    labels = np.asarray([scan.label for scan in scans])
    auroc = metrics.image_metrics(labels, np.asarray([m.max() for m in maps]))["auroc"]
    return _measured("blurred mask", scans, maps, auroc)


def _measured(name: str, scans: Sequence[Scan], maps: Sequence[np.ndarray], auroc: float | None) -> Row:
    masks = [_known(datasets.load_truth(scan)) for scan in scans]

    def part(of: Callable[..., float | None], wanted: tuple[str, ...]) -> float | None:
        chosen = [i for i, scan in enumerate(scans) if _kind(scan) in ("good", *wanted)]
        return of([masks[i] for i in chosen], [maps[i] for i in chosen])

    def average_precision(truth: list[np.ndarray], found: list[np.ndarray]) -> float | None:
        return metrics.pixel_metrics(truth, found)["ap"]

    return Row(
        modality=name,
        image_auroc=auroc,
        pixel_ap=part(average_precision, KINDS),
        hit_rate=part(metrics.hit_rate, KINDS),
        ap_by_kind={kind: part(average_precision, (kind,)) for kind in KINDS},
        hit_by_kind={kind: part(metrics.hit_rate, (kind,)) for kind in KINDS},
    )


def _kind(scan: Scan) -> str:
    return synthetic.DEFECTS.get(scan.defect, "good")


def _known(mask: np.ndarray | None) -> np.ndarray:
    assert mask is not None
    return mask


def print_rows(console: Console, rows: list[Row]) -> None:
    """One table: pixel AP and hit rate per modality, for all defects and by what shows them."""
    from rich import box
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("%\nscored by")
    table.add_column("image\nAUROC", justify="right")
    groups = ("all", *KINDS)
    titles = {"all": "all", "image": "colour only", "depth": "depth only", "both": "both"}
    for group in groups:
        table.add_column(f"{titles[group]}\npixel AP", justify="right")
        table.add_column("\nhit", justify="right")
    for entry in rows:
        cells = [percent(entry.image_auroc), percent(entry.pixel_ap), percent(entry.hit_rate)]
        for kind in KINDS:
            cells += [percent(entry.ap_by_kind[kind]), percent(entry.hit_by_kind[kind])]
        table.add_row(entry.modality, *cells, style=None if entry.modality in MODALITIES else "dim")
    console.print(table)
    console.print(
        "pixel AP: average precision of the heat maps; hit: scans whose hottest pixel is on their defect. "
        "blurred mask: maps that know where the object is and nothing else.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
