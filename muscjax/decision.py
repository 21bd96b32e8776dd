"""Which scans to call defective, without a label: the scores of the normal scans are fitted, not the others.

**Model.** A scan's score is a location plus a scale times a standard variable. Of a normal scan it follows
the limit law of a k-th highest value (Gumbel's for k = 1; ``-log`` of a Gamma(k) variable, Gumbel 1958): the
score of a scan is the top of a map. A defective scan has such a score plus an exponential excess with a mean
of 4, 8, 16 or 32 scales: a defect raises the score, by nobody knows how much. A hundredth of the scans may
lie anywhere below (a broken scan), so that it does not bend the fit.

**Inference.** Location, scale, share of defective scans and mean excess are not chosen but averaged over
their posterior, on a grid that narrows onto it. Location and the logarithm of the scale have flat priors; the
share π has the density 3 (1 - π)², which states the premise that normal scans are the majority, with an atom
for "none". The threshold is where the predictive tail of a *normal* score is ``false_alarm_rate``: with few
scans it moves up by itself, because the tail is then less certain.

**What scores without labels can say, and what not.** If the defective scans score above the normal ones, the
false-alarm rate holds while normal scans are the majority. Nothing in the scores tells a set without defects
from one whose defects score like normal scans, nor from one so full of defects that they are what looks
normal: in all three, no group stands apart. `decide` then says so instead of guessing (``warning``).

Plain NumPy in float64 on the host: pure functions of arrays, some tenths of a second for any number of scans.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from muscjax.config import DecisionConfig
from muscjax.errors import InputError
from muscjax.types import Detection

FEWEST = 8  # scans: below it, the tail of the normal scores is anybody's guess
_EXCESS = (4.0, 8.0, 16.0, 32.0)  # mean excess of a defective scan, in scales
_SHARES = np.concatenate([[0.0], np.arange(0.025, 1.0, 0.05)])  # of defective scans
_PRIOR = (1.0 - _SHARES) ** 2 / np.sum((1.0 - _SHARES) ** 2)
_STRAY = 0.01  # share of scans that may lie anywhere below, ten scales deep on average
_CELLS = (28, 22)  # locations, scales
_ROUNDS = 4
_MOST = 400  # scores; of more, neighbours in rank are merged


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided; everything but the rate, the count and the warning is None where nothing was."""

    false_alarm_rate: float  # as requested
    scans: int
    pred_label: np.ndarray | None = None  # (N,) bool, score > threshold
    threshold: float | None = None  # of the score that `DecisionConfig.score` names
    pixel_threshold: float | None = None  # of maps: a normal scan's maximum exceeds it at the same rate
    location: float | None = None  # posterior means of the law of the normal scores
    scale: float | None = None
    defective_share: float | None = None  # posterior mean
    defective_share_interval: tuple[float, float] | None = None  # 90 %
    none_defective: float | None = None  # probability that no group of scans stands apart
    majority_defective: float | None = None  # probability that more than half are defective
    expected_false_alarms: float | None = None  # of the scans called defective, how many are normal
    warning: str | None = None  # one line: why the labels are missing or cannot be relied on


class Fit(NamedTuple):
    """The posterior of J cells (location, scale), T shares and L mean excesses."""

    location: np.ndarray  # (J,)
    scale: np.ndarray  # (J,)
    weight: np.ndarray  # (J, T, L), sum 1
    order: float

    def tail(self, threshold: float) -> float:
        """Predictive probability that a normal score exceeds the threshold."""
        from scipy import special

        z = np.maximum((threshold - self.location) / self.scale, -30.0)
        return float(self.weight.sum((1, 2)) @ special.gammainc(self.order, np.exp(-z)))


