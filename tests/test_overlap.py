"""Patches every half side, and tokens joined over depths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import muscjax
from muscjax import config, extract
from muscjax.backbones import network, overlap, vit
from muscjax.errors import InputError

EITHER_WAY = pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
SPEC = vit.Spec(patch_size=4, width=8, depth=6, heads=2, image_size=16, input_size=16, taps=(1, 3, 5))


def means(images, patch_size):
    """A network that sees the mean colour of its patches, in two stages."""
    b, height, width, c = images.shape
    h, w = height // patch_size, width // patch_size
    patches = images.astype(jnp.float32).reshape(b, h, patch_size, w, patch_size, c)
    tokens = jnp.mean(patches, axis=(2, 4)).reshape(b, h * w, c)
    return jnp.stack([tokens, tokens * tokens])


def by_loops(images, patch_size):
    """The mean over every patch of the finer grid, float64; outside of the image the nearest pixel counts."""
    b, height, width, c = images.shape
    half = patch_size // 2
    rows, columns = 2 * (height // patch_size), 2 * (width // patch_size)
    out = np.zeros((b, rows * columns, c))
    for i in range(rows):
        for j in range(columns):
            cells = [
                images[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)].astype(np.float64)
                for y in range(i * half - half // 2, i * half - half // 2 + patch_size)
                for x in range(j * half - half // 2, j * half - half // 2 + patch_size)
            ]
            out[:, i * columns + j] = np.mean(cells, axis=0)
    return np.stack([out, out * out])


@EITHER_WAY
@pytest.mark.parametrize("patch_size", [4, 6])
def test_tokens_against_loops(compiled, patch_size):
    images = np.random.default_rng(0).random((2, 2 * patch_size, 3 * patch_size, 3)).astype(np.float32)
    run = functools.partial(
        overlap.overlapping, functools.partial(means, patch_size=patch_size), patch_size=patch_size
    )
    found = (jax.jit(run) if compiled else run)(images)
    assert found.shape == (2, 2, 24, 3)
    np.testing.assert_allclose(found, by_loops(images, patch_size), atol=1e-6)


@EITHER_WAY
@pytest.mark.parametrize("patch_size", [4, 6])
def test_a_quincunx_is_every_second_patch(compiled, patch_size):
    images = np.random.default_rng(5).random((2, 2 * patch_size, 3 * patch_size, 3)).astype(np.float32)
    run = functools.partial(
        overlap.quincunx, functools.partial(means, patch_size=patch_size), patch_size=patch_size
    )
    found = np.asarray((jax.jit(run) if compiled else run)(images))
    assert found.shape == (2, 2, 12, 3)
    every = by_loops(images, patch_size).reshape(2, 2, 4, 6, 3)
    grid = found.reshape(2, 2, 4, 3, 3)
    np.testing.assert_allclose(grid[:, :, 0::2], every[:, :, 0::2, 0::2], atol=1e-6)
    np.testing.assert_allclose(grid[:, :, 1::2], every[:, :, 1::2, 1::2], atol=1e-6)


def test_a_shifted_picture_gives_shifted_tokens():
    images = np.random.default_rng(1).random((1, 16, 16, 3)).astype(np.float32)
    run = functools.partial(overlap.overlapping, functools.partial(means, patch_size=4), patch_size=4)
    first, second = (
        np.asarray(run(x)).reshape(2, 8, 8, 3) for x in (images, np.roll(images, (2, 4), axis=(1, 2)))
    )
    np.testing.assert_allclose(second[:, 2:-1, 3:-1], first[:, 1:-2, 1:-3], atol=1e-6)


@EITHER_WAY
def test_joined_tokens_are_means_of_unit_tokens(compiled):
    tokens = np.random.default_rng(2).normal(size=(3, 2, 5, 4)).astype(np.float32)
    scaled = tokens * np.asarray([1, 50, 0.1], np.float32)[:, None, None, None]
    run = functools.partial(overlap.joined, lambda images: jnp.asarray(scaled))
    found = (jax.jit(run) if compiled else run)(np.zeros((2, 1, 1, 3), np.float32))
    unit = tokens / np.sqrt((tokens.astype(np.float64) ** 2).sum(-1, keepdims=True))
    np.testing.assert_allclose(found, unit.mean(axis=0)[None], atol=1e-6)


@pytest.fixture(scope="module")
def backbone():
    return network.image_backbone(vit.init(jax.random.key(0), spec=SPEC), SPEC)


def test_as_it_always_was_it_stays_the_same_object(backbone):
    assert overlap.configured(backbone, config.released().network) is backbone
    assert overlap.configured(backbone, config.paper().network) is backbone


def test_depths_are_shares_of_the_network(backbone):
    tapped = overlap.configured(backbone, config.NetworkConfig(depths=(0.01, 1 / 6, 0.5, 1.0, 1.0)))
    assert tapped.taps == (0, 2, 5)


def test_a_network_used_densely(backbone):
    dense = overlap.configured(backbone, config.NetworkConfig(depths=(1 / 3, 1.0), join=True, overlap="full"))
    images = np.random.default_rng(3).integers(0, 255, (2, 16, 16, 3), np.uint8)
    tokens = jax.jit(lambda b, x: b(x))(dense, images)  # its parameters are traced
    assert tokens.shape == (1, 2, 64, 8)
    middle = np.asarray(dense(images[:, 2:-2, 2:-2])).reshape(2, 6, 6, 8)
    assert np.isfinite(middle).all()
    # Of every second row and column, the pass that begins half a patch further in, the whole image is seen.
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    alone = overlap.joined(dense.network, jnp.asarray(padded[:, 2:, 2:]))
    np.testing.assert_allclose(
        np.asarray(tokens).reshape(2, 8, 8, 8)[:, 1::2, 1::2].reshape(1, 2, 16, 8), alone, atol=1e-5
    )


@pytest.mark.parametrize(("form", "grid"), [("none", (4, 4)), ("quincunx", (8, 4)), ("full", (8, 8))])
def test_the_network_knows_its_grid(backbone, form, grid):
    dense = overlap.configured(backbone, config.NetworkConfig(join=True, overlap=form))
    assert dense.patch_grid((16, 16)) == grid
    assert extract.patch_grid(dense, grid[0] * grid[1], (16, 16)) == grid
    tokens = dense(np.random.default_rng(6).integers(0, 255, (1, 16, 16, 3), np.uint8))
    assert tokens.shape == (1, 1, grid[0] * grid[1], 8)


@pytest.mark.parametrize(
    ("kinds", "form", "cells"),
    [
        (("image",), "quincunx", "bricks"),
        (("both",), "full", "gaussian"),
        (("image", "both"), "full", "gaussian"),
        ((), "none", "gaussian"),
    ],
)
def test_auto_is_fine_beside_points_and_a_quincunx_alone(kinds, form, cells):
    found = overlap.resolved(config.muscjax(), kinds)
    assert (found.network.overlap, found.maps.cells) == (form, cells)


@pytest.mark.parametrize("kinds", [("image",), ()])
def test_bricks_without_a_quincunx_are_refused(kinds):
    wrong = config.override(config.released(), "maps.cells=bricks")
    with pytest.raises(InputError, match=r"^maps\.cells: found bricks"):
        overlap.resolved(wrong, kinds)


def test_what_was_asked_for_stays(backbone):
    full = config.override(config.muscjax(), "network.overlap=full")
    assert overlap.resolved(full, ["image"]) == full
    for preset in (config.released(), config.paper()):
        assert overlap.resolved(preset, ["image"]) == preset


def test_detection_with_a_quincunx():
    """One score for each of its patches, and a spot lights up where it lies."""
    rng = np.random.default_rng(7)
    images = np.repeat(rng.integers(90, 110, (1, 16, 16, 3), np.uint8), 6, axis=0)
    images[3, 9:13, 3:7] = 255
    settings = overlap.resolved(config.muscjax(), ["image"])
    colours = functools.partial(means, patch_size=4)
    dense = overlap.Overlapping(colours, 4, 16, join=False, overlap="quincunx")
    found = muscjax.detect(images, image_backbone=dense, config=settings)
    assert found.patch_scores.image.shape == (6, 32)
    high = np.asarray(found.anomaly_map)
    assert high.reshape(6, -1).max(axis=1).argmax() == 3
    y, x = np.unravel_index(high[3].argmax(), high[3].shape)
    assert abs(y - 10.5) <= 2
    assert abs(x - 4.5) <= 2
