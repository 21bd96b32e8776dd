"""How good the scores and the maps are, where ground truth exists: AUROC, F1-max, AP and two AUPROs.

NumPy on the host; every pixel is sorted once for all metrics (`muscjax.curves`). Maps may come as one array
(N, H, W) or as a sequence of arrays (H_i, W_i) of different sizes. A mask's non-zero pixels are defect.

A metric that the data do not define (no defect, nothing but defects) is ``None``, and ``"reasons"`` of the
result says why in words. No function returns NaN.

The two AUPROs (`aupro`) differ by a definition, not by an error: ``musc`` reproduces the published tables,
``mvtec`` is the one to recommend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from muscjax.curves import (
    FORMULAS,
    MUSC_STEPS,
    Curve,
    Stack,
    curve_of,
    even_weights,
    finite,
    hits_per_scan,
    pairs,
    pixel_curve,
)
from muscjax.errors import InputError
from muscjax.intervals import bootstrap, chance_band

Metrics = dict[str, Any]

PIXEL = ("auroc", "f1_max", "ap", "aupro_musc", "aupro_mvtec")
IMAGE = ("auroc", "f1_max", "ap")

__all__ = [
    "IMAGE",
    "MUSC_STEPS",
    "PIXEL",
    "Metrics",
    "aupro",
    "blurred_mask",
    "bootstrap",
    "chance_band",
    "foreground_ap",
    "foreground_mask",
    "hit_rate",
    "image_metrics",
    "picture_centre",
    "pixel_metrics",
    "summary",
]


def image_metrics(labels: np.ndarray, scores: np.ndarray) -> Metrics:
    """Detection of defective scans.

    labels: (N,), non-zero is defective. scores: (N,), higher is more anomalous.
    Returns ``{"auroc", "f1_max", "ap", "reasons"}``; shares between 0 and 1, or ``None`` with the reason.
    Raises InputError for other shapes and for scores that are not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or scores.shape != labels.shape:
        raise InputError(
            f"metrics: labels {labels.shape} and scores {scores.shape}, expected one of each per scan"
        )
    if labels.size == 0:
        raise InputError("metrics: no scores, expected at least one scan")
    finite("scores", scores)
    defective = labels != 0
    curve = curve_of(scores[~defective], scores[defective], even_weights(defective.sum()))
    return _evaluate(curve, IMAGE, "scan", limit=0.3)


def pixel_metrics(masks: Stack, maps: Stack, *, limit: float = 0.3) -> Metrics:
    """Localisation over the pixels of all scans together.

    masks: (N, H, W), non-zero is defect. maps: (N, H, W), higher is more anomalous. ``limit``: the
    false-positive rate up to which both AUPROs integrate.
    Returns ``{"auroc", "f1_max", "ap", "aupro_musc", "aupro_mvtec", "reasons"}``; shares between 0 and 1, or
    ``None`` with the reason. Raises InputError for other shapes and for maps that are not finite.
    """
    return _evaluate(pixel_curve(*pairs(masks, maps)), PIXEL, "pixel", limit=limit)


def aupro(
    masks: Stack, maps: Stack, *, form: Literal["musc", "mvtec"] = "musc", limit: float = 0.3
) -> float | None:
    """Area under the per-region overlap over the false-positive rate, up to ``limit``, between 0 and 1.

    Regions are the 8-connected components of each mask and weigh the same whatever their size.

    * ``musc``, the form of the published tables: thresholds min + i·(max - min)/200 over the whole set,
      i = 0..199, map > threshold; the points with a rate strictly below ``limit`` are kept and their rates
      rescaled to 0...1; nothing is interpolated at the limit. A curve that leaves 0 late gains by it.
    * ``mvtec``: the definition of the authors of MVTec AD and MVTec 3D-AD (Bergmann et al., IJCV 2021 and
      VISAPP 2022): the curve at every distinct score, cut by interpolation exactly at ``limit``, divided by
      it. Their 3D-AD program samples the same curve at 100 thresholds unless told otherwise.

    ``None`` where it is not defined; `pixel_metrics` gives the reason.
    """
    name = f"aupro_{form}"
    if name not in PIXEL:
        raise InputError(f"aupro: form {form!r}, expected 'musc' or 'mvtec'")
    return _evaluate(pixel_curve(*pairs(masks, maps)), (name,), "pixel", limit=limit)[name]


def foreground_ap(masks: Stack, maps: Stack, foreground: Stack) -> float | None:
    """Average precision over the pixels of the object only; ``None`` where none of them is defect.

    foreground: (N, H, W), non-zero is object. Defect pixels off the object do not count.
    """
    masks, maps = pairs(masks, maps)
    inside, _ = pairs(foreground, maps, name="foreground")
    hot = np.concatenate([m[f & t] for t, m, f in zip(masks, maps, inside, strict=True)])
    if hot.size == 0:
        return None
    cold = np.concatenate([m[f & ~t] for t, m, f in zip(masks, maps, inside, strict=True)])
    return _evaluate(curve_of(cold, hot, even_weights(hot.size)), ("ap",), "pixel", limit=0.3)["ap"]


def hit_rate(masks: Stack, maps: Stack) -> float | None:
    """Share of the defective scans whose highest pixel lies on the defect; ``None`` without such scans.

    A scan counts as defective when its mask is not empty. Of several highest pixels each counts its share, so
    that a constant map gets the share of defect pixels and not the luck of the first pixel.
    """
    hits = [h for h in hits_per_scan(*pairs(masks, maps)) if not math.isnan(h)]
    return sum(hits) / len(hits) if hits else None


