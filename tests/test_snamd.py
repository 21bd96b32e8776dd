import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import snamd
from muscjax.config import SnamdConfig, paper
from muscjax.types import PointGroups
from tests.budget import largest_intermediate
from tests.reference import snamd as reference

RELEASED, PAPER = SnamdConfig(), paper().snamd
TOLERANCE = 2e-6
SEEDS = st.integers(0, 10_000)
EITHER_WAY = pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])

_grid = jax.jit(snamd.pool_grid, static_argnums=1, static_argnames=("weight", "combine"))
_groups = jax.jit(snamd.pool_groups, static_argnums=2, static_argnames=("weight", "combine"))


def grid_tokens(seed, shape=(6, 5, 7), scale=0.4):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def point_groups(centers, curvature, valid=None):
    g = len(centers)
    return PointGroups(
        indices=np.zeros((g, 1), np.int32),
        centers=np.asarray(centers, np.float32),
        center_index=np.arange(g, dtype=np.int32),
        curvature=np.asarray(curvature, np.float32),
        pixel=np.zeros(g, np.int32),
        valid=np.ones(g, bool) if valid is None else np.asarray(valid),
    )


def group_sample(seed, g=12, c=10):
    rng = np.random.default_rng(seed)
    curvature = np.where(rng.random(g) < 0.7, 0.001, 0.05)
    groups = point_groups(rng.normal(size=(g, 3)), curvature, rng.random(g) < 0.8)
    return rng.normal(size=(g, c)).astype(np.float32), groups


def expected_groups(tokens, groups, config, threshold=0.01):
    return reference.pool_groups(
        tokens,
        groups.centers,
        groups.curvature,
        groups.valid,
        config.degrees,
        threshold,
        divide_by=config.divide_by,
    )


# --- grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [(1,), (3,), (5,), (1, 3, 5)])
def test_grid_golden(golden, degrees):
    arrays = golden("snamd2d")
    name = "r" + "".join(map(str, degrees))
    config = dataclasses.replace(RELEASED, degrees=degrees)
    for stage in range(3):
        tokens = arrays[f"tokens_layer{stage}"][:, 1:].reshape(2, 14, 14, 48)
        pooled = np.concatenate([_grid(sample, config) for sample in tokens])
        before = arrays[f"{name}_prenorm"][:, :, stage]
        np.testing.assert_allclose(pooled, reference.unit(before), atol=TOLERANCE, rtol=0)
        if name == "r135":
            np.testing.assert_allclose(pooled, arrays["r135_postnorm"][:, :, stage], atol=TOLERANCE, rtol=0)


def test_eq_05_similarity_weight():
    """exp(-‖f_j - f_c‖): by itself, and in the mean of two cells that are each other's only neighbour."""
    distances = np.array([0, 0.5, 1, 3], np.float32)
    np.testing.assert_allclose(snamd.exp_similarity(jnp.asarray(distances)), np.exp(-distances), rtol=1e-6)
    a, b = np.array([0.6, 0.8]), np.array([0.9, 0.4])  # half a unit apart
    config = dataclasses.replace(PAPER, degrees=(3,))
    found = _grid(np.array([[a, b]], np.float32), config)[0]
    for row, (own, other) in zip(found, ((a, b), (b, a)), strict=True):
        pooled = (own + np.exp(-0.5) * other) / 2
        np.testing.assert_allclose(row, pooled / np.linalg.norm(pooled), atol=TOLERANCE)


def test_eq_07_degrees_are_joined_and_pooled_to_the_channels():
    degrees = [jnp.asarray([[1.0, 2.0]]), jnp.asarray([[3.0, 4.0]]), jnp.asarray([[5.0, 9.0]])]
    np.testing.assert_allclose(snamd.pool_degrees(degrees), [[[2, 6]]])  # (1 + 2 + 3) / 3, (4 + 5 + 9) / 3
    np.testing.assert_allclose(snamd.mean_degrees(degrees), [[[3, 5]]])  # released on a grid


@EITHER_WAY
@pytest.mark.parametrize("config", [RELEASED, PAPER], ids=["released", "paper"])
def test_eq_05_06_07_grid(config, compiled):
    tokens = grid_tokens(0)
    found = (_grid if compiled else snamd.pool_grid)(tokens, config)
    expected = reference.pool_grid(
        tokens,
        config.degrees,
        divide_by=config.divide_by,
        zero_padding=config.zero_padding,
        combine=config.combine_grid,
    )
    assert found.shape == (1, 30, 7)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("divide_by", ["weights", "count"])
@pytest.mark.parametrize("zero_padding", [True, False])
def test_eq_06_divisors_and_padding(divide_by, zero_padding):
    tokens = grid_tokens(1, (4, 5, 6))
    config = SnamdConfig(degrees=(5, 1), divide_by=divide_by, zero_padding=zero_padding)
    keywords = {"divide_by": divide_by, "zero_padding": zero_padding}
    expected = reference.pool_grid(tokens, (5, 1), combine="mean", **keywords)
    np.testing.assert_allclose(_grid(tokens, config), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 6, 3), (2, 1, 5)])
