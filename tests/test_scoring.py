import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import scoring
from tests.budget import largest_intermediate
from tests.reference import scoring as reference

SYMMETRIC = scoring.Plan("symmetric", block=3, tile=2)
ROWS = scoring.Plan("rows", block=3, tile=2)


def features(seed, n, m=6, c=5, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=(n, m, c))).astype(np.float32)


def mutual_scores(z, plan=SYMMETRIC, fraction=0.3, **keywords):
    return scoring.map_rows(
        jnp.asarray(z),
        None,
        lambda rows, _, valid, ids: scoring.interval_average(rows, fraction, valid[:, None]),
        plan=plan,
        **keywords,
    )


@pytest.mark.parametrize("n", [5, 9, 17])
@pytest.mark.parametrize("plan", [SYMMETRIC, ROWS])
def test_golden_single_modality(golden, n, plan):
    recorded = golden("msm_single")
    scores = jax.jit(functools.partial(mutual_scores, plan=plan))(recorded[f"N{n}_Z"])
    assert np.abs(scores - recorded[f"N{n}_scores_f64"]).max() <= 1e-5


def test_golden_four_samples_stay_finite(golden):
    recorded = golden("msm_single")
    assert np.isnan(recorded["N4_scores_f64"]).all(), "the released code returns NaN here"
    scores = mutual_scores(recorded["N4_Z"])
    np.testing.assert_allclose(scores, reference.mutual_scores(recorded["N4_Z"]), atol=1e-5)


@pytest.mark.parametrize("refine", [False, True])
def test_golden_near_duplicates(golden, refine):
    recorded = golden("msm_single")
    scores = mutual_scores(recorded["N9dup_Z"], refine=refine)
    assert np.abs(scores - recorded["N9dup_scores_f64"]).max() <= (2e-7 if refine else 1e-5)


@given(st.sampled_from([(2, 1, 1), (5, 6, 5), (9, 2, 7)]), st.integers(0, 99))
def test_eq_08_nearest_patch_distance(shape, seed):
    n = shape[0]
    z = features(seed, *shape)
    expected = reference.min_distances(z, z)
    found = np.asarray(scoring.mutual_min_distances(jnp.asarray(z), tile=2))
    off = ~np.eye(n, dtype=bool)
    for i, j in np.argwhere(off):
        np.testing.assert_allclose(found[i, :, j], expected[i, :, j], atol=2e-5)
    assert np.isinf(found[np.eye(n, dtype=bool).nonzero()[0], :, np.arange(n)]).all()


@given(st.sampled_from([1, 4, 11]), st.sampled_from([0.01, 0.3, 0.7, 1.0]), st.integers(0, 99))
def test_eq_09_interval_average(r, fraction, seed):
    rows = np.random.default_rng(seed).random((4, r)).astype(np.float32)
    expected = [reference.interval_average(row.astype(np.float64), fraction) for row in rows]
    np.testing.assert_allclose(scoring.interval_average(jnp.asarray(rows), fraction), expected, rtol=1e-6)


def test_eq_09_only_valid_references_count():
    rows = np.random.default_rng(0).random((3, 12)).astype(np.float32)
    valid = np.arange(12) % 3 != 0
    expected = [reference.interval_average(row[valid].astype(np.float64), 0.3) for row in rows]
    found = scoring.interval_average(jnp.asarray(rows), 0.3, jnp.asarray(valid)[None])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    none = scoring.interval_average(jnp.asarray(rows), 0.3, jnp.zeros((1, 12), bool))
    np.testing.assert_array_equal(none, 0)


def test_plain_average_takes_all_references():
    rows = np.random.default_rng(0).random((3, 7)).astype(np.float32)
    np.testing.assert_allclose(scoring.plain_average(jnp.asarray(rows), 0.3), rows.mean(1), rtol=1e-6)


@pytest.mark.parametrize(("n", "block", "tile"), [(2, 1, 1), (5, 2, 3), (8, 4, 4), (7, 1, 8)])
def test_plans_blocks_and_tiles_change_nothing(n, block, tile):
    z = features(n, n)
    expected = mutual_scores(z)
    for kind in ("symmetric", "rows"):
        np.testing.assert_allclose(mutual_scores(z, scoring.Plan(kind, block, tile)), expected, atol=1e-6)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize(("n", "tile"), [(6, 1), (7, 3), (5, 8)])
