import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import config, place, snamd
from tests.reference import place as reference
from tests.test_snamd import group_sample, point_groups

SEEDS = st.integers(0, 10_000)
G = 40
WEIGHTS = {"distance": 1.5, "facing": 0.9}
OWN = config.muscjax().snamd

_jitted = jax.jit(place.of_groups, static_argnames=("distance", "facing"))


def shell(seed: int, count: int = G) -> tuple[np.ndarray, np.ndarray]:
    """Centres on the side of a bumpy ellipsoid that a camera at -z sees, and which of them are valid."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    direction[:, 2] = -np.abs(direction[:, 2])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centers = direction * np.array([0.9, 0.6, 0.4]) + rng.normal(size=(count, 3)) * 0.01
    return centers.astype(np.float32), rng.random(count) < 0.9


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_loops(seed, compiled):
    centers, valid = shell(seed)
    expected, sure = reference.of_groups(centers, valid, **WEIGHTS)
    found = np.asarray((_jitted if compiled else place.of_groups)(centers, valid, **WEIGHTS))
    assert found.dtype == np.float32
    assert sure.mean() > 0.8
    np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(found[sure], expected[sure], atol=1e-4)
    assert not found[~valid].any()


@given(SEEDS)
def test_turning_the_part_under_the_camera_changes_nothing(seed):
    """About the camera's axis, in which the sign of a normal is as it was."""
    centers, valid = shell(seed)
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    _, sure = reference.of_groups(centers, valid, **WEIGHTS)
    turned = _jitted((centers @ turn.T).astype(np.float32), valid, **WEIGHTS)
    np.testing.assert_allclose(np.asarray(turned)[sure], np.asarray(_jitted(centers, valid, **WEIGHTS))[sure],
                               atol=2e-3)  # fmt: skip


def tipped(centers: np.ndarray, degrees: float) -> np.ndarray:
    """Turned about the y axis, which is across the line of sight."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (centers @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])).astype(np.float32)


def test_other_turns_count_where_a_wall_tips_through_the_line_of_sight():
    """While it faces the camera both numbers stay; beyond, ``facing`` has the other sign."""
    y, z = np.mgrid[-3:4, -3:4].reshape(2, -1) * 0.05
    wall = np.stack([np.full(len(y), 0.5), y, z], axis=1)
    found = np.asarray([_jitted(tipped(wall, tilt), np.ones(len(y), bool), **WEIGHTS)[24]
                        for tilt in (-60, -30, -1, 1, 30, 60)])  # fmt: skip
    np.testing.assert_allclose(found[:, 0], 0.75, atol=1e-5)
    np.testing.assert_allclose(np.abs(found[:, 1]), 0.9, atol=1e-5)
    assert len(np.unique(np.sign(found[:3, 1]))) == len(np.unique(np.sign(found[3:, 1]))) == 1
    assert np.sign(found[0, 1]) == -np.sign(found[3, 1])


@given(SEEDS)
def test_order_and_what_is_not_valid_change_nothing(seed):
    centers, valid = shell(seed)
    order = np.random.default_rng(seed).permutation(G)
    _, sure = reference.of_groups(centers, valid, **WEIGHTS)
    found = np.asarray(_jitted(centers, valid, **WEIGHTS))
    shuffled = np.asarray(_jitted(centers[order], valid[order], **WEIGHTS))
    np.testing.assert_allclose(shuffled[sure[order]], found[order][sure[order]], atol=1e-4)
    elsewhere = np.where(valid[:, None], centers, np.float32(7))
    np.testing.assert_array_equal(np.asarray(_jitted(elsewhere, valid, **WEIGHTS)), found)


@given(SEEDS)
def test_weights_are_factors(seed):
    centers, valid = shell(seed)
    one = np.asarray(_jitted(centers, valid, distance=1.0, facing=1.0))
    np.testing.assert_allclose(_jitted(centers, valid, **WEIGHTS), one * np.float32([1.5, 0.9]), rtol=1e-6)
    assert (np.abs(one[:, 1]) <= 1 + 1e-6).all()


def test_a_wall_faces_away_from_the_middle_and_the_floor_of_a_pit_towards_it():
    y, x = np.mgrid[-3:4, -3:4].reshape(2, -1) * 0.05
    for depth, sign in ((-0.5, 1), (0.5, -1)):
        centers = np.stack([x, y, np.full(len(x), depth)], axis=1).astype(np.float32)
        found = _jitted(centers, np.ones(len(x), bool), distance=1.0, facing=1.0)
        np.testing.assert_allclose(found[24], [0.5, sign], atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_centres(count):
    """No plane through them: they face the camera."""
    centers = np.float32([[0, 0, -1], [0, 0, 0], [0, 0, 1]])[:count]
    padded = np.concatenate([centers, np.zeros((5 - count, 3), np.float32)])
    found = np.asarray(_jitted(padded, np.arange(5) < count, distance=1.0, facing=1.0))
    np.testing.assert_allclose(found[:count], np.float32([[1, 1], [0, 0], [1, -1]])[:count], atol=1e-6)
    assert not found[count:].any()


@pytest.mark.parametrize("points", [True, False], ids=["SNAMD", "no SNAMD"])
def test_pooled_groups_carry_their_place_beside_the_token(points):
    tokens, groups = group_sample(3)
    plain = dataclasses.replace(OWN, points=points, place_distance=0.0, place_facing=0.0)
    settings = dataclasses.replace(OWN, points=points)
    found = np.asarray(snamd.pool_groups(tokens, groups, settings, curvature_threshold=0.01))
    own = np.asarray(snamd.pool_groups(tokens, groups, plain, curvature_threshold=0.01))
    assert found.shape == (1, len(tokens), own.shape[-1] + 2)
    np.testing.assert_array_equal(found[..., :-2], own)
    where = np.asarray(place.of_groups(groups.centers, groups.valid, **WEIGHTS))
    first = int(np.argmax(groups.valid))
    expected = np.where(np.asarray(groups.valid)[:, None], where, where[first])
    np.testing.assert_allclose(found[0, :, -2:], expected, atol=1e-5)


def test_the_same_surface_elsewhere_on_the_part_is_another_feature():
    """Equal tokens: without their place at distance 0 of each other, with it apart."""
    centers, _ = shell(0)
    tokens = np.ones((G, 4), np.float32)
    found = np.asarray(
        snamd.pool_groups(tokens, point_groups(centers, np.zeros(G)), OWN, curvature_threshold=1.0)
    )[0]
    far = np.abs(np.linalg.norm(centers, axis=1)[:, None] - np.linalg.norm(centers, axis=1)) > 0.2
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert (apart[far] > 0.3).all()
    assert far.any()