def decide(
    pred_score: np.ndarray,
    map_max: np.ndarray,
    *,
    config: DecisionConfig,
    kept: tuple[np.ndarray, np.ndarray] | None = None,
) -> Decision:
    """Labels and thresholds from scores alone.

    Args:
        pred_score: (N,) scan scores after RsCon. map_max: (N,) maximum of each map.
        config: the false-alarm rate, and which of the two scores the label is read from.
        kept: both scores of the scans that the thresholds are read from, where it is not these: those of a
            reference set, which no new scan moves.

    The thresholds scale and shift with the scores, and no order of the scans matters. A scan is defective
    above the threshold, not at it. ``pixel_threshold`` is the threshold of ``map_max``: see `mask`.

    Raises:
        InputError: scores that are not finite, or not one of each per scan.
    """
    own = _checked(pred_score, map_max)
    pred_score, map_max = own if kept is None else _checked(*kept)
    rate, n = config.false_alarm_rate, pred_score.size
    none = Decision(false_alarm_rate=rate, scans=own[0].size)
    if n < FEWEST:
        text = f"{n} scans are too few for a threshold without labels, expected at least {FEWEST}"
        return dataclasses.replace(none, warning=text)
    scores = map_max if config.score == "map_max" else pred_score
    if np.ptp(scores) == 0 or np.ptp(map_max) == 0:
        return dataclasses.replace(none, warning="all scores are equal, there is nothing to decide by")
    fit = fit_normal(scores, order=config.order)
    threshold = upper_quantile(fit, rate)
    pixel = threshold
    if config.score != "map_max":
        pixel = upper_quantile(fit_normal(map_max, order=config.order), rate)
    labelled_by = own[1] if config.score == "map_max" else own[0]
    flagged = labelled_by > threshold
    shares = fit.weight.sum((0, 2))
    cells = fit.weight.sum((1, 2))
    gauge = {
        "defective_share": float(shares @ _SHARES),
        "defective_share_interval": _interval(shares, 0.9),
        "none_defective": float(shares[0]),
        "majority_defective": float(shares[_SHARES > 0.5].sum()),
    }
    return dataclasses.replace(
        none,
        pred_label=flagged,
        threshold=threshold,
        pixel_threshold=pixel,
        location=float(cells @ fit.location),
        scale=float(cells @ fit.scale),
        expected_false_alarms=float(normal_probability(fit, labelled_by[flagged]).sum()),
        warning=_warning(**gauge),
        **gauge,
    )


