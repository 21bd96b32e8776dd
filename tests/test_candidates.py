"""``scoring.window``: the nearest patch is sought among those that lie near on the grid."""

import dataclasses

import numpy as np
import pytest

from muscjax import config, maps, pipeline, reference, rows
from muscjax.cli import options
from muscjax.errors import InputError
from muscjax.explain import explain
from muscjax.types import Features
from tests.reference import scoring as oracle
from tests.test_pipeline import image_tokens, point_tokens, scans, small


@pytest.fixture(scope="module")
def found():
    images, clouds = scans(6)
    return pipeline.extract(
        images, clouds, image_backbone=image_tokens, point_backbone=point_tokens, config=small()
    )


def windowed(window, *more):
    return config.override(small(), f"scoring.window={window}", *more)


def score(found, settings, kind="both", **keywords):
    features, groups = found.features, found.groups
    if kind != "both":
        features = Features(*(getattr(features, k) if k == kind else None for k in ("image", "points")))
        groups = groups if kind == "points" else None
    shape = {"grid_hw": found.grid_hw, "map_hw": found.map_hw}
    return pipeline.score(features, groups, settings, **shape, **keywords)


def test_a_window_as_wide_as_the_grid_is_none(found):
    scored, wide = (score(found, windowed(window)) for window in ("none", 4))
    for a, b in zip((scored.image, scored.points), (wide.image, wide.points), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["image", "points"])
def test_scores_are_those_of_the_patches_in_the_window(found, kind):
    features = getattr(found.features, kind)
    scored = getattr(score(found, windowed(1, "scoring.refine=true"), kind), kind)
    if kind == "image":
        cells, valid = np.stack(np.divmod(np.arange(16), 4), axis=-1), np.ones((6, 16), bool)
        cells = np.broadcast_to(cells, (6, 16, 2))
    else:
        patch = np.asarray(maps.patch_of_pixel(found.groups.pixel, found.map_hw, found.grid_hw))
        cells, valid = np.stack(np.divmod(patch, 4), axis=-1), np.asarray(found.groups.valid)
    expected = np.zeros(scored.shape)
    for stage in features:
        distances = oracle.min_distances(stage, stage, valid, (cells, cells), 1)
        for i in range(6):
            others = np.delete(distances[i], i, axis=1)
            expected[i] += [oracle.interval_average(row, 0.3) for row in others]
    np.testing.assert_allclose(scored, expected / len(features), rtol=1e-5, atol=1e-5)


def test_every_way_of_scoring_has_the_window(found, monkeypatch):
    settings = windowed(1, "cae.enabled=false", "scoring.refine=true")  # distances here are near 0
    expected = score(found, settings)
    monkeypatch.setattr(pipeline, "_held", lambda *sizes: settings.run.memory_budget + 1)
    streamed = score(found, settings)
    monkeypatch.undo()
    np.testing.assert_allclose(streamed.image, expected.image, rtol=1e-6)
    np.testing.assert_allclose(streamed.points, expected.points, rtol=1e-6)
    same = np.eye(6, dtype=bool)
    against = reference.score_against(
        found.features,
        found.groups,
        found.features,
        np.asarray(found.groups.valid),
        settings,
        grid_hw=found.grid_hw,
        map_hw=found.map_hw,
        reference_pixel=np.asarray(found.groups.pixel),
        same=same,
    )
    np.testing.assert_allclose(against.image, expected.image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(against.points, expected.points, rtol=1e-5, atol=1e-6)


def test_explain_follows_the_window(found):
    settings = windowed(1)
    scored = pipeline.score_subsets(found, settings)
    shape = {"grid_hw": found.grid_hw, "map_hw": found.map_hw}
    detection = pipeline.finish(scored, found.clouds, found.groups, settings, **shape)
    told = explain(found, settings, 3, (20, 9), detection=detection)
    assert abs(told.image.score - scored.image[3, told.place.patch]) <= 1e-5
    assert abs(told.points.score - scored.points[3, told.place.group]) <= 1e-5


def test_a_normal_part_in_the_wrong_place_is_found_by_the_window_alone():
    """Five aligned scans of two halves; in the last one the halves are swapped."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((1, 5, 36, 4), np.float32)
    tokens[..., 0] = (np.arange(36) % 6 < 3) * 1.0
    tokens[0, 4, :, 0] = 1 - tokens[0, 4, :, 0]
    tokens += rng.normal(size=tokens.shape).astype(np.float32) * np.float32(1e-3)
    extracted = Features(tokens, None)
    shape = {"grid_hw": (6, 6), "map_hw": (48, 48)}
    free, near = (
        np.asarray(pipeline.score(extracted, None, windowed(w), **shape).image).max(axis=1)
        for w in ("none", 1)
    )
    assert free[4] < 0.1
    assert near[4] > 0.9
    assert near[:4].max() < 0.1


def test_places_of_points_alone_are_on_the_paper_s_grid():
    pixel = np.asarray([[0, 223, 224 * 224 - 1, 8 * 224 + 8]])
    image, points = rows.places(None, pixel, window=1, grid_hw=None, map_hw=(224, 224))
    assert image is None
    np.testing.assert_array_equal(points[0], [[0, 0], [0, 27], [27, 27], [1, 1]])
    assert rows.places((2, 4), pixel, window=None, grid_hw=(2, 2), map_hw=(224, 224)) == (None, None)


def test_candidates_of_the_command_line():
    def chosen(text):
        return options.configured(None, None, None, candidates=text).scoring.window

    assert chosen("window:2") == 2
    assert chosen("window:0") == 0
    assert chosen("all") is None
    for text in ("window", "window:", "window:-1", "window:x", "near:2", ""):
        with pytest.raises(InputError, match="--candidates"):
            chosen(text)
    with pytest.raises(InputError, match=r"scoring\.window"):
        config.override(config.released(), "scoring.window=-1")
    assert dataclasses.replace(config.ScoringConfig(), window=3).kernel["window"] == 3