def test_grid_smaller_than_the_window(shape):
    tokens = grid_tokens(2, shape)
    expected = reference.pool_grid(tokens, (1, 3, 5), divide_by="weights", zero_padding=True, combine="mean")
    np.testing.assert_allclose(_grid(tokens, RELEASED), expected, atol=TOLERANCE, rtol=0)


def test_degrees_apart_with_average_pooling_are_lnamd():
    tokens = grid_tokens(3)
    found = _grid(tokens, RELEASED, weight=snamd.uniform_weight, combine=snamd.separate_degrees)
    expected = reference.pool_grid(
        tokens,
        (1, 3, 5),
        divide_by="count",
        zero_padding=True,
        combine="separate",
        weight=lambda d: 1.0,
    )
    assert found.shape == (3, 30, 7)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_another_weight_replaces_the_similarity():
    tokens = grid_tokens(4)
    found = _grid(tokens, RELEASED, weight=inverse_distance)
    expected = reference.pool_grid(
        tokens, (1, 3, 5), divide_by="weights", zero_padding=True, combine="mean", weight=inverse_distance
    )
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def inverse_distance(distance):
    return 1 / (1 + distance)


def test_grid_switched_off_only_normalises():
    tokens = grid_tokens(5)
    found = _grid(tokens, dataclasses.replace(RELEASED, image=False))
    np.testing.assert_allclose(found[0], reference.unit(tokens.reshape(30, 7)), atol=1e-7)


def test_zero_tokens_stay_finite():
    tokens = grid_tokens(6)
    tokens[2:4] = 0
    found = np.asarray(_grid(tokens, RELEASED))
    assert np.isfinite(found).all()
    assert not np.asarray(_grid(np.zeros_like(tokens), RELEASED)).any()


def test_no_neighbourhood_is_materialised():
    program = jax.make_jaxpr(lambda t: snamd.pool_grid(t, RELEASED))(jnp.zeros((28, 28, 64)))
    padded_grid = 32 * 32 * 64 * 4
    assert largest_intermediate(program.jaxpr) <= padded_grid


@given(SEEDS)
def test_grid_symmetries(seed):
    tokens = grid_tokens(seed)
    as_grid = functools.partial(np.reshape, shape=(6, 5, 7))
    plain = as_grid(np.asarray(_grid(tokens, RELEASED)))
    mirrored = as_grid(np.asarray(_grid(tokens[:, ::-1].copy(), RELEASED)))
    np.testing.assert_allclose(mirrored[:, ::-1], plain, atol=TOLERANCE)
    upside_down = as_grid(np.asarray(_grid(tokens[::-1].copy(), RELEASED)))
    np.testing.assert_allclose(upside_down[::-1], plain, atol=TOLERANCE)


@given(SEEDS)
def test_grid_follows_a_rotation_of_the_channels(seed):
    tokens = grid_tokens(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(7, 7)))[0]
    rotated = _grid((tokens @ rotation).astype(np.float32), RELEASED)
    np.testing.assert_allclose(rotated, np.asarray(_grid(tokens, RELEASED)) @ rotation, atol=4e-6)


@given(SEEDS)
def test_identical_tokens_stay_as_they_are(seed):
    token = grid_tokens(seed, (7,))
    config = dataclasses.replace(RELEASED, zero_padding=False)
    found = _grid(np.broadcast_to(token, (6, 5, 7)), config)
    np.testing.assert_allclose(found, np.broadcast_to(reference.unit(token), (1, 30, 7)), atol=TOLERANCE)


# --- groups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [(1,), (3,), (5,), (1, 3, 5)])
def test_groups_golden(golden, degrees):
    arrays = golden("snamd3d")
    groups = point_groups(arrays["center_xyz"], arrays["curvatures"])
    config = dataclasses.replace(RELEASED, degrees=degrees)
    expected = arrays["r" + "".join(map(str, degrees)) + "_features"][0]
    for stage in range(3):
        tokens = arrays[f"tokens_layer{stage}"][0]
        found = _groups(tokens, groups, config, curvature_threshold=0.01)[0]
        np.testing.assert_allclose(found, expected[:, stage], atol=TOLERANCE, rtol=0)
    # The first curvature is exactly float32(0.01), the second one ulp below: curved and flat.
    np.testing.assert_allclose(found[0], arrays["tokens_normed_layer2"][0, 0], atol=TOLERANCE, rtol=0)
    assert degrees == (1,) or not np.allclose(found[1], arrays["tokens_normed_layer2"][0, 1], atol=1e-4)


@EITHER_WAY
@pytest.mark.parametrize("config", [RELEASED, PAPER], ids=["released", "paper"])
def test_eq_05_06_07_groups(config, compiled):
    tokens, groups = group_sample(0)
    found = (_groups if compiled else snamd.pool_groups)(tokens, groups, config, curvature_threshold=0.01)
    assert found.shape == (1, 12, 10)
    np.testing.assert_allclose(found[0], expected_groups(tokens, groups, config), atol=TOLERANCE, rtol=0)


