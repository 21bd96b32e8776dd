"""What a person is told about a reference store, and the files of its own scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from muscjax import outputs, store
from muscjax.decision import decide
from muscjax.reference.kept import Kept, read_frozen, size_on_disk
from muscjax.reference.line import remarks
from muscjax.reference.origin import config_of
from muscjax.types import Detection


def told(kept: Kept, *, scans: bool = False) -> list[str]:
    """Lines about the store; ``scans``: and one for each scan with its frozen score, the oldest first."""
    origin, config = kept.origin, config_of(kept.origin)
    backbones = [
        f"{name} {origin[side]['name']}"
        for side, name in (("image_backbone", "image"), ("point_backbone", "points"))
        if origin[side] is not None
    ]
    lines = [
        f"{kept.folder}: {len(kept)} scans, {len(kept.parts)} "
        f"{'part' if len(kept.parts) == 1 else 'parts'}, {size_on_disk(kept) / 1e6:.1f} MB",
        f"modality {origin['kind']}, backbones {', '.join(backbones)}, preset {config.preset}, "
        f"image size {config.input.image_size}, map size {origin['map_size']}",
        f"digest {kept.digest}",
    ]
    scores: dict[str, float] = {}
    if kept.frozen is None:
        lines.append(f"frozen numbers: none; muscjax reference rescore {kept.folder} makes them")
    else:
        frozen = read_frozen(kept)
        # On the scale of the threshold, which is what ``decide`` looks at.
        shown = frozen.map_max if config.decision.score == "map_max" else frozen.pred_score
        scores = dict(zip(frozen.contents, shown.tolist(), strict=True))
        decision = decide(frozen.pred_score, frozen.map_max, config=config.decision)
        threshold = "none" if decision.threshold is None else f"{decision.threshold:.4g}"
        lines.append(
            f"frozen numbers: of {len(frozen.contents)} scans, "
            f"{'maxima' if shown is frozen.map_max else 'scores'} {shown.min():.4g} to "
            f"{shown.max():.4g}, threshold {threshold}"
        )
        if decision.warning is not None:
            lines.append(f"threshold: {decision.warning}")
    lines += remarks(kept)
    if scans:
        for name, content in zip(kept.names, kept.contents, strict=True):
            lines.append(f"{name}  {scores[content]:.4g}" if content in scores else f"{name}  not scored")
    return lines


def examine(kept: Kept) -> None:
    """Read all of a store that somebody else made, in a process that may die of it.

    Raises:
        InputError: a part that is incomplete, damaged or hostile.
    """
    folders = [part.store.folder for part in kept.parts]
    if kept.frozen is not None:
        folders.append(kept.folder / kept.frozen["folder"])
    for folder in folders:
        store.examine(folder)


def write(out: Path, kept: Kept, detection: Detection) -> None:
    """scores.csv and the maps at working size of the kept scans, as ``rescore`` found them."""
    scores, highest = np.asarray(detection.pred_score), np.asarray(detection.map_max)
    decision = decide(scores, highest, config=config_of(kept.origin).decision)
    names = [kept.names[i] for i in kept.order]
    rows = outputs.score_rows(names, scores, highest, pred_labels=decision.pred_label)
    outputs.write_scores(out / "scores.csv", rows)
    for name, anomaly_map in zip(names, np.asarray(detection.anomaly_map), strict=True):
        outputs.write_map(outputs.map_path(out, name), anomaly_map)
