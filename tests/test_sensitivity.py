"""Numbers that may be traced give what the static ones give, many settings in one program."""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sensitivity
from muscjax import cae, config, ipg, pipeline, scoring
from muscjax.types import Cloud, Features, PointGroups

GRID, SIDE = (3, 3), 24


def sample(seed=0, n=6, groups=7):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, 9, 5)).astype(np.float32)
    points = rng.normal(size=(n, groups, 4)).astype(np.float32)
    return (
        image,
        points,
        PointGroups(
            indices=np.zeros((n, groups, 0), np.int32),
            centers=rng.normal(size=(n, groups, 3)).astype(np.float32),
            center_index=np.zeros((n, groups), np.int32),
            curvature=np.zeros((n, groups), np.float32),
            pixel=rng.integers(0, SIDE * SIDE, (n, groups)).astype(np.int32),
            valid=np.ones((n, groups), bool),
        ),
    )


def test_every_setting_of_a_sweep_is_what_a_run_of_its_own_gives():
    image, points, groups = sample()
    n = len(image)
    fractions = np.float32([0.2, 0.5, 1.0])
    scales = np.float32([1.0, 1.0, 0.0])
    plan = scoring.plan(n, (9, 7), memory_budget=1 << 30)
    shape = {"grid_hw": GRID, "map_hw": (SIDE, SIDE)}
    by_image, by_points = sensitivity.sweep(
        image, points, groups, jnp.int32(n), fractions, scales, plan=plan, config=config.CaeConfig(), **shape
    )
    for i, (fraction, scale) in enumerate(zip(fractions, scales, strict=True)):
        assignments = (f"scoring.interval={float(fraction):.1f}", f"cae.confidence={str(scale == 1).lower()}")
        settings = config.override(config.released(), *assignments)
        alone = pipeline.score(Features(image[None], points[None]), groups, settings, **shape)
        np.testing.assert_allclose(by_image[i], alone.image, rtol=2e-6)
        np.testing.assert_allclose(by_points[i], alone.points, rtol=2e-6)


@pytest.mark.parametrize("count", range(1, 12))
def test_a_traced_fraction_averages_as_many_as_a_static_one(count):
    distances = np.random.default_rng(count).random((4, count)).astype(np.float32)
    for fraction in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
        np.testing.assert_array_equal(
            scoring.interval_average(distances, jnp.float32(fraction)),
            scoring.interval_average(distances, fraction),
        )


def test_a_scale_of_zero_is_no_confidence():
    rng = np.random.default_rng(3)
    rows = [rng.random((size, 5)).astype(np.float32) for size in (9, 7)]
    own = (rng.integers(0, 9, 7).astype(np.int32), np.ones(7, bool), np.ones(5, bool))
    for settings in (config.released().cae, config.paper().cae):
        without = dataclasses.replace(settings, confidence=False)
        for traced, static in zip(
            cae.enhance(*rows, *own, settings, scale=jnp.float32(0)),
            cae.enhance(*rows, *own, without),
            strict=True,
        ):
            np.testing.assert_array_equal(traced, static)


def test_a_traced_curvature_threshold_groups_as_the_configured_one():
    rng = np.random.default_rng(4)
    points = rng.normal(size=(64, 3)).astype(np.float32)
    points[:, 2] *= 0.2
    cloud = Cloud(points, points / np.abs(points).max(), np.ones(64, bool), np.arange(64, dtype=np.int32))
    settings = config.GroupConfig(groups=6, group_size=8, initial_size=4, skip_origin=False)
    curved = np.sort(np.asarray(ipg.group(cloud, settings).curvature))
    threshold = float(curved[3])  # some groups on either side, one on it
    configured = dataclasses.replace(settings, curvature_threshold=threshold)
    expected = ipg.group(cloud, configured)
    chex.assert_trees_all_equal(
        ipg.group(cloud, settings, curvature_threshold=jnp.float32(threshold)), expected
    )
    assert not np.array_equal(expected.indices, ipg.group(cloud, settings, curvature_threshold=9.0).indices)
