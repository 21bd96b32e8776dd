"""muscjax.decision: the law against simulation and brute force, the rate under contamination, the gauge."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscjax import config, decision
from muscjax.config import DecisionConfig
from muscjax.errors import InputError
from muscjax.types import Detection, PatchScores

HALF = DecisionConfig(false_alarm_rate=0.05, score="map_max", order=2.0)


def line(seed: int, n: int, share: float, excess: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n scans and which are defective; the normal ones have a spread of about 0.8."""
    rng = np.random.default_rng(seed)
    bad = np.arange(n) < round(n * share)
    scores = -np.log(rng.gamma(2.0, size=n))
    scores[bad] += rng.exponential(excess, size=bad.sum())
    order = rng.permutation(n)
    return scores[order], bad[order]


def threshold(scores: np.ndarray, rate: float = 0.05) -> float:
    found = decision.decide(scores, scores, config=dataclasses.replace(HALF, false_alarm_rate=rate)).threshold
    assert found is not None
    return found


def test_the_law_is_that_of_the_second_highest_value():
    rng = np.random.default_rng(0)
    second = np.sort(rng.exponential(size=(4000, 200)), axis=1)[:, -2] - math.log(200)
    fit = decision.Fit(np.zeros(1), np.ones(1), np.ones((1, 1, 1)), 2.0)
    for t in (-1.5, -1.0, 0.0, 1.0, 2.0):
        assert fit.tail(t) == pytest.approx((second > t).mean(), abs=0.025)
    assert decision.upper_quantile(fit, 0.05) == pytest.approx(np.quantile(second, 0.95), abs=0.1)
    assert fit._replace(order=1.0).tail(0.0) > (second > 0).mean() + 0.2


@pytest.mark.parametrize("order", [1.0, 2.0, 5.5])
def test_densities_sum_to_one_and_the_defective_one_is_the_convolution(order):
    z = np.linspace(-12, 400, 400_001)
    step = z[1] - z[0]
    normal, defective, _ = decision._densities(z, order)
    assert normal.sum() * step == pytest.approx(0.99, abs=1e-6)
    low = np.linspace(-400, 0, 400_001)
    assert decision._densities(low, order)[2].sum() * (low[1] - low[0]) == pytest.approx(0.01, abs=1e-5)
    for mean, density in zip(decision._EXCESS, defective, strict=True):
        for at in (-0.5, 1.0, 6.0):
            i = int(np.searchsorted(z, at))
            excess = np.exp(-(z[i] - z[: i + 1]) / mean) / mean
            expected = np.trapezoid(normal[: i + 1] * excess, dx=step)
            assert density[i] == pytest.approx(expected, rel=1e-4)


def brute_force(scores: np.ndarray, rate: float) -> float:
    """The threshold from one wide, fine grid, cell by cell in logarithms."""
    from scipy import special

    middle, unit = np.median(scores), np.median(scores) - np.quantile(scores, 0.05)
    x = (scores - middle) / unit
    axes = np.linspace(-3, 3, 91), np.linspace(np.log(0.03), np.log(8), 45)
    location, log_scale = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    normal, defective, stray = decision._densities((x - location[:, None]) / np.exp(log_scale)[:, None], 2.0)
    terms = []
    with np.errstate(divide="ignore"):
        for share, prior in zip(decision._SHARES, decision._PRIOR, strict=True):
            for raised in defective:
                likelihood = np.log((1 - share) * normal + share * raised + stray) - log_scale[:, None]
                terms.append(likelihood.sum(1) + math.log(prior))
    weight = special.logsumexp(terms, axis=0)
    weight = np.exp(weight - weight.max())

    def tail(t: float) -> float:
        at = np.maximum((t - location) / np.exp(log_scale), -30)
        return float(weight @ special.gammainc(2.0, np.exp(-at)) / weight.sum())

    steps = np.linspace(-1, 9, 501)
    return middle + unit * steps[np.argmax(np.array([tail(t) for t in steps]) < rate)]


@pytest.mark.parametrize(("n", "share"), [(8, 0.0), (16, 0.2)])
def test_narrowing_finds_what_a_wide_fine_grid_finds(n, share):
    scores, _ = line(3, n, share)
    assert threshold(scores) == pytest.approx(brute_force(scores, 0.05), abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5])
