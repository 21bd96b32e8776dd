import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import rscon
from muscjax.config import paper
from muscjax.errors import InputError
from tests.reference import rscon as reference

TOLERANCE = 1e-6
SEEDS = st.integers(0, 10_000)
COUNTS = st.integers(2, 7)
BUCKET = 8
PAPER = {"windows": paper().rscon.windows, "normalise": False, "form": "half"}

_rescore = jax.jit(rscon.rescore, static_argnames=("windows", "normalise", "form"))


def sample(seed, n=7, d=5):
    """Scores, and features whose products are positive, as those of neighbouring patches are."""
    rng = np.random.default_rng(seed)
    return rng.random(n).astype(np.float32), rng.random((n, d)).astype(np.float32)


def padded(scores, features, size=BUCKET):
    """Rows up to the bucket hold rubbish: nothing may read them."""
    n, d = features.shape
    valid = np.arange(size) < n
    rubbish = np.full((size - n, d), np.nan, np.float32)
    return (
        np.concatenate([scores, np.full(size - n, np.inf, np.float32)]),
        np.concatenate([features, rubbish]),
        valid,
    )


@pytest.mark.parametrize("name", ["feats", "feats_unit"])
@pytest.mark.parametrize("windows", [(1, 7), (1, 3), (1,), (7,), (2, 3)])
def test_golden(golden, windows, name):
    arrays = golden("rscon")
    key = "out_unit_k" if name == "feats_unit" else "out_k"
    expected = arrays[key + "_".join(map(str, windows))]
    found = _rescore(arrays["scores"], arrays[name], windows=windows)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("first", [7, 8])
