"""Circular Fourier HOG: float64 reference, symmetries, brightness, degenerate images, memory."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import config as configs
from muscjax import extract, snamd
from muscjax.backbones import texture
from muscjax.config import TextureConfig
from muscjax.errors import InputError
from tests.budget import largest_intermediate
from tests.reference import texture as reference

SMALL = TextureConfig(stride=7.0, gradient=1.2, windows=(2.0, 3.5), orders=4, gain=1.0)
SHAPE = (2, 31, 31, 3)
TOLERANCE = 1e-5
EITHER_WAY = pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])

JITTED = jax.jit(texture.describe, static_argnames=("config",))


def pictures(seed=0, shape=SHAPE):
    """Noise on a few broad blobs, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (shape[0], *(-(-side // 6) for side in shape[1:3]), 3))
    broad = coarse.repeat(6, axis=1).repeat(6, axis=2)[:, : shape[1], : shape[2]]
    return np.clip(broad + rng.integers(0, 50, shape), 0, 255).astype(np.uint8)


def described(images, config=SMALL, compiled=True):
    return np.asarray((JITTED if compiled else texture.describe)(images, config=config))


def as_grid(found, hw):
    return found.reshape(*found.shape[:2], *hw, found.shape[-1])


@EITHER_WAY
def test_equals_the_float64_reference(compiled):
    images = pictures()
    found = described(images, compiled=compiled)
    assert found.dtype == np.float32
    for image, ours in zip(images, found[0], strict=True):
        expected = reference.describe(image / 255, **dataclasses.asdict(SMALL))
        assert ours.shape == expected.shape == (16, texture.channels(SMALL))
        np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_equals_the_float64_reference_on_an_oblong_image_smaller_than_its_windows():
    config = dataclasses.replace(SMALL, windows=(6.0,), orders=2, stride=9.0, gain=3.0)
    images = pictures(3, (1, 12, 25, 3))
    assert texture.grid_shape((12, 25), config) == (1, 3)
    expected = reference.describe(images[0] / 255, **dataclasses.asdict(config))
    np.testing.assert_allclose(described(images, config)[0, 0], expected, atol=3 * TOLERANCE, rtol=0)


@given(seed=st.integers(0, 10_000), turns=st.integers(1, 3))
def test_a_quarter_turn_moves_the_descriptors_and_does_not_change_them(seed, turns):
    images = pictures(seed)
    still, turned = (
        as_grid(described(x), (4, 4)) for x in (images, np.rot90(images, turns, axes=(1, 2)).copy())
    )
    np.testing.assert_allclose(turned, np.rot90(still, turns, axes=(2, 3)), atol=TOLERANCE, rtol=0)


def test_any_rotation_leaves_the_middle_alone_where_sampling_is_fine():
    y, x = np.mgrid[-40:41, -40:41]

    def picture(angle):
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        shade = 0.5 + 0.2 * np.sin(u / 7 + 0.4) * np.cos(v / 9) + 0.1 * np.sin(v / 5 + 1)
        return np.repeat(shade[..., None], 3, axis=-1).astype(np.float32)

    config = TextureConfig(stride=81.0, gradient=1.5, windows=(3.0, 6.0), gain=1.0)
    found = described(np.stack([picture(a) for a in (0.0, 0.3, 1.1, 2.5)]), config)[0, :, 0]
    other = described(picture(0.0)[None, ::-1, ::-1][:, 6:, 6:], config)[0, :, 0]
    np.testing.assert_allclose(found[1:], found[:1].repeat(3, axis=0), atol=2e-2, rtol=0)
    assert np.abs(other - found[:1]).max() > 0.1  # another place is told apart


def test_a_mirror_image_turns_the_sign_of_the_skew_values_alone():
    images = pictures(5)
    still, mirror = (as_grid(described(x), (4, 4)) for x in (images, images[:, :, ::-1].copy()))
    mirror = mirror[:, :, :, ::-1]
    same = np.isclose(mirror, still, atol=TOLERANCE, rtol=0)
    opposite = np.isclose(mirror, -still, atol=TOLERANCE, rtol=0)
    skew = ~same.all(axis=(0, 1, 2, 3))
    assert (same | opposite).all()
    assert skew.sum() == len(SMALL.windows) * SMALL.orders  # the imaginary part of (m, -m)


@given(seed=st.integers(0, 10_000), gain=st.floats(0.3, 3.0))
def test_brighter_light_is_a_lower_contrast_constant(seed, gain):
    images = pictures(seed).mean(axis=-1, keepdims=True).astype(np.float32).repeat(3, axis=-1) / 255 / 3
    softer = dataclasses.replace(SMALL, contrast=0.05)
    brighter = texture.describe(images * np.float32(gain), config=softer)
    other = dataclasses.replace(softer, contrast=softer.contrast / gain**0.5)
    np.testing.assert_allclose(brighter, texture.describe(images, config=other), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_constant_image_is_its_floor(value):
    found = described(np.full(SHAPE, value, np.uint8))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[..., :-1], 0, atol=1e-3)
    np.testing.assert_array_equal(found[..., -1], np.float32(SMALL.floor))
    unit = np.asarray(snamd.l2_normalise(jnp.asarray(found)))
    np.testing.assert_allclose(unit[..., -1], 1, atol=1e-5)


def test_bytes_equal_fractions_and_a_batch_equals_its_members():
    images = pictures(7)
    together = described(images)
    fractions = described(images.astype(np.float32) / 255)
    np.testing.assert_allclose(together, fractions, atol=2e-6, rtol=0)
    for one in range(len(images)):
        np.testing.assert_allclose(
            described(images[one : one + 1])[:, 0], together[:, one], atol=2e-6, rtol=0
        )
    np.testing.assert_array_equal(described(images), together)


def test_the_gain_scales_and_the_pooled_features_know_it_only_through_snamd():
    images = pictures(9)
    louder = dataclasses.replace(SMALL, gain=50.0)
    np.testing.assert_allclose(described(images, louder), 50 * described(images), rtol=2e-6, atol=0)
    plain = configs.override(configs.released(), "snamd.image=false")
    one, other = (
        extract.extract_images(images, functools.partial(texture.describe, config=c), plain)[0]
        for c in (SMALL, louder)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("hw", "stride"),
    [((224, 224), 6.0), ((224, 224), 8.0), ((224, 168), 8.0), ((96, 130), 6.5), ((8, 8), 8.0)],
)
def test_the_grid_is_the_one_that_extraction_infers(hw, stride):
    config = TextureConfig(stride=stride)
    h, w = texture.grid_shape(hw, config)
    assert extract.grid_of(h * w, hw) == (h, w)


def test_colour_alone_is_told_apart_and_white_light_of_any_strength_is_none():
    red, gray = np.full(SHAPE, (150, 90, 90), np.uint8), np.full(SHAPE, 110, np.uint8)
    colours = np.array([i in (45, 46, 92, 93) for i in range(texture.channels(SMALL))])
    difference = np.abs(described(red) - described(gray)).max(axis=(0, 1, 2))
    assert (difference[colours][[0, 2]] > 0.5).all()
    assert (difference[~colours] < 1e-3).all()
    assert np.abs(described(pictures(2).mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, -1)))[
        ..., colours
    ].max() < 1e-6  # fmt: skip


def test_the_moments_of_a_line():
    line = np.linspace(0.0, 1.0, 21, dtype=np.float32)
    smooth, slope = (texture.gaussian_moment(21, 21, 1.5, n) @ line for n in (0, 1))
    np.testing.assert_allclose(smooth[9:12], line[9:12], atol=1e-6)
    np.testing.assert_allclose(slope[9:12], 1.5 / 20, atol=1e-6)
    np.testing.assert_allclose(texture.gaussian_moment(21, 4, 9.0, 0).sum(axis=1), 1, atol=1e-6)


def test_memory_grows_with_the_fields_and_not_with_windows_times_pixels():
    config, side = TextureConfig(), 224
    jaxpr = jax.make_jaxpr(functools.partial(texture.describe, config=config))(
        jax.ShapeDtypeStruct((4, side, side, 3), jnp.uint8)
    )
    fields = 4 * (config.orders + 1) * side * side * 8
    assert largest_intermediate(jaxpr.jaxpr) <= fields


@pytest.mark.parametrize(
    "assignment",
    [
        "stride=0.5",
        "gradient=0.1",
        "windows=[]",
        "windows=[0.2]",
        "orders=0",
        "orders=9",
        "contrast=0",
        "floor=0",
        "colour=-1",
        "gain=0",
    ],
)
def test_numbers_that_no_descriptor_can_use_are_refused(assignment):
    with pytest.raises(InputError, match=r"texture\."):
        configs.override(configs.released(), f"texture.{assignment}")