def _checked(pred_score: np.ndarray, map_max: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred_score, map_max = np.asarray(pred_score, np.float64), np.asarray(map_max, np.float64)
    if pred_score.ndim != 1 or pred_score.shape != map_max.shape:
        raise InputError(
            f"decide: scores {pred_score.shape} and {map_max.shape}, expected one of each per scan"
        )
    if not (np.isfinite(pred_score).all() and np.isfinite(map_max).all()):
        raise InputError("decide: scores with NaN or infinity, expected finite numbers")
    return pred_score, map_max


def mask(
    anomaly_map: np.ndarray, label: bool, pixel_threshold: float, *, peak: float | None = None
) -> np.ndarray:
    """(H, W) bool: the pixels of a scan called defective that are above what a normal scan reaches.

    peak: the scan's ``map_max``, where the map was resized since: resizing lowers a narrow peak, and where
    nothing is left above the threshold the highest pixels stand for it.

    Empty for a scan called normal, so that a normal scan has a mask no more often than the false-alarm rate
    says. Where the label comes from ``map_max``, the mask is empty for these scans alone. Where it comes from
    ``pred_score``, a scan that only its neighbours in RsCon lifted over the threshold has an empty mask too:
    none of its pixels stands out.
    """
    values = np.asarray(anomaly_map)
    found = (values > pixel_threshold) & bool(label)
    if label and peak is not None and peak > pixel_threshold and not found.any():
        return values == values.max()
    return found


def labelled(detection: Detection, config: DecisionConfig) -> tuple[Detection, Decision]:
    """The detection with ``pred_label`` (N,) and ``pred_mask`` (N, H, W), and how they came about.

    Both stay None where nothing could be decided; ``Decision.warning`` says why.
    """
    decision = decide(np.asarray(detection.pred_score), np.asarray(detection.map_max), config=config)
    if decision.pred_label is None or decision.pixel_threshold is None:
        return detection, decision
    maps = np.asarray(detection.anomaly_map)
    masks = (maps > decision.pixel_threshold) & decision.pred_label[:, None, None]
    return dataclasses.replace(detection, pred_label=decision.pred_label, pred_mask=masks), decision


def record(decision: Decision) -> dict[str, Any]:
    """The fields for run.json: all but the labels of the single scans, and how many were called defective."""
    out = {f.name: getattr(decision, f.name) for f in dataclasses.fields(decision) if f.name != "pred_label"}
    count = None if decision.pred_label is None else int(decision.pred_label.sum())
    return {**out, "called_defective": count}


def fit_normal(scores: np.ndarray, *, order: float) -> Fit:
    """The posterior of the law of the normal scores. scores: (N,), at least two different ones."""
    values, counts = _merged(np.sort(np.asarray(scores, np.float64)))
    # The lower half holds normal scans as long as they are the majority: it sets the unit of the search.
    low, middle = np.quantile(np.repeat(values, counts.astype(int)), [0.05, 0.5])
    unit = middle - low
    if unit <= 0:
        above = values[values > middle]
        unit = above[0] - middle if above.size else middle - values[0]
    x = np.clip((values - middle) / unit, -20.0, 100.0)
    edges = np.array([[-3.0, np.log(0.03)], [3.0, np.log(8.0)]])
    start, end = edges
    for turn in range(_ROUNDS):
        axes = [np.linspace(a, b, m) for a, b, m in zip(start, end, _CELLS, strict=True)]
        location, log_scale = (g.ravel() for g in np.meshgrid(*axes, indexing="ij"))
        scale = np.exp(log_scale)
        log_weight = np.empty((location.size, _SHARES.size, len(_EXCESS)))
        normal, defective, stray = _densities((x - location[:, None]) / scale[:, None], order)
        with np.errstate(divide="ignore"):  # a density of 0 rules its cell out
            for j, share in enumerate(_SHARES):
                for k, raised in enumerate(defective):
                    mixed = np.log((1 - share) * normal + share * raised + stray)
                    log_weight[:, j, k] = mixed @ counts + np.log(_PRIOR[j])
        log_weight -= counts.sum() * log_scale[:, None, None]
        best = log_weight.max((1, 2))
        near = best > best.max() - 10.0
        if turn < _ROUNDS - 1:
            step = np.array([axis[1] - axis[0] for axis in axes])
            corner = np.stack([location[near], log_scale[near]])
            start = np.maximum(corner.min(1) - 1.5 * step, edges[0])
            end = np.minimum(corner.max(1) + 1.5 * step, edges[1])
    weight = np.exp(log_weight - log_weight.max())
    return Fit(middle + unit * location, unit * scale, weight / weight.sum(), order)


def upper_quantile(fit: Fit, rate: float) -> float:
    """The threshold that a normal score exceeds with probability ``rate``."""
    wide = fit.scale.max()
    low = fit.location.min() - 20.0 * wide
    high = fit.location.max() + wide * (20.0 - np.log(rate))
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fit.tail(middle) > rate else (low, middle)
    return float(high)


def normal_probability(fit: Fit, scores: np.ndarray) -> np.ndarray:
    """(N,) posterior probability that a scan with this score is normal."""
    scores = np.asarray(scores, np.float64)
    total = np.zeros(scores.size)
    z = (scores - fit.location[:, None]) / fit.scale[:, None]
    normal, defective, stray = _densities(np.minimum(z, 600.0), fit.order)
    for j, share in enumerate(_SHARES):
        for k, raised in enumerate(defective):
            part = (1 - share) * normal
            whole = part + share * raised + stray
            ratio = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
            total += fit.weight[:, j, k] @ ratio
    return total


def _densities(z: np.ndarray, order: float) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Of standard scores: normal; defective, for each mean excess; stray, with its share."""
    from scipy import special

    held = np.maximum(z, -30.0)
    e = np.exp(-held)
    normal = np.exp(-order * held - e - special.gammaln(order)) * (1 - _STRAY)
    defective = []
    for mean in _EXCESS:
        # The normal law convolved with the exponential one, in closed form.
        a = order - 1.0 / mean
        factor = np.exp(special.gammaln(a) - special.gammaln(order)) / mean * (1 - _STRAY)
        defective.append(factor * np.exp(-held / mean) * special.gammaincc(a, e))
    stray = np.where(z < 0, _STRAY * np.exp(np.minimum(z, 0.0) / 10.0) / 10.0, 0.0)
    return normal, defective, stray


def _merged(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending values, at most `_MOST`, and how many scans each stands for."""
    if values.size <= _MOST:
        return values, np.ones(values.size)
    parts = np.array_split(values, _MOST)
    return np.array([part.mean() for part in parts]), np.array([float(part.size) for part in parts])


def _interval(shares: np.ndarray, level: float) -> tuple[float, float]:
    """Of the share of defective scans, from edge to edge of the cells that hold it."""
    tail = 0.5 * (1.0 - level)
    cells = np.searchsorted(np.cumsum(shares), [tail, 1.0 - tail]).clip(max=_SHARES.size - 1)
    half = np.where(cells == 0, 0.0, 0.025)
    low, high = _SHARES[cells] + half * np.array([-1.0, 1.0])
    return float(low), float(high)


def _warning(
    *, defective_share: float, none_defective: float, majority_defective: float, **_: Any
) -> str | None:
    if majority_defective > 0.5:
        return (
            f"normal scans may no longer be the majority (defective by the scores: about "
            f"{100 * defective_share:.0f} %), so the threshold and its labels cannot be relied on"
        )
    if none_defective + majority_defective > 0.5:
        return (
            "no group of scans stands apart by its scores: either hardly any scan is defective, or most are, "
            "or defects score like normal scans; scores alone cannot tell"
        )
    return None