def foreground_mask(foreground: Stack) -> list[np.ndarray]:
    """Yardstick: 1 on the object, 0 elsewhere. foreground: (N, H, W). Returns N float32 arrays (H, W)."""
    return [(np.asarray(f) != 0).astype(np.float32) for f in foreground]


def blurred_mask(foreground: Stack) -> list[np.ndarray]:
    """The yardstick: maps that know where the object is and nothing else.

    foreground: (N, H, W), non-zero is object. Each mask goes through the same 8-bit Gaussian blur (radius 4)
    as the 3D maps. Returns N float32 arrays (H, W) in 0...1. On scans where the object is a small part of the
    picture these maps reach a high pixel AUROC and AUPRO: what a method adds is the difference to them.
    """
    from PIL import Image, ImageFilter

    blur = ImageFilter.GaussianBlur(4)
    pictures = (Image.fromarray(np.where(np.asarray(f) != 0, 255, 0).astype(np.uint8)) for f in foreground)
    return [np.asarray(p.filter(blur), np.float32) / np.float32(255) for p in pictures]


def picture_centre(maps: Stack) -> list[np.ndarray]:
    """The yardstick where no foreground is known: 1 in the middle of the picture, 0 at its corners.

    maps: only their shapes (H_i, W_i) matter. Products stand in the middle of their pictures, and so do their
    defects. Returns N float32 arrays.
    """
    cached: dict[tuple[int, int], np.ndarray] = {}
    for h, w in {np.asarray(m).shape for m in maps}:
        y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None]
        cached[h, w] = (1.0 - np.sqrt((y * y + x * x) / 2)).astype(np.float32)
    return [cached[np.asarray(m).shape] for m in maps]


def summary(
    *,
    labels: np.ndarray,
    scores: np.ndarray,
    masks: Stack | None = None,
    maps: Stack | None = None,
    foreground: Stack | None = None,
    intervals: bool = True,
) -> Metrics:
    """Everything that is reported about one category, with its yardsticks.

    labels, scores: (N,). masks, maps, foreground: (N, H, W) or sequences of (H_i, W_i). Without masks there
    is no ``pixel`` (``None``) and no yardstick; without a foreground no ``foreground_ap``. ``intervals``: the
    bootstrap over scans, which costs about as much as everything else.
    Returns ``{"scans", "defective", "size", "image", "pixel", "intervals", "yardsticks",
    "chance_band_image_auroc"}``. ``pixel`` also holds ``foreground_ap`` and ``hit_rate``; ``intervals`` is
    what `bootstrap` returns, or ``None``; ``yardsticks`` is a list of ``{"name", "image", "pixel"}``: of
    `foreground_mask` and `blurred_mask`, or of `picture_centre` where no foreground is known; ``size`` is the
    maps' (H, W), or ``None`` where they differ.
    """
    labels = np.asarray(labels)
    defective = int((labels != 0).sum())
    out: Metrics = {
        "scans": int(labels.size),
        "defective": defective,
        "size": None,
        "image": image_metrics(labels, scores),
        "pixel": None,
        "intervals": bootstrap(labels, scores, masks, maps, foreground) if intervals else None,
        "yardsticks": [],
        "chance_band_image_auroc": chance_band(defective, int(labels.size) - defective),
    }
    if masks is None or maps is None:
        return out
    shapes = {np.asarray(m).shape for m in maps}
    out["size"] = shapes.pop() if len(shapes) == 1 else None
    out["pixel"] = _localisation(masks, maps, foreground)
    if foreground is None:
        trivial = {"picture centre": picture_centre(maps)}
    else:
        trivial = {"foreground mask": foreground_mask(foreground), "blurred mask": blurred_mask(foreground)}
    out["yardsticks"] = [
        {
            "name": name,
            "image": image_metrics(labels, np.array([m.max() for m in made])),
            "pixel": _localisation(masks, made, foreground),
        }
        for name, made in trivial.items()
    ]
    return out


def _localisation(masks: Stack, maps: Stack, foreground: Stack | None) -> Metrics:
    out = pixel_metrics(masks, maps)
    reasons = out.pop("reasons")
    out["foreground_ap"] = None if foreground is None else foreground_ap(masks, maps, foreground)
    out["hit_rate"] = hit_rate(masks, maps)
    if out["foreground_ap"] is None:
        why = "no foreground is known" if foreground is None else "no pixel of the object is defect"
        reasons["foreground_ap"] = why
    if out["hit_rate"] is None:
        reasons["hit_rate"] = "no mask marks a defect"
    return {**out, "reasons": reasons}


def _evaluate(curve: Curve, names: Sequence[str], member: str, *, limit: float) -> Metrics:
    if not 0.0 < limit <= 1.0:
        raise InputError(f"aupro: limit {limit}, expected more than 0 and at most 1")
    out: Metrics = {}
    reasons: dict[str, str] = {}
    for name in names:
        value: float | str
        if curve.positives == 0:
            value = f"no {member} is defect" if member == "pixel" else "no scan is defective"
        elif curve.negatives.size == 0 and name not in ("f1_max", "ap"):
            value = f"every {member} is defect" if member == "pixel" else "every scan is defective"
        else:
            value = FORMULAS[name](curve, limit)
        out[name] = None if isinstance(value, str) else value
        if isinstance(value, str):
            reasons[name] = value
    return {**out, "reasons": reasons}
