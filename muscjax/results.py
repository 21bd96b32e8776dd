"""What a run leaves on disk: maps and pictures per scan, then tables, record and report of the set."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import datasets, metrics, outputs, published, report, tabulate
from muscjax import decision as decided
from muscjax.colormap import depth_picture, heat_limits
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.datasets import Prepared, Scan
from muscjax.decision import Decision
from muscjax.errors import InputError
from muscjax.evaluate import foreground
from muscjax.files import writing
from muscjax.inputs import Inputs
from muscjax.requests import Outcome, Request


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in a category, on the host."""

    anomaly_maps: np.ndarray  # (N, H, W) at working size
    scores: np.ndarray  # (N,) after RsCon
    before_rscon: np.ndarray  # (N,) maxima of the maps
    decision: Decision
    neighbours: tuple[np.ndarray, np.ndarray]  # (N, K) rows and weights, `muscjax.detection.neighbours`
    limits: tuple[float, float] | None = None  # scores of no heat and of full heat; None: from these maps


def always(path: Path, write: Callable[[], None]) -> None:
    """``write`` the file at ``path``, whatever is there."""
    del path
    write()


def write_scans(
    loaded: Inputs,
    found: Found,
    request: Request,
    observe: Observer,
    *,
    once: Callable[[Path, Callable[[], None]], None] = always,
) -> tuple[list[np.ndarray], tuple[report.Card, ...]]:
    """Each scan's map and mask at its own size, and the picture under its heat, one scale for the set.

    What an earlier run left of the category, and this one did not write, goes.

    Args:
        once: is given each file's path and what writes it, and may know that it is there already.

    Returns:
        The maps at source size where ``metric_size`` asks for them, else an empty list; and the cards of the
        report, where its extra is installed.
    """
    import jax

    from muscjax import maps

    scans, out = loaded.dataset.scans, request.out
    to_source = jax.jit(maps.to_source, static_argnums=1)
    limits = found.limits or heat_limits(list(found.anomaly_maps))
    with_cards = report.available() is None
    side = report.picture_side(len(scans))
    ranks = np.empty(len(scans), int)
    ranks[np.argsort(-found.scores, kind="stable")] = np.arange(1, len(scans) + 1)
    mine: list[Path] = []

    def put(path: Path, write: Callable[[], None]) -> None:
        once(path, write)
        mine.append(path)

    def one(position: int) -> tuple[np.ndarray, report.Card | None]:
        scan, item = scans[position], loaded.prepared[position]
        full = np.asarray(to_source(found.anomaly_maps[position], item.frame))
        place = outputs.map_path(out, scan.name)
        put(place, lambda: outputs.write_map(place, full))
        decision = found.decision
        called = None if decision.pred_label is None else bool(decision.pred_label[position])
        if called is not None and decision.pixel_threshold is not None:
            peak = float(found.before_rscon[position])
            mask = decided.mask(full, called, decision.pixel_threshold, peak=peak)
            of_mask = outputs.mask_path(out, scan.name)
            put(of_mask, lambda: outputs.write_mask(of_mask, mask))
        picture = _photograph(scan, needed=loaded.kind != "points")
        depth = None
        if scan.xyz is not None and loaded.kind != "image":
            depth = depth_picture(datasets.load_scan_xyz(scan, units=request.units))
        if request.overlays:
            shown = picture if picture is not None else _fitted(depth, full.shape)
            over = outputs.overlay_path(out, scan.name)
            put(over, lambda: outputs.write_overlay(over, shown, full, limits=limits))
        if not with_cards:
            return full, None
        points, places = _cloud(item)
        of_report = report.ReportScan(
            name=scan.name,
            anomaly_map=full,
            score=float(found.scores[position]),
            score_before=float(found.before_rscon[position]),
            rank=int(ranks[position]),
            image=picture,
            depth=depth,
            mask=datasets.load_truth(scan),
            category=scan.category,
            label=scan.label,
            defect=scan.defect or None,
            points=points,
            places=places,
            neighbours=[
                (scans[other].name, float(weight))
                for other, weight in zip(*(side[position] for side in found.neighbours), strict=True)
                if other != position and weight != 0
            ],
            pred_label=called,
        )
        return full, report.encode(of_report, limits=limits, side=side)

    kept, cards = [], []
    for done, (full, card) in enumerate(datasets.prefetch(one, range(len(scans))), start=1):
        observe("writing", done, len(scans))
        if request.metric_size == "original":
            kept.append(full)
        if card is not None:
            cards.append(card)
    _remove_others(out, loaded.dataset.category, mine)
    return kept, tuple(cards)


def _remove_others(out: Path, category: str, mine: Iterable[Path]) -> None:
    """Remove maps, masks and overlays of the category but ``mine``: they would be taken for this run's.

    Files are told apart by what they are: a disk may list a name in other letters than it was given.
    """
    known = {_file(path) for path in mine}
    for kind, suffix in (("maps", ".tiff"), ("masks", ".png"), ("overlays", ".png")):
        top = out / kind / category
        if not category or top.is_symlink() or top.parent.is_symlink():
            continue
        for folder, _, names in os.walk(top):
            for path in (Path(folder, name) for name in names if name.endswith(suffix)):
                if not path.name.startswith(".") and _file(path) not in known:
                    with writing(path):
                        path.unlink(missing_ok=True)


def _file(path: Path) -> tuple[int, int]:
    with writing(path):
        about = path.lstat()
    return about.st_dev, about.st_ino


