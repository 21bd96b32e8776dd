"""How sure a metric is: intervals over scans, and the band in which pure chance lies."""

from __future__ import annotations

import math

import numpy as np

from muscjax.curves import Stack, area, finite, hits_per_scan, pairs, region_weights
from muscjax.errors import InputError


def chance_band(n_pos: int, n_neg: int, *, level: float = 0.95) -> tuple[float, float] | None:
    """Where the image AUROC of scores without information lies with probability ``level``.

    From the exact distribution of the rank sum while n_pos·n_neg is at most 4,000, from its normal
    approximation beyond. ``None`` where there are no scans of one kind.
    """
    comparisons = n_pos * n_neg
    if comparisons == 0:
        return None
    tail = (1.0 - level) / 2.0
    if comparisons <= 4000:
        cumulative = np.cumsum(_rank_sum_distribution(n_pos, n_neg))
        low = int(np.searchsorted(cumulative, tail, "right")) / comparisons
    else:
        from statistics import NormalDist

        deviation = math.sqrt((n_pos + n_neg + 1) / (12.0 * comparisons))
        low = max(0.0, 0.5 + NormalDist().inv_cdf(tail) * deviation)
    return low, 1.0 - low


def bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    masks: Stack | None = None,
    maps: Stack | None = None,
    foreground: Stack | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    steps: int = 1024,
    limit: float = 0.3,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Percentile intervals of the metrics over scans drawn with replacement.

    Returns ``{"image": {"auroc": (low, high), "f1_max", "ap"}, "pixel": {"auroc", "f1_max", "ap",
    "aupro_mvtec", "hit_rate", "foreground_ap"}}``; ``pixel`` only where masks and maps are given,
    ``foreground_ap`` only where the foreground is, and a metric only where it is defined. Resamples in which
    a metric is undefined are left out of its interval. ``aupro_musc`` has none: its thresholds hang on the
    single highest pixel of the set.

    Pixel scores are first rounded down to ``steps`` thresholds, half of them quantiles of the defect scores
    and half of the others (denser towards the top), so that a resample is a sum of per-scan counts; with no
    more distinct scores than ``steps`` nothing is rounded.
    """
    found = resampled(
        labels, scores, masks, maps, foreground, resamples=resamples, seed=seed, steps=steps, limit=limit
    )
    return {part: _intervals(values, level) for part, values in found.items()}


def resampled(
    labels: np.ndarray,
    scores: np.ndarray,
    masks: Stack | None = None,
    maps: Stack | None = None,
    foreground: Stack | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    steps: int = 1024,
    limit: float = 0.3,
) -> dict[str, dict[str, np.ndarray]]:
    """The metrics of each resample, (resamples,) each and NaN where undefined; arguments as in `bootstrap`.

    Two runs over the same number of scans are given the same draws by the same seed: the difference of their
    resamples is that of a paired bootstrap.
    """
    labels, scores = np.asarray(labels) != 0, np.asarray(scores)
    finite("scores", scores)
    n = labels.size
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    out = {"image": _resample_images(labels, scores, draws)}
    if masks is not None and maps is not None:
        masks, maps = pairs(masks, maps)
        if len(masks) != n:
            raise InputError(f"metrics: {len(masks)} maps and {n} labels, expected one of each per scan")
        inside = None if foreground is None else pairs(foreground, maps, name="foreground")[0]
        out["pixel"] = _resample_pixels(masks, maps, draws, steps, limit, inside)
    return out


def _rank_sum_distribution(n_pos: int, n_neg: int) -> np.ndarray:
    """(n_pos·n_neg + 1,) probability that so many (defect, good) pairs are ordered rightly by chance."""
    # Row a holds the distribution for a defective and b good scans; the highest scan is one or the other.
    rows = [np.ones(1)] * (n_pos + 1)
    for b in range(1, n_neg + 1):
        grown = [np.ones(1)]
        for a in range(1, n_pos + 1):
            p = np.zeros(a * b + 1)
            p[b:] += a / (a + b) * grown[a - 1]
            p[: a * (b - 1) + 1] += b / (a + b) * rows[a]
            grown.append(p)
        rows = grown
    return rows[n_pos]


def _intervals(samples: dict[str, np.ndarray], level: float) -> dict[str, tuple[float, float]]:
    tail = (1.0 - level) / 2.0
    kept = {name: values[np.isfinite(values)] for name, values in samples.items()}
    return {
        name: (float(np.quantile(values, tail)), float(np.quantile(values, 1.0 - tail)))
        for name, values in kept.items()
        if values.size
    }


def _resample_images(labels: np.ndarray, scores: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    thresholds = np.unique(scores)[::-1]
    reached = scores[:, None] >= thresholds
    hits, alarms = draws @ (reached & labels[:, None]), draws @ (reached & ~labels[:, None])
    return _resampled_metrics(hits, alarms)


def _resample_pixels(
    masks: list[np.ndarray],
    maps: list[np.ndarray],
    draws: np.ndarray,
    steps: int,
    limit: float,
    inside: list[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    thresholds = _thresholds(masks, maps, steps)
    n, t = len(maps), thresholds.size
    hits, alarms, overlap, object_hits, object_alarms = np.zeros((5, n, t))
    regions = np.zeros(n)
    for i, (mask, values) in enumerate(zip(masks, maps, strict=True)):
        slots = t - np.searchsorted(thresholds[::-1], values, "right")
        weights, regions[i] = region_weights(mask)
        hits[i] = _reached(slots[mask], t)
        alarms[i] = _reached(slots[~mask], t)
        overlap[i] = _reached(slots[mask], t, weights)
        if inside is not None:
            object_hits[i] = _reached(slots[mask & inside[i]], t)
            object_alarms[i] = _reached(slots[~mask & inside[i]], t)
    out: dict[str, list[np.ndarray]] = {}
    hit = np.array(hits_per_scan(masks, maps))
    for part in np.array_split(draws, max(1, draws.shape[0] * t // 2_000_000)):
        found = _resampled_metrics(part @ hits, part @ alarms)
        if inside is not None:
            found["foreground_ap"] = _resampled_metrics(part @ object_hits, part @ object_alarms)["ap"]
        with np.errstate(divide="ignore", invalid="ignore"):
            pro = part @ overlap / (part @ regions)[:, None]
            fpr = part @ alarms / (part @ alarms)[:, -1:]
            found["hit_rate"] = part @ np.nan_to_num(hit) / (part @ ~np.isnan(hit))
            zero = np.zeros((part.shape[0], 1))
            x, y = np.concatenate([zero, fpr], 1), np.concatenate([zero, pro], 1)
            found["aupro_mvtec"] = area(x, y, limit) / limit
        for name, values in found.items():
            out.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in out.items()}


def _thresholds(masks: list[np.ndarray], maps: list[np.ndarray], steps: int) -> np.ndarray:
    """At most ``steps`` scores, descending, the lowest of all among them."""
    values = np.sort(np.concatenate([v.ravel() for v in maps]))
    distinct = values[np.diff(values, prepend=-np.inf) > 0]
    if distinct.size > steps:
        share = np.linspace(0.0, 1.0, steps // 2)
        hot = np.sort(np.concatenate([v[m] for m, v in zip(masks, maps, strict=True)]))
        # Quadratic spacing puts the resolution where the false-positive rate is low.
        picks = [
            s[((s.size - 1) * p).astype(int)] for s, p in ((values, 1.0 - share**2), (hot, share)) if s.size
        ]
        distinct = np.unique(np.concatenate(picks))
    return distinct[::-1]


def _reached(slots: np.ndarray, steps: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Number (or weight) of values at or above each of the descending thresholds, from their slots."""
    return np.cumsum(np.bincount(slots, weights=weights, minlength=steps))


def _resampled_metrics(hits: np.ndarray, alarms: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC, F1-max and AP of each row of counts (B, T) at descending thresholds; NaN where undefined."""
    hits, alarms = hits.astype(np.float64), alarms.astype(np.float64)
    positives, negatives = hits[:, -1:], alarms[:, -1:]
    gained = np.diff(hits, axis=1, prepend=0.0)
    step = np.diff(alarms, axis=1, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = np.sum(step * (hits - 0.5 * gained), axis=1) / (positives * negatives)[:, 0]
        f1 = np.max(2.0 * hits / (hits + alarms + positives), axis=1)
        precision = np.divide(hits, hits + alarms, out=np.zeros_like(hits), where=hits > 0)
        ap = np.sum(gained * precision, axis=1) / positives[:, 0]
    undefined = positives[:, 0] == 0
    return {"auroc": auroc, "f1_max": np.where(undefined, np.nan, f1), "ap": ap}