def test_golden_of_few_samples(golden, first):
    arrays = golden("rscon")
    found = _rescore(arrays["scores"][:first], arrays["feats"][:first])
    np.testing.assert_allclose(found, arrays[f"out_k1_7_first{first}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
def test_eq_12_13_14_released_form(compiled):
    scores, features = sample(0, n=12)
    function = _rescore if compiled else rscon.rescore
    found = function(scores, features, windows=(3, 5))
    np.testing.assert_allclose(found, reference.released(scores, features, (3, 5)), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_eq_12_13_14_as_matrices(k):
    """W, the mask M of each row's k largest, the row sums D: D⁻¹(M∘W)C, whole matrices instead of rows."""
    scores, features = sample(2, n=9)
    similarity = features.astype(np.float64) @ features.T.astype(np.float64)
    mask = similarity >= np.sort(similarity, axis=1)[:, -k][:, None]
    assert (mask.sum(axis=1) == k).all()
    degree = np.diag((mask * similarity).sum(axis=1))
    smoothed = np.linalg.inv(degree) @ (mask * similarity) @ scores
    # Eq. 15's form is their mean with C itself, so that it holds one window alone.
    found = 2 * _rescore(scores, features, windows=(k,), normalise=False, form="half") - scores
    np.testing.assert_allclose(found, smoothed, atol=2 * TOLERANCE, rtol=0)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
def test_eq_15_half_form(compiled):
    scores, features = sample(1, n=12)
    found = (_rescore if compiled else rscon.rescore)(scores, features, **PAPER)
    np.testing.assert_allclose(found, reference.paper(scores, features), atol=TOLERANCE, rtol=0)


def test_eq_15_a_row_sum_that_is_not_positive_leaves_the_score():
    scores = np.array([0.2, 0.9, 0.4], np.float32)
    features = np.array([[1, 0], [-3, 0], [-3, 1]], np.float32)
    found = _rescore(scores, features, **PAPER)
    assert found[0] == scores[0]
    np.testing.assert_allclose(found, reference.paper(scores, features), atol=TOLERANCE, rtol=0)


def test_released_form_divides_by_a_negative_row_sum():
    scores = np.array([0.2, 0.9, 0.4], np.float32)
    features = np.array([[1, 0], [-3, 0], [-3, 1]], np.float32)
    expected = reference.released(scores, features)
    np.testing.assert_allclose(_rescore(scores, features), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("keywords", [{}, PAPER], ids=["released", "paper"])
def test_features_of_zero_leave_the_scores(keywords):
    scores, features = sample(2)
    found = _rescore(scores, np.zeros_like(features), **keywords)
    expected = scores if keywords else reference.min_max(scores)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_ties_take_the_lowest_index():
    scores = np.array([1.0, 0.25, 0.5, 0.0], np.float32)
    features = np.ones((4, 2), np.float32)
    found = _rescore(scores, features, windows=(2,), normalise=False, form="half")
    np.testing.assert_allclose(found, (0.625 + scores) / 2, atol=1e-7)


@given(SEEDS, COUNTS)
def test_small_sets_and_padding(seed, n):
    scores, features = sample(seed, n)
    values, rows, valid = padded(scores, features)
    found = _rescore(values, rows, valid=valid)
    np.testing.assert_allclose(found[:n], reference.released(scores, features), atol=TOLERANCE, rtol=0)
    assert not np.asarray(found[n:]).any()
    found = _rescore(values, rows, valid=valid, **PAPER)
    np.testing.assert_allclose(found[:n], reference.paper(scores, features), atol=TOLERANCE, rtol=0)


@given(SEEDS)
def test_permutation(seed):
    scores, features = sample(seed)
    order = np.random.default_rng(seed).permutation(7)
    plain = np.asarray(_rescore(scores, features, windows=(1, 3)))
    shuffled = _rescore(scores[order], features[order], windows=(1, 3))
    np.testing.assert_allclose(shuffled, plain[order], atol=TOLERANCE)


@given(SEEDS, st.floats(0.01, 100), st.floats(-5, 5))
def test_scale(seed, factor, offset):
    scores, features = sample(seed)
    plain = _rescore(scores, features)
    moved = (scores * factor + offset).astype(np.float32)
    # The moved scores are themselves rounded; the min-max span divides that error.
    rounding = 2e-7 * (abs(offset) + factor) / (np.ptp(scores) * factor)
    np.testing.assert_allclose(_rescore(moved, features), plain, atol=TOLERANCE + 4 * rounding)
    scaled = _rescore(scores, features * np.float32(factor))
    np.testing.assert_allclose(scaled, plain, atol=TOLERANCE)


@given(SEEDS, st.floats(0, 10, width=32), COUNTS)
def test_constant_scores_stay_exactly_constant(seed, value, n):
    _, features = sample(seed, n)
    values, rows, valid = padded(np.full(n, value, np.float32), features)
    for keywords in ({}, PAPER):
        found = np.asarray(_rescore(values, rows, valid=valid, **keywords))[:n]
        assert (found == np.float32(value)).all()


@given(SEEDS)
def test_positive_similarities_keep_the_range(seed):
    scores, features = sample(seed)
    found = np.asarray(_rescore(scores, features))
    assert found.min() >= -TOLERANCE
    assert found.max() <= 1 + TOLERANCE


@given(SEEDS)
def test_duplicated_scans_get_one_score(seed):
    scores, features = sample(seed, n=4)
    scores[3], features[3] = scores[0], features[0]
    found = _rescore(scores, features, windows=(1, 7))
    np.testing.assert_allclose(found[3], found[0], atol=TOLERANCE)


def test_a_single_scan_keeps_its_score():
    scores, features = sample(3, n=1)
    assert _rescore(scores, features)[0] == scores[0]
    assert _rescore(scores, features, **PAPER)[0] == scores[0]


def test_no_valid_scan_gives_zero():
    scores, features = sample(4)
    assert not np.asarray(_rescore(scores, features, valid=np.zeros(7, bool))).any()


def test_vmap():
    scores, features = (np.stack(x) for x in zip(sample(5), sample(6), strict=True))
    both = jax.vmap(functools.partial(rscon.rescore, windows=(1, 3)))(scores, features)
    for k in range(2):
        np.testing.assert_allclose(
            both[k], reference.released(scores[k], features[k], (1, 3)), atol=TOLERANCE
        )


@pytest.mark.parametrize("keywords", [{"windows": ()}, {"windows": (0, 7)}, {"form": "quarter"}])
def test_unusable_options(keywords):
    with pytest.raises(InputError, match=r"^rscon\.(windows|form): found .*, expected"):
        rscon.rescore(*sample(7), **keywords)


_neighbours = jax.jit(rscon.neighbours, static_argnames=("windows", "form"))


def spread(ids, weights, n):
    """Weights at their columns: (n, n) from (N, K), of which the rows from n on are padding."""
    out = np.zeros((n, len(ids)))
    np.add.at(out, (np.arange(n)[:, None], np.asarray(ids)[:n]), np.asarray(weights)[:n])
    assert not out[:, n:].any()
    return out[:, :n]


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize(("windows", "form"), [((2, 5), "windows"), ((7,), "half")])
def test_eq_13_14_weights_of_the_neighbours(windows, form, compiled):
    _, features = sample(3, n=6)
    ids, weights = (_neighbours if compiled else rscon.neighbours)(features, windows=windows, form=form)
    assert ids.shape == weights.shape == (6, min(max(windows), 6))
    order = np.argsort(-(features @ features.T), axis=1, kind="stable")
    np.testing.assert_array_equal(ids, order[:, : ids.shape[1]])
    expected = reference.weights(features, windows, form)
    np.testing.assert_allclose(spread(ids, weights, 6), expected, atol=TOLERANCE, rtol=0)


@given(SEEDS, COUNTS)
def test_the_weights_are_those_that_rescore_mixes_with(seed, n):
    scores, features = sample(seed, n)
    features[0] = 0  # no neighbour counts: all of the score is its own
    values, rows, valid = padded(scores, features)
    for form, windows in (("windows", (1, 7)), ("half", (7,))):
        ids, weights = _neighbours(rows, windows=windows, form=form, valid=valid)
        mixing = spread(ids, weights, n)
        assert not mixing[0].any()
        assert not np.asarray(weights)[n:].any()
        mixed = mixing @ scores + (1 - mixing.sum(axis=1)) * scores
        found = _rescore(values, rows, windows=windows, form=form, normalise=False, valid=valid)[:n]
        np.testing.assert_allclose(found, mixed, atol=TOLERANCE, rtol=0)


def test_neighbours_refuse_what_rescore_refuses():
    with pytest.raises(InputError, match=r"^rscon\.windows: found \(0,\), expected"):
        rscon.neighbours(sample(7)[1], windows=(0,))
