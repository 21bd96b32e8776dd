"""One sample's rows of distances, at once and a block of references at a time."""

import dataclasses

import numpy as np
import pytest

from muscjax import config, pipeline, scoring
from muscjax.errors import InputError
from muscjax.explain import explain, measure
from muscjax.streaming import Walk
from muscjax.types import Features
from tests.test_explain import detected, only
from tests.test_pipeline import image_tokens, point_tokens, scans, small
from tests.test_streaming import lazy

WINDOW = config.override(small(), "scoring.window=1")
PARTS = config.override(small(), "run.subsets=2")


@pytest.fixture(scope="module")
def both():
    images, clouds = scans(9)
    return pipeline.extract(
        images, clouds, image_backbone=image_tokens, point_backbone=point_tokens, config=small()
    )


def read_from_elsewhere(found):
    features = found.features
    image, points = (None if x is None else lazy(np.asarray(x)) for x in (features.image, features.points))
    return found._replace(features=dataclasses.replace(features, image=image, points=points))


@pytest.mark.parametrize("kind", ["both", "image", "points"])
@pytest.mark.parametrize("settings", [small(), WINDOW, PARTS], ids=["all", "window", "parts"])
@pytest.mark.parametrize(("tile", "references"), [(3, 3), (3, 6), (5, 10)])
def test_blocks_give_the_bits_of_all_at_once(kind, settings, tile, references, both, monkeypatch):
    """Of features in memory and of those that are read; the last block is not full."""
    given = both if kind == "both" else only(both, kind)
    detection, found = detected(given, settings), []
    walk = Walk(queries=tile, references=references, block=tile, tile=tile)
    for plan, extracted in (
        (scoring.Plan("rows", tile, tile), given),
        (walk, given),
        (walk, read_from_elsewhere(given)),
    ):
        monkeypatch.setattr(measure, "plan_of", lambda features, config, plan=plan: (12, plan))
        found.append([explain(extracted, settings, i, (20, 11), detection=detection) for i in (0, 4, 8)])
    for once, *others in zip(*found, strict=True):
        for other in others:
            for side in ("image", "points"):
                _same(getattr(other, side), getattr(once, side))


def _same(found, expected):
    assert (found is None) == (expected is None)
    for ours, theirs in zip(*((x.stages if x else ()) for x in (found, expected)), strict=True):
        for field in dataclasses.fields(theirs):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))


def budgeted(budget):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(1, 40, 64, 64)).astype(np.float32)
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    settings = config.released()
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, memory_budget=budget))
    return pipeline.Extracted(Features(tokens, None), None, None, (8, 8), (64, 64)), settings


def test_a_set_that_is_streamed_is_explained():
    """One stage's features of 655,360 bytes, in less; the numbers are those of the scores."""
    found, settings = budgeted(550_000)
    with pytest.raises(InputError, match="one stage's features"):
        pipeline.plan_of(found.features, settings)
    assert isinstance(measure.plan_of(found.features, settings)[1], Walk)
    stages = []
    detection = detected(found, settings)
    for sample in (0, 17, 39):
        told = explain(found, settings, sample, detection=detection)
        assert told.image is not None
        assert abs(told.image.score - detection.patch_scores.image[sample, told.place.patch]) <= 1e-6
        stages.append(told.image.stages[0])
        tokens = found.features.image[0].astype(np.float64)
        for i, j in enumerate(stages[-1].references):
            distance = np.linalg.norm(tokens[j] - tokens[sample, told.image.row], axis=1)
            assert abs(distance.min() - stages[-1].own[i]) <= 1e-5
            assert distance.argmin() == stages[-1].nearest[i]
    assert all(len(stage.references) == 39 for stage in stages)


@pytest.mark.parametrize("budget", [1000, 300_000])
def test_what_the_scores_refuse_is_refused(budget):
    found, settings = budgeted(budget)
    with pytest.raises(
        InputError, match=r"run\.memory_budget: .* do not hold the distances of one of 40 scans"
    ):
        measure.plan_of(found.features, settings)
    with pytest.raises(InputError, match=r"run\.memory_budget"):
        pipeline.score_subsets(found, settings)


def test_what_fits_is_done_at_once():
    found, settings = budgeted(1 << 30)
    assert measure.plan_of(found.features, settings) == pipeline.plan_of(found.features, settings)
