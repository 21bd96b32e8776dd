"""Numbers that stay numbers: what holds of the whole pipeline whatever the scans, in every preset."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import muscjax
from muscjax import config, geometry, pipeline, scoring
from muscjax.errors import InputError
from muscjax.types import Features, PointGroups
from tests.test_pipeline import image_tokens, point_tokens, scans

PRESETS = sorted(config.PRESETS)
N, GRID, G, C = 7, (3, 3), 6, 5
SHAPE = {"grid_hw": GRID, "map_hw": (12, 12)}
FEW = settings(max_examples=3, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10**6)
# |Δd²| of a float32 product; of these features (5 channels around 0) norms are below 25.
DISTANCE = 4 * np.finfo(np.float32).eps * 2 * 25


def preset(name: str, *changes: str) -> config.Config:
    sizes = ("ipg.groups=16", "ipg.group_size=8", "ipg.initial_size=5")
    return config.override(config.PRESETS[name](), "network.overlap=none", *sizes, *changes)


def features(seed: int, n: int = N) -> tuple[Features, PointGroups]:
    """Two stages of image features and one of points, one group of which is no group."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, n, GRID[0] * GRID[1], C)).astype(np.float32)
    points = rng.normal(size=(1, n, G, C)).astype(np.float32)
    valid = np.ones((n, G), bool)
    valid[1, -1] = False
    groups = PointGroups(
        indices=np.zeros((n, G, 0), np.int32),
        centers=rng.normal(size=(n, G, 3)).astype(np.float32),
        center_index=np.tile(np.arange(G, dtype=np.int32), (n, 1)),
        curvature=np.zeros((n, G), np.float32),
        pixel=rng.integers(0, 144, (n, G)).astype(np.int32),
        valid=valid,
    )
    return Features(image, points), groups


def picked(found: Features, groups: PointGroups, ids) -> tuple[Features, PointGroups]:
    ids = np.asarray(ids)
    assert found.image is not None
    assert found.points is not None
    return Features(found.image[:, ids], found.points[:, ids]), jax.tree.map(lambda leaf: leaf[ids], groups)


def scored(found: Features, groups: PointGroups, settings: config.Config) -> tuple[np.ndarray, np.ndarray]:
    scores = pipeline.score(found, groups, settings, **SHAPE)
    for values in (scores.image, scores.points):
        assert np.isfinite(values).all()
        assert (np.asarray(values) >= 0).all()
    return np.asarray(scores.image), np.asarray(scores.points)


