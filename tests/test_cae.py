import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import cae
from muscjax.config import CaeConfig, paper
from tests.reference import cae as reference

RELEASED, PAPER = CaeConfig(), paper().cae


def sample(seed, m=9, g=7, r=5):
    rng = np.random.default_rng(seed)
    image = rng.random((m, r)).astype(np.float32) + np.float32(0.1)
    points = rng.random((g, r)).astype(np.float32) + np.float32(0.1)
    return image, points, rng.integers(0, m, g).astype(np.int32)


def enhance(image, points, patch, config, *, group_valid=None, ref_valid=None):
    group_valid = np.ones(len(points), bool) if group_valid is None else group_valid
    ref_valid = np.ones(image.shape[1], bool) if ref_valid is None else ref_valid
    return jax.jit(cae.enhance, static_argnums=5)(image, points, patch, group_valid, ref_valid, config)


SIZES = st.sampled_from([(1, 1, 2), (9, 7, 5), (4, 9, 3)]).flatmap(
    lambda shape: st.tuples(st.integers(0, 99), *map(st.just, shape))
)


def agree(found, expected, atol=2e-6):
    """Equal but for the places where a near-tie of float32 flips two ranks of the float64 reference."""
    difference = np.abs(np.asarray(found) - expected)
    assert np.median(difference) <= atol
    assert (difference > atol).mean() <= 0.1


@pytest.mark.parametrize("confidence", [True, False])
@given(SIZES)
def test_eq_11_released(confidence, sizes):
    image, points, patch = sample(*sizes)
    config = dataclasses.replace(RELEASED, confidence=confidence)
    for found, expected in zip(
        enhance(image, points, patch, config),
        reference.released(image, points, patch, confidence),
        strict=True,
    ):
        agree(found, expected)


@pytest.mark.parametrize("confidence", [True, False])
@given(SIZES)
def test_eq_11_paper(confidence, sizes):
    image, points, patch = sample(*sizes)
    config = dataclasses.replace(PAPER, confidence=confidence)
    for found, expected in zip(
        enhance(image, points, patch, config),
        reference.paper(image, points, patch, confidence),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@given(SIZES)
def test_eq_10_alignment(sizes):
    image, points, patch = sample(*sizes)
    to_image, to_points = cae.align(image, points, patch, jnp.ones(len(points), bool))
    expected = reference.align(image, points, patch)
    np.testing.assert_allclose(to_image, expected[0], atol=1e-6)
    np.testing.assert_array_equal(to_points, expected[1])


def test_golden_intermediates(golden):
    recorded = golden("msm_multi")
    image, points = recorded["img0_org_2d_f32"], recorded["img0_org_3d_f32"]
    patch = recorded["point2patch_index"][0]
    groups, refs = jnp.ones(len(points), bool), jnp.ones(7, bool)
    to_image, to_points = cae.align(image, points, patch, groups)
    assert np.abs(to_image - recorded["img0_aligned_cross_2d_f32"]).max() <= 1e-6
    assert np.abs(to_points - recorded["img0_aligned_cross_3d_f32"]).max() <= 1e-6
    weights = cae.confidence(to_image, image, jnp.ones(len(image), bool), refs)
    assert np.abs(weights - recorded["img0_confidence_2d_f32"]).max() <= 1e-6
    weights = cae.confidence(to_points, points, groups, refs)
    assert np.abs(weights - recorded["img0_confidence_3d_f32"]).max() <= 1e-6
    fused = enhance(image, points, patch, RELEASED)
    for found, name in zip(fused, ("2d", "3d"), strict=True):
        difference = np.abs(found - recorded[f"img0_fused_{name}_f32"])
        assert difference.max() <= 2e-4
        assert np.median(difference) <= 1e-6


@pytest.mark.parametrize("config", [RELEASED, PAPER])
@given(SIZES)
def test_masked_references_and_groups_change_nothing(config, sizes):
    image, points, patch = sample(*sizes)
    wide_image = np.insert(image, 1, np.inf, axis=1)
    wide_points = np.insert(np.insert(points, 1, np.inf, axis=1), 0, 7.0, axis=0)
    ref_valid = np.insert(np.ones(image.shape[1], bool), 1, False)
    group_valid = np.insert(np.ones(len(points), bool), 0, False)
    expected = enhance(image, points, patch, config)
    found = enhance(
        wide_image, wide_points, np.insert(patch, 0, 0), config, group_valid=group_valid, ref_valid=ref_valid
    )
    np.testing.assert_allclose(np.delete(found[0], 1, axis=1), expected[0], atol=1e-6)
    np.testing.assert_allclose(np.delete(found[1][1:], 1, axis=1), expected[1], atol=1e-6)


@pytest.mark.parametrize("config", [RELEASED, PAPER])
@pytest.mark.parametrize("r", [1, 2])
def test_constant_distances_and_few_references_stay_finite(config, r):
    image, points = np.ones((4, r), np.float32), np.ones((3, r), np.float32)
    for found in enhance(image, points, np.zeros(3, np.int32), config):
        assert np.isfinite(found).all()


def test_without_any_common_reference_nothing_changes():
    image, points, patch = sample(0)
    found = enhance(image, points, patch, RELEASED, ref_valid=np.zeros(5, bool))
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], points)


def test_released_keeps_the_multiset_scale():
    """(org + permutation of org) / 2 has the mean of org."""
    image, points, patch = sample(3, m=30, g=20, r=8)
    for found, own in zip(enhance(image, points, patch, RELEASED), (image, points), strict=True):
        np.testing.assert_allclose(np.mean(found), own.mean(), rtol=1e-5)
