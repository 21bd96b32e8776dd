import dataclasses

import jax
import numpy as np
import pytest

from muscjax import config, pairs, pipeline, scoring
from muscjax.errors import InputError
from muscjax.types import Features, PointGroups

N, GRID, G, HW = 7, (3, 4), 10, (12, 16)
SHAPE = {"grid_hw": GRID, "map_hw": HW}


def features(image=3, points=1, levels=1, seed=0):
    """Random features: so many blocks of each modality, each with ``levels`` entries."""
    rng = np.random.default_rng(seed)

    def unit(blocks, rows):
        x = rng.normal(size=(blocks * levels, N, rows, 6)).astype(np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    return Features(
        unit(image, GRID[0] * GRID[1]) if image else None,
        unit(points, G) if points else None,
        levels=(levels if image else 1, levels if points else 1),
    )


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(1)
    valid = np.ones((N, G), bool)
    valid[2, 7:] = False  # a cloud of few points
    valid[4] = False  # and none
    return PointGroups(
        indices=np.zeros((N, G, 0), np.int32),
        centers=rng.normal(size=(N, G, 3)).astype(np.float32),
        center_index=np.zeros((N, G), np.int32),
        curvature=np.zeros((N, G), np.float32),
        pixel=rng.integers(0, HW[0] * HW[1], (N, G)).astype(np.int32),
        valid=valid,
    )


def measured(given, groups, settings):
    valid = None if groups is None else groups.valid
    return pairs.Distances(
        None if given.image is None else pairs.measure(given.image, settings),
        None if given.points is None else pairs.measure(given.points, settings, valid=valid),
    )


def check(given, groups, settings, **functions):
    """The stored distances give what the pipeline gives."""
    distances = measured(given, groups, settings)
    found = pairs.score(distances, given, groups, settings, **SHAPE, **functions)
    expected = pipeline.score(given, groups, settings, **SHAPE, **functions)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    return distances, found


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_both_modalities(groups, preset):
    distances, _ = check(features(), groups, config.preset(preset))
    assert distances.image.shape == (3, N, 12, N)
    assert distances.points.shape == (1, N, G, N)
    assert np.isinf(distances.image[:, range(N), :, range(N)]).all()


def test_one_modality_alone(groups):
    check(features(points=0), None, config.released())
    check(features(image=0), groups, config.released())


def test_levels_of_a_single_block_of_points_meet_their_own_level(groups):
    given = features(image=2, points=1, levels=2)
    check(given, groups, config.released())
    # By hand: level by level, the only block of points with every block of the image.
    parts = [
        pipeline.score(
            Features(given.image[i : i + 1], given.points[p : p + 1]), groups, config.released(), **SHAPE
        )
        for i, p in ((0, 0), (1, 1), (2, 0), (3, 1))
    ]
    whole = pipeline.score(given, groups, config.released(), **SHAPE)
    np.testing.assert_allclose(whole.image, np.mean([p.image for p in parts], axis=0), atol=1e-6)
    np.testing.assert_allclose(whole.points, np.mean([p.points for p in parts], axis=0), atol=1e-6)


def test_stages_and_levels_that_do_not_match_are_refused(groups):
    given = features(image=3, points=2)
    with pytest.raises(InputError, match="found 3 and 2 stages"):
        pipeline.score(given, groups, config.released(), **SHAPE)
    uneven = dataclasses.replace(features(image=3, points=2, levels=2), levels=(3, 2))
    with pytest.raises(InputError, match="found 3 and 2 levels"):
        pipeline.score(uneven, groups, config.released(), **SHAPE)


def test_other_stages_are_taken(groups):
    def swap(image, points, patch, group_valid, ref_valid, settings):
        return image * 2, points * 3

    check(features(), groups, config.released(), fuse=swap, average=scoring.plain_average)
    check(features(), groups, config.override(config.released(), "cae.enabled=false"))


def test_a_subset_is_scored_from_the_distances_of_all(groups):
    given, ids = features(), np.array([5, 0, 3, 2])
    part = Features(given.image[:, ids], given.points[:, ids])
    of_part = jax.tree.map(lambda leaf: leaf[ids], groups)
    taken = pairs.take(measured(given, groups, config.released()), ids)
    found = pairs.score(taken, part, of_part, config.released(), **SHAPE)
    expected = pipeline.score(part, of_part, config.released(), **SHAPE)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


def test_what_cannot_be_held_is_refused():
    small = dataclasses.replace(config.released(), run=config.RunConfig(memory_budget=1 << 20))
    big = np.zeros((64, 20, 40, 2), np.float32)
    with pytest.raises(InputError, match="all distances of 20 scans take"):
        pairs.measure(big, small)
    with pytest.raises(InputError, match="at least two scans, found 1"):
        pairs.measure(big[:, :1], config.released())