@pytest.mark.parametrize("name", PRESETS)
@FEW
@given(seed=SEEDS)
def test_permuting_the_samples_permutes_the_patch_scores(name, seed):
    """To rounding of the distances: another order meets in other tiles."""
    found, groups = features(seed)
    order = np.random.default_rng(seed + 1).permutation(N)
    here = scored(*picked(found, groups, order), preset(name, "cae.enabled=false"))
    for mine, theirs in zip(here, scored(found, groups, preset(name, "cae.enabled=false")), strict=True):
        np.testing.assert_allclose(mine, theirs[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_permuting_the_scans_permutes_maps_and_scan_scores(name):
    """Of images; ``test_pipeline`` has both modalities."""
    found, _ = features(2)
    settings, order = preset(name), np.random.default_rng(1).permutation(N)
    results = []
    for ids in (np.arange(N), order):
        scores = pipeline.score(Features(found.image[:, ids], None), None, settings, **SHAPE)
        results.append(pipeline.finish(scores, None, None, settings, **SHAPE))
    for field in ("anomaly_map", "map_max", "pred_score"):
        theirs, mine = (np.asarray(getattr(result, field)) for result in results)
        assert np.isfinite(mine).all()
        np.testing.assert_allclose(mine, theirs[order], rtol=1e-5, atol=1e-6, err_msg=field)


@pytest.mark.parametrize("name", PRESETS)
@FEW
@given(seed=SEEDS, power=st.integers(-20, 20))
def test_scores_scale_with_the_features(name, seed, power):
    """By a power of two bit for bit: nothing is added that does not scale; by another factor to rounding."""
    found, groups = features(seed)
    plain = preset(name, "cae.enabled=false")
    base = scored(found, groups, plain)
    for factor, exact in ((np.float32(2.0**power), True), (np.float32(3.7), False)):
        scaled = dataclasses.replace(found, image=found.image * factor, points=found.points * factor)
        for mine, theirs in zip(scored(scaled, groups, plain), base, strict=True):
            if exact:
                np.testing.assert_array_equal(mine, theirs * factor)
            else:
                np.testing.assert_allclose(mine, theirs * factor, rtol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
@FEW
@given(seed=SEEDS, which=st.integers(0, N - 1))
def test_a_duplicate_never_raises_its_twins_score(name, seed, which):
    """In either modality, CAE off, before RsCon; the others' scores are not what this is about."""
    found, groups = features(seed)
    plain = preset(name, "cae.enabled=false")
    before = scored(found, groups, plain)
    after = scored(*picked(found, groups, [*range(N), which]), plain)
    for mine, theirs in zip(after, before, strict=True):
        assert (mine[which] <= theirs[which] + 1e-6).all()
        np.testing.assert_allclose(mine[N], mine[which], atol=np.sqrt(DISTANCE), rtol=0)


def test_plans_blocks_and_tiles_change_nothing(monkeypatch):
    """Bit for bit where the tile is the same, whatever the plan and the block; 1e-6 between tiles."""
    found, groups = features(3)
    settings = preset("paper", "cae.enabled=false")
    bases = []
    for tile in (2, 3):
        results = []
        for kind, block in (("symmetric", 2), ("rows", 3)):
            made = scoring.Plan(kind, block=block, tile=tile)
            monkeypatch.setattr(scoring, "plan", lambda *a, made=made, **k: made)
            results.append(scored(found, groups, settings))
        for mine, theirs in zip(*results, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        bases.append(results[0])
    for mine, theirs in zip(*bases, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_larger_buckets_of_samples_change_nothing(name, monkeypatch):
    """More rows that are no samples: to 1e-6, in the preset's own configuration."""
    found, groups = features(5)
    base = scored(found, groups, preset(name))
    monkeypatch.setattr(pipeline, "SAMPLE_BUCKET", 16)
    for mine, theirs in zip(scored(found, groups, preset(name)), base, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_masked_groups_change_nothing(name):
    """To 1e-6, in the preset's own configuration: groups that are none, whatever features they have."""
    found, groups = features(7)
    settings = preset(name)
    extra = jax.tree.map(
        lambda leaf: np.concatenate([leaf, np.zeros((N, 3, *leaf.shape[2:]), leaf.dtype)], 1), groups
    )
    wider = dataclasses.replace(
        found, points=np.concatenate([found.points, np.full((1, N, 3, C), 0.1, np.float32)], 2)
    )
    pairs = zip(scored(wider, extra, settings), scored(found, groups, settings), strict=True)
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine[:, : theirs.shape[1]], theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_masked_points_change_nothing(name):
    """To 1e-6: sums over more zeros may be added up in another order."""
    images, clouds = scans(4)
    held = [geometry.cloud_from_xyz(xyz) for xyz in clouds]

    def more(leaf):
        leaf = np.asarray(leaf)
        return np.concatenate([leaf, np.zeros((len(leaf), *leaf.shape[1:]), leaf.dtype)])

    settings = preset(name, f"input.map_size={images.shape[1]}")
    detect = {"image_backbone": image_tokens, "point_backbone": point_tokens, "config": settings}
    base = muscjax.detect(images, held, **detect)
    other = muscjax.detect(images, [jax.tree.map(more, cloud) for cloud in held], **detect)
    for mine, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(base), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


def blind(x):
    """A backbone that would hide it: what it says does not depend on what it sees."""
    return jnp.ones((1, len(x), 4, 3))


def without_points(cloud, groups):
    return jnp.ones((1, len(groups.centers), 3))


def broken(x):
    """A backbone that answers NaN for the third image of a batch."""
    return jnp.where(jnp.arange(len(x))[None, :, None, None] == 2, jnp.nan, jnp.ones((1, len(x), 4, 3)))


def broken_points(cloud, groups):
    return jnp.full((1, len(groups.centers), 3), jnp.inf)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_before_anything_is_computed(value):
    images, clouds = scans(4)
    held = [geometry.cloud_from_xyz(xyz) for xyz in clouds]
    points = np.array(held[2].points_m)
    images[2, 3, 4, 1], clouds[2, 9, 4, 2], points[2, 0] = value, value, value
    held[2] = dataclasses.replace(held[2], points_m=points)
    settings = preset("released", "input.map_size=32")
    with pytest.raises(InputError, match=r"images\[2\]: found NaN or infinity"):
        muscjax.detect(images, image_backbone=blind, config=settings)
    for spoiled in (clouds, held):
        with pytest.raises(InputError, match=r"clouds\[2\]: found NaN or infinity"):
            muscjax.detect(clouds=spoiled, point_backbone=without_points, config=settings)


def test_image_features_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="image features of scan 2 are not finite"):
        muscjax.detect(scans(4)[0], image_backbone=broken, config=preset("released"))


@pytest.mark.slow
def test_point_features_that_are_no_numbers_are_refused():
    clouds = scans(4)[1]
    with pytest.raises(InputError, match="point features of scan 0 are not finite"):
        muscjax.detect(clouds=clouds, point_backbone=broken_points, config=preset("released"))