@given(SEEDS)
def test_groups_against_the_reference_with_invalid_ones(seed):
    tokens, groups = group_sample(seed)
    found = _groups(tokens, groups, RELEASED, curvature_threshold=0.01)[0]
    np.testing.assert_allclose(found, expected_groups(tokens, groups, RELEASED), atol=TOLERANCE, rtol=0)


@given(SEEDS)
def test_groups_permutation(seed):
    tokens, groups = group_sample(seed)
    order = np.random.default_rng(seed).permutation(12)
    shuffled = _groups(
        tokens[order], jax.tree.map(lambda leaf: leaf[order], groups), RELEASED, curvature_threshold=0.01
    )
    plain = np.asarray(_groups(tokens, groups, RELEASED, curvature_threshold=0.01))[0]
    kept = groups.valid[order]
    np.testing.assert_allclose(shuffled[0][kept], plain[order][kept], atol=TOLERANCE)


@given(SEEDS)
def test_groups_tokens_and_centers_have_no_scale(seed):
    tokens, groups = group_sample(seed)
    scaled = dataclasses.replace(groups, centers=groups.centers * np.float32(8))
    found = _groups(tokens * np.float32(100), scaled, RELEASED, curvature_threshold=0.01)
    plain = _groups(tokens, groups, RELEASED, curvature_threshold=0.01)
    np.testing.assert_allclose(found, plain, atol=TOLERANCE)


def test_fewer_groups_than_the_degree():
    rng = np.random.default_rng(7)
    for g in (1, 2, 3):
        tokens = rng.normal(size=(g, 6)).astype(np.float32)
        groups = point_groups(rng.normal(size=(g, 3)), np.zeros(g))
        for config in (RELEASED, PAPER):
            found = _groups(tokens, groups, config, curvature_threshold=0.01)[0]
            np.testing.assert_allclose(found, expected_groups(tokens, groups, config), atol=TOLERANCE)


def test_a_group_is_its_own_first_neighbour_among_duplicates():
    rng = np.random.default_rng(8)
    tokens = rng.normal(size=(6, 4)).astype(np.float32)
    groups = point_groups(np.repeat(rng.normal(size=(2, 3)), 3, axis=0), np.zeros(6))
    config = dataclasses.replace(RELEASED, degrees=(1,))
    found = _groups(tokens, groups, config, curvature_threshold=0.01)[0]
    np.testing.assert_allclose(found, reference.unit(tokens), atol=TOLERANCE)
    config = dataclasses.replace(RELEASED, degrees=(3, 5))
    found = _groups(tokens, groups, config, curvature_threshold=0.01)[0]
    np.testing.assert_allclose(found, expected_groups(tokens, groups, config), atol=TOLERANCE)


def test_groups_never_nan():
    tokens, groups = group_sample(9)
    tokens[3:6] = 0
    none = dataclasses.replace(groups, valid=np.zeros(12, bool))
    assert np.isfinite(_groups(tokens, groups, RELEASED, curvature_threshold=0.01)).all()
    assert not np.asarray(_groups(tokens, none, RELEASED, curvature_threshold=0.01)).any()
    off = dataclasses.replace(RELEASED, points=False)
    assert np.isfinite(_groups(tokens, groups, off, curvature_threshold=0.01)).all()


def test_groups_switched_off_only_normalises():
    tokens, groups = group_sample(10)
    groups = dataclasses.replace(groups, valid=np.ones(12, bool))
    found = _groups(tokens, groups, dataclasses.replace(RELEASED, points=False), curvature_threshold=0.01)
    np.testing.assert_allclose(found[0], reference.unit(tokens), atol=1e-7)


def test_threshold_can_be_traced():
    tokens, groups = group_sample(11)
    thresholds = jnp.asarray([0.0005, 0.01, 0.1], jnp.float32)
    pool = functools.partial(snamd.pool_groups, tokens, groups, RELEASED)
    swept = jax.jit(jax.vmap(lambda t: pool(curvature_threshold=t)))(thresholds)
    for threshold, found in zip(thresholds, swept, strict=True):
        expected = expected_groups(tokens, groups, RELEASED, threshold)
        np.testing.assert_allclose(found[0], expected, atol=TOLERANCE)


# --- parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "size"), [(12, 4), (9, 9), (10, 4), (7, 3), (3, 5), (1, 4), (15, 1)])
def test_adaptive_average_pool(length, size):
    x = np.random.default_rng(length).normal(size=(2, 3, length)).astype(np.float32)
    expected = np.apply_along_axis(reference.adaptive_average_pool, -1, x, size)
    np.testing.assert_allclose(snamd.adaptive_average_pool(jnp.asarray(x), size), expected, atol=1e-6)


def test_l2_normalise_keeps_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(snamd.l2_normalise(x), [[0.6, 0.8], [0, 0]], atol=1e-7)