def _cloud(item: Prepared) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Points in metres and where they lie in the picture, for the report's 3D view."""
    if item.cloud is None:
        return None, None
    valid = np.asarray(item.cloud.valid)
    pixel = np.asarray(item.cloud.pixel)[valid]
    return np.asarray(item.cloud.points_m)[valid], report.places(pixel, item.frame)


def _photograph(scan: Scan, *, needed: bool) -> np.ndarray | None:
    """The scan's image; a broken one stops nothing where the run did not use it."""
    if scan.image is None:
        return None
    try:
        return datasets.load_image(scan.image)
    except InputError:
        if needed:
            raise
        return None


def _fitted(picture: np.ndarray | None, hw: tuple[int, ...]) -> np.ndarray:
    """A picture of the sensor's grid at the size of the map."""
    from PIL import Image

    assert picture is not None
    return np.asarray(Image.fromarray(picture).resize((hw[1], hw[0]), Image.Resampling.BILINEAR))


def evaluate(
    loaded: Inputs, found: Found, source_maps: Sequence[np.ndarray], request: Request
) -> dict[str, Any] | None:
    """``metrics.summary`` where every scan's label is known; pixel metrics where every mask is."""
    scans, prepared, scores = loaded.dataset.scans, loaded.prepared, found.scores
    if any(scan.label is None for scan in scans):
        return None
    labels = np.asarray([scan.label for scan in scans])
    original = request.metric_size == "original"
    masks = [
        datasets.load_truth(scan) if original else item.mask
        for scan, item in zip(scans, prepared, strict=True)
    ]
    if any(mask is None for mask in masks):
        return metrics.summary(labels=labels, scores=scores)
    return metrics.summary(
        labels=labels,
        scores=scores,
        masks=[mask for mask in masks if mask is not None],
        maps=list(source_maps) if original else list(found.anomaly_maps),
        foreground=_foregrounds(scans, prepared, request),
    )


def _foregrounds(
    scans: Sequence[Scan], prepared: Sequence[Prepared], request: Request
) -> list[np.ndarray] | None:
    """Pixels of the object at the size of the metrics; None where a scan's are unknown.

    A run on images alone takes them from the depth too, where there is any, for the yardsticks' sake.
    """

    def one(position: int) -> np.ndarray | None:
        item = prepared[position]
        original = request.metric_size == "original"
        if item.foreground is not None and not original:
            return item.foreground
        size, crop = (None, None) if original else (item.frame.working_hw[0], item.frame.crop)
        options: dict[str, Any] = {"clean": request.clean, "units": request.units}
        try:
            return foreground(scans[position], map_size=size, crop=crop, **options)
        except InputError:
            return None  # a broken XYZ map stops nothing where the run did not use it

    found = [mask for mask in datasets.prefetch(one, range(len(scans))) if mask is not None]
    return found if len(found) == len(scans) else None


def beside(outcomes: Sequence[Outcome], request: Request) -> tuple[published.Beside | None, str]:
    """The published numbers for what was run, and why there are none, one line or ""."""
    sizes = {o.dataset.category: len(o.dataset.scans) for o in outcomes if o.summary is not None}
    kind = outcomes[0].modality
    if any(o.modality != kind for o in outcomes):
        return None, ""
    found = published.beside(sizes, kind, request.image_backbone, request.point_backbone)
    return found, "" if found is not None else published.dataset_of(sizes)[1]


def write_tables(
    out: Path,
    outcomes: Sequence[Outcome],
    request: Request,
    config: Config,
    observe: Observer,
    compiles: dict[str, float],
    notes: Sequence[str],
) -> None:
    """All tables, the run's record and the report, of the categories that are finished so far."""
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        scans = outcome.dataset.scans
        labels = [scan.label for scan in scans]
        paths = [(scan.image or scan.xyz or Path(scan.name)).as_posix() for scan in scans]
        rows += outputs.score_rows(
            paths, outcome.scores, outcome.before_rscon, labels, outcome.decision.pred_label
        )
    outputs.write_scores(out / "scores.csv", rows)
    summaries = {o.dataset.category: o.summary for o in outcomes if o.summary is not None}
    if summaries:
        outputs.write_json(out / "metrics.json", summaries)
        tabulate.write_results(out, summaries, beside(outcomes, request)[0])
    else:  # those of an earlier run in this folder would be taken for this one's
        for name in ("metrics.json", "results.csv", "results.json"):
            with writing(out / name):
                (out / name).unlink(missing_ok=True)
    record = outputs.run_record(
        config,
        seconds=observe.seconds,
        compiles=compiles,
        request=request,
        scans={o.dataset.category: len(o.dataset.scans) for o in outcomes},
        modality={o.dataset.category: o.modality for o in outcomes},
        decision={o.dataset.category: decided.record(o.decision) for o in outcomes},
        notes=list(notes),
        reference=outcomes[0].reference,
    )
    outputs.write_json(out / "run.json", record)
    if report.available() is None:
        apart = config.rscon.enabled and config.decision.score == "map_max"  # else both scores are one
        page = report.Report(
            title=request.path.resolve().name,
            config=config,
            record=record,
            summaries=summaries,
            notes=tuple(notes),
            warnings=[line for o in outcomes for line in warnings(o)],
            thresholds={
                o.dataset.category: o.decision.threshold for o in outcomes if o.decision.threshold is not None
            },
            decided_by="score_before" if apart else "score",
        )
        report.write_report(out / "report.html", page, [card for o in outcomes for card in o.cards])


def warnings(outcome: Outcome) -> list[str]:
    """Why a category's decision is missing or doubtful: one line, or none."""
    warning = outcome.decision.warning
    return [] if warning is None else [f"{outcome.dataset.category}: {warning}"]