def test_the_rate_holds_under_contamination(share):
    alarms, found = [], []
    for seed in range(8):
        scores, bad = line(seed, 64, share)
        called = scores > threshold(scores)
        alarms.append(called[~bad].mean())
        found.append(called[bad].mean() if bad.any() else 1.0)
    # 8 lines of 32-64 normal scans: a standard error of about 1.2 %
    assert 0.02 < np.mean(alarms) < 0.085
    assert np.mean(found) > 0.65


def test_many_scans_give_the_quantile_of_the_law():
    from scipy import special

    scores, bad = line(5, 1500, 0.1)
    for rate in (0.01, 0.2):
        exact = -math.log(special.gammaincinv(2.0, rate))
        assert threshold(scores, rate) == pytest.approx(exact, abs=0.25)
    found = decision.decide(scores, scores, config=HALF)
    assert found.defective_share == pytest.approx(0.1, abs=0.03)
    low, high = found.defective_share_interval
    assert low <= found.defective_share <= high
    actual = (found.pred_label & ~bad).sum()
    assert found.expected_false_alarms == pytest.approx(actual, rel=0.35)
    assert found.warning is None


@given(st.integers(0, 50), st.floats(1e-6, 1e6), st.floats(-100, 100), st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=6)
def test_threshold_scales_and_shifts_and_forgets_the_order(seed, scale, shift, share):
    scores, _ = line(seed, 20, share)
    expected = decision.decide(scores, scores, config=HALF)
    moved = decision.decide(scores * scale + shift * scale, scores * scale + shift * scale, config=HALF)
    assert moved.threshold == pytest.approx((expected.threshold + shift) * scale, rel=1e-6, abs=1e-6 * scale)
    order = np.random.default_rng(seed).permutation(20)
    shuffled = decision.decide(scores[order], scores[order], config=HALF)
    assert shuffled.threshold == expected.threshold
    np.testing.assert_array_equal(shuffled.pred_label, expected.pred_label[order])


def test_a_lower_rate_never_lowers_the_threshold():
    scores, _ = line(7, 32, 0.2)
    found = [threshold(scores, rate) for rate in (0.5, 0.2, 0.05, 0.01, 1e-4)]
    assert found == sorted(found)


def test_duplicates_and_ties_are_taken_as_they_are():
    scores, _ = line(8, 24, 0.2)
    once, twice = threshold(scores), threshold(np.repeat(scores, 2))
    assert abs(twice - once) < 1.5  # surer, not elsewhere
    tied = np.array([1.0] * 20 + [2.0, 3.0, 50.0])
    found = decision.decide(tied, tied, config=HALF)
    assert 1.0 <= found.threshold < 50.0
    assert found.pred_label[-1]
    assert not found.pred_label[:20].any()
    half = np.array([0.0] * 4 + [1.0] * 4)
    assert math.isfinite(threshold(half))


def test_a_broken_scan_far_below_and_one_far_above_bend_nothing():
    scores, _ = line(9, 48, 0.1)
    plain = threshold(scores)
    assert threshold(np.append(scores, -50.0)) == pytest.approx(plain, abs=0.25)
    assert threshold(np.append(scores, 1e9)) == pytest.approx(plain, abs=0.25)


def test_too_few_or_equal_scores_are_said_and_not_decided():
    few = decision.decide(np.arange(7.0), np.arange(7.0), config=HALF)
    assert few.warning == "7 scans are too few for a threshold without labels, expected at least 8"
    equal = decision.decide(np.ones(30), np.ones(30), config=HALF)
    assert equal.warning == "all scores are equal, there is nothing to decide by"
    for found in (few, equal):
        assert found.pred_label is None
        assert found.threshold is None
        assert found.pixel_threshold is None
    assert decision.decide(np.arange(8.0), np.arange(8.0), config=HALF).pred_label is not None


def test_bad_scores_are_named():
    with pytest.raises(InputError, match=r"scores \(3,\) and \(4,\), expected one of each per scan"):
        decision.decide(np.ones(3), np.ones(4), config=HALF)
    with pytest.raises(InputError, match="NaN or infinity"):
        decision.decide(np.array([np.nan] * 9), np.ones(9), config=HALF)


