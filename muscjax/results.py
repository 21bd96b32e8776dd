"""What a run leaves on disk: maps and pictures per scan, then tables, record and report of the set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import datasets, metrics, outputs, report
from muscjax.colormap import depth_picture, heat_limits
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.datasets import Kind, Prepared, Scan
from muscjax.errors import InputError
from muscjax.requests import Outcome, Request


def write_scans(
    scans: Sequence[Scan],
    prepared: Sequence[Prepared],
    anomaly_maps: np.ndarray,
    scores: np.ndarray,
    before_rscon: np.ndarray,
    kind: Kind,
    request: Request,
    out: Path,
    observe: Observer,
) -> tuple[list[np.ndarray], tuple[report.Card, ...]]:
    """Each scan's map at its own size as TIFF, and the picture under its heat, one colour scale for the set.

    Returns:
        The maps at source size where ``metric_size`` asks for them, else an empty list; and the cards of the
        report, where its extra is installed.
    """
    import jax

    from muscjax import maps

    to_source = jax.jit(maps.to_source, static_argnums=1)
    limits = heat_limits(list(anomaly_maps))
    with_cards = report.available() is None
    side = report.picture_side(len(scans))
    ranks = np.empty(len(scans), int)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scans) + 1)

    def one(position: int) -> tuple[np.ndarray, report.Card | None]:
        scan, frame = scans[position], prepared[position].frame
        full = np.asarray(to_source(anomaly_maps[position], frame))
        outputs.write_map(outputs.map_path(out, scan.name), full)
        picture = _photograph(scan, needed=kind != "points")
        depth = None
        if scan.xyz is not None and kind != "image":
            depth = depth_picture(datasets.load_xyz(scan.xyz, units=request.units))
        if request.overlays:
            shown = picture if picture is not None else _fitted(depth, full.shape)
            outputs.write_overlay(outputs.overlay_path(out, scan.name), shown, full, limits=limits)
        if not with_cards:
            return full, None
        of_report = report.ReportScan(
            name=scan.name,
            anomaly_map=full,
            score=float(scores[position]),
            score_before=float(before_rscon[position]),
            rank=int(ranks[position]),
            image=picture,
            depth=depth,
            mask=datasets.load_truth(scan),
            category=scan.category,
            label=scan.label,
            defect=scan.defect or None,
        )
        return full, report.encode(of_report, limits=limits, side=side)

    kept, cards = [], []
    for done, (full, card) in enumerate(datasets.prefetch(one, range(len(scans))), start=1):
        observe("writing", done, len(scans))
        if request.metric_size == "original":
            kept.append(full)
        if card is not None:
            cards.append(card)
    return kept, tuple(cards)


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
    scans: Sequence[Scan],
    prepared: Sequence[Prepared],
    anomaly_maps: np.ndarray,
    source_maps: Sequence[np.ndarray],
    scores: np.ndarray,
    request: Request,
) -> dict[str, Any] | None:
    """``metrics.summary`` where every scan's label is known; pixel metrics where every mask is."""
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
    foreground = [
        _at_source(item) if original and item.foreground is not None else item.foreground for item in prepared
    ]
    known = all(mask is not None for mask in foreground)
    return metrics.summary(
        labels=labels,
        scores=scores,
        masks=[mask for mask in masks if mask is not None],
        maps=list(source_maps) if original else list(anomaly_maps),
        foreground=[mask for mask in foreground if mask is not None] if known else None,
    )


def _at_source(item: Prepared) -> np.ndarray:
    """The foreground in the geometry of the source."""
    import jax.numpy as jnp

    from muscjax import maps

    assert item.foreground is not None
    return np.asarray(maps.to_source(jnp.asarray(item.foreground, jnp.float32), item.frame)) > 0.5


def write_tables(
    out: Path,
    outcomes: Sequence[Outcome],
    request: Request,
    config: Config,
    observe: Observer,
    compiles: dict[str, float],
    notes: Sequence[str],
) -> None:
    """scores.csv, metrics.json, run.json and report.html of all categories that are finished."""
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        scans = outcome.dataset.scans
        labels = [scan.label for scan in scans]
        paths = [(scan.image or scan.xyz or Path(scan.name)).as_posix() for scan in scans]
        rows += outputs.score_rows(paths, outcome.scores, outcome.before_rscon, labels)
    outputs.write_scores(out / "scores.csv", rows)
    summaries = {o.dataset.category: o.summary for o in outcomes if o.summary is not None}
    if summaries:
        outputs.write_json(out / "metrics.json", summaries)
    record = outputs.run_record(
        config,
        seconds=observe.seconds,
        compiles=compiles,
        request=request,
        scans={o.dataset.category: len(o.dataset.scans) for o in outcomes},
        modality={o.dataset.category: o.modality for o in outcomes},
        notes=list(notes),
    )
    outputs.write_json(out / "run.json", record)
    if report.available() is None:
        page = report.Report(
            title=request.path.resolve().name,
            config=config,
            record=record,
            summaries=summaries,
            notes=tuple(notes),
        )
        report.write_report(out / "report.html", page, [card for o in outcomes for card in o.cards])