def test_both_plans_round_alike(n, tile, refine):
    """Whole rows are equal to the bit, whichever plan or single sample they come from."""
    z = jnp.asarray(features(3, n, m=21, c=33))
    valid = jnp.asarray(np.random.default_rng(4).random((n, 21)) > 0.2)
    cells = jnp.asarray(np.random.default_rng(5).integers(0, 6, (n, 21, 2)).astype(np.int32))
    kernel = {"refine": refine, "window": 2}
    whole = scoring.mutual_min_distances(z, valid=valid, cells=cells, tile=tile, **kernel)
    for plan in (scoring.Plan("symmetric", 2, tile), scoring.Plan("rows", 2, tile)):
        found = scoring.map_rows(
            None, z, lambda _, rows, __, ___: rows, plan=plan, points_valid=valid, point_cells=cells, **kernel
        )
        np.testing.assert_array_equal(found, whole)
    for sample in range(n):
        row = scoring.sample_distances(z, sample, tile=tile, valid=valid, cells=cells, **kernel)
        np.testing.assert_array_equal(row, whole[sample])


@given(st.sampled_from([2, 7]), st.integers(0, 99))
def test_permutation_permutes_the_scores(n, seed):
    z = features(seed, n)
    order = np.random.default_rng(seed).permutation(n)
    np.testing.assert_allclose(mutual_scores(z[order]), mutual_scores(z)[order], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scores_scale_with_the_features(scale):
    z = features(0, 6)
    scaled = mutual_scores(np.float32(scale) * z)
    np.testing.assert_allclose(scaled, np.float32(scale) * mutual_scores(z), rtol=1e-4)


def test_a_duplicate_never_raises_its_twins_score():
    z = features(0, 6)
    for twin in range(6):
        more = mutual_scores(np.concatenate([z, z[twin : twin + 1]]))
        assert (more[twin] <= mutual_scores(z)[twin] + 1e-6).all()


@pytest.mark.parametrize("plan", [SYMMETRIC, ROWS])
def test_padding_samples_changes_nothing(plan):
    z = features(0, 5)
    padded = np.concatenate([z, features(1, 4)])
    scores = mutual_scores(padded, plan, count=5)[:5]
    np.testing.assert_allclose(scores, mutual_scores(z, plan), atol=1e-6)


def test_one_program_serves_every_count():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(z, count):
        return mutual_scores(z, count=count)

    z = features(0, 8)
    for n in (2, 5, 8):
        np.testing.assert_allclose(run(z, n)[:n], mutual_scores(z[:n]), atol=1e-6)


@pytest.mark.parametrize("plan", [SYMMETRIC, ROWS])
def test_the_sample_itself_is_never_handed_on(plan):
    z = features(0, 5)

    def check(rows, _, valid, ids):
        own = jnp.take_along_axis(rows, ids[:, None, None] % 5, axis=2)
        return jnp.isinf(own[..., 0]).all(axis=1) & (valid.sum(axis=1) == 4)

    assert np.asarray(scoring.map_rows(jnp.asarray(z), None, check, plan=plan)).all()


def test_references_without_a_valid_patch_do_not_count():
    z = features(0, 5)
    valid = np.ones((5, 6), bool)
    valid[2] = False
    scores = scoring.map_rows(
        None,
        jnp.asarray(z),
        lambda _, rows, ref, ids: scoring.interval_average(rows, 0.5, ref[:, None]),
        plan=SYMMETRIC,
        points_valid=jnp.asarray(valid),
    )
    kept = np.delete(np.arange(5), 2)
    expected = reference.mutual_scores(z[kept], 0.5)
    np.testing.assert_allclose(np.asarray(scores)[kept], expected, atol=1e-5)


def test_score_against_equals_mutual_scoring_of_a_new_sample():
    z = features(0, 7)
    alone = scoring.score_against(jnp.asarray(z[:1]), jnp.asarray(z[1:]))
    np.testing.assert_allclose(alone[0], mutual_scores(z)[0], atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_few_identical_samples_score_zero(n):
    z = np.repeat(features(0, 1), n, axis=0)
    assert np.asarray(mutual_scores(z, refine=True)).max() == 0
    assert np.isfinite(mutual_scores(z)).all()


def test_the_plan_follows_the_budget():
    assert scoring.plan(150, (784, 1024), memory_budget=4 << 30).kind == "symmetric"
    assert scoring.plan(3000, (784,), memory_budget=4 << 30).kind == "rows"
    with pytest.raises(ValueError, match="too small"):
        scoring.plan(3000, (784, 1024), memory_budget=64 << 20)


@pytest.mark.parametrize(("n", "budget"), [(16, 64 << 20), (150, 1 << 30), (600, 1 << 30)])
def test_no_intermediate_outgrows_the_budget(n, budget):
    plan = scoring.plan(n, (784,), memory_budget=budget)
    program = jax.make_jaxpr(functools.partial(mutual_scores, plan=plan))(
        jax.ShapeDtypeStruct((n, 784, 16), jnp.float32)
    )
    assert largest_intermediate(program.jaxpr) <= budget


def test_plans_are_hashable():
    assert len({SYMMETRIC, ROWS, dataclasses.replace(ROWS)}) == 2