def test_gauge_says_when_normals_are_no_majority_and_when_it_cannot_tell():
    majority = unclear = quiet = 0
    for seed in range(4):
        for share, excess in ((0.8, 8.0), (0.0, 8.0), (0.1, 15.0)):
            scores, _ = line(100 + seed, 64, share, excess)
            warning = decision.decide(scores, scores, config=HALF).warning or ""
            majority += share == 0.8 and "no longer be the majority" in warning
            unclear += share == 0.0 and "no group of scans stands apart" in warning
            quiet += share == 0.1 and not warning
    assert majority >= 3
    assert unclear >= 3
    assert quiet == 4


def test_the_label_may_follow_the_score_after_rscon():
    before, _ = line(11, 40, 0.2)
    after = np.random.default_rng(0).permutation(before)
    found = decision.decide(after, before, config=dataclasses.replace(HALF, score="pred_score"))
    np.testing.assert_array_equal(found.pred_label, after > found.threshold)
    assert found.pixel_threshold == threshold(before)


def test_labels_of_new_scans_by_the_law_of_kept_ones():
    kept, _ = line(1, 60, 0.1)
    new = np.asarray([kept.min(), kept.max() + 3.0])
    found = decision.decide(new, new, config=HALF, kept=(kept, kept))
    whole = decision.decide(kept, kept, config=HALF)
    assert (found.threshold, found.pixel_threshold) == (whole.threshold, whole.pixel_threshold)
    np.testing.assert_array_equal(found.pred_label, [False, True])
    assert found.scans == 2
    assert found.expected_false_alarms < 0.1
    few = decision.decide(kept, kept, config=HALF, kept=(new, new))
    assert few.pred_label is None
    assert "2 scans are too few" in few.warning


def test_label_and_mask_agree_and_land_in_the_detection():
    before, _ = line(12, 24, 0.3)
    maps = np.full((24, 4, 5), before.min() - 1, np.float32)
    maps[:, 2, 3] = before
    maps[:, 0, 0] = before - 0.5
    patch = PatchScores(None, None, np.zeros((24, 1), np.float32))
    whole = Detection(maps, before[::-1].copy(), maps.max((1, 2)), patch)
    found, why = decision.labelled(whole, HALF)
    assert found.pred_mask.shape == (24, 4, 5)
    np.testing.assert_array_equal(found.pred_mask.any((1, 2)), found.pred_label)
    for i in range(24):
        own = decision.mask(maps[i], found.pred_label[i], why.pixel_threshold)
        np.testing.assert_array_equal(own, found.pred_mask[i])
    assert not decision.mask(maps.max(0), False, why.pixel_threshold).any()
    lower = np.array([[0.0, 0.4], [0.3, 0.1]])  # of a map that resizing lowered from 0.6
    assert decision.mask(lower, True, 0.5, peak=0.6).tolist() == [[False, True], [False, False]]
    assert not decision.mask(lower, True, 0.5, peak=0.45).any()
    assert not decision.mask(lower, False, 0.5, peak=0.6).any()
    assert len(jax.tree.leaves(found)) == len(jax.tree.leaves(whole)) + 2
    short = Detection(maps[:4], before[:4], before[:4], patch)
    assert decision.labelled(short, HALF)[0].pred_label is None
    kept = decision.record(why)
    assert kept["called_defective"] == found.pred_label.sum()
    assert "pred_label" not in kept


def test_configuration_knows_the_decision():
    assert config.released().decision == config.paper().decision == DecisionConfig()
    chosen = config.override(config.released(), "decision.false_alarm_rate=0.01", "decision.score=pred_score")
    assert chosen.decision == DecisionConfig(0.01, "pred_score")
    with pytest.raises(InputError, match=r"decision.false_alarm_rate must lie in \(0, 0.5\]"):
        config.override(config.released(), "decision.false_alarm_rate=0.9")
    with pytest.raises(InputError, match=r"decision.order must lie in"):
        config.override(config.released(), "decision.order=0.2")
