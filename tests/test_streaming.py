"""Blocks from a disk score as everything in memory does."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import stream
from muscjax import ahead, config, extract, pipeline, scoring, store, streaming
from muscjax.distances import Samples
from muscjax.errors import InputError
from muscjax.store import Field
from muscjax.streaming import Stage, Stages, Walk
from muscjax.types import Features, PointGroups
from tests.budget import largest_intermediate

N, M, G, C = 11, 16, 12, 6
SHAPE = {"grid_hw": (4, 4), "map_hw": (32, 32)}


@pytest.fixture(scope="module")
def material():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, N, M, C)).astype(np.float32)
    points = rng.normal(size=(1, N, G, C)).astype(np.float32)
    valid = rng.random((N, G)) > 0.1
    valid[3] = False
    zeros = np.zeros((N, G), np.float32)
    groups = PointGroups(
        indices=np.zeros((N, G, 0), np.int32),  # pyright: ignore[reportArgumentType]
        centers=np.zeros((N, G, 3), np.float32),  # pyright: ignore[reportArgumentType]
        center_index=zeros.astype(np.int32),  # pyright: ignore[reportArgumentType]
        curvature=zeros,  # pyright: ignore[reportArgumentType]
        pixel=rng.integers(0, 32 * 32, (N, G)).astype(np.int32),  # pyright: ignore[reportArgumentType]
        valid=valid,  # pyright: ignore[reportArgumentType]
    )
    return image, points, groups


@pytest.fixture(scope="module")
def whole(material):
    image, points, groups = material
    return pipeline.score(Features(image, points), groups, config.released(), **SHAPE)


def lazy(array, order=None):
    """The same features as rows of something that is read, in another order."""
    order = np.arange(array.shape[1]) if order is None else order
    return Stages(tuple(Stage(stage[np.argsort(order)], order) for stage in array))


def streamed(monkeypatch, features, groups, walk, **keywords):
    monkeypatch.setattr(pipeline, "_held", lambda size, shapes: 1 << 62)
    monkeypatch.setattr(streaming, "walk_of", lambda *given, **settings: walk)
    return pipeline.score(features, groups, config.released(), **SHAPE, **keywords)


def same(found, expected, limit):
    for name in ("image", "points", "salient"):
        ours, theirs = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        assert np.abs(ours - theirs).max() <= limit, name


def test_the_tile_of_the_other_plans_gives_the_same_bits(material, whole, monkeypatch):
    image, points, groups = material
    size, plan = pipeline.plan_of(Features(image, points), config.released())
    assert plan.tile == size == 12
    order = np.random.default_rng(1).permutation(N)
    given = Features(lazy(image, order), lazy(points, order))  # pyright: ignore[reportArgumentType]
    same(streamed(monkeypatch, given, groups, Walk(12, 12, 6, 12)), whole, 0)


@pytest.mark.parametrize("walk", [Walk(6, 4, 3, 2), Walk(3, 1, 3, 1)])
def test_any_blocks_give_the_same_scores(material, whole, monkeypatch, walk):
    image, points, groups = material
    same(streamed(monkeypatch, Features(image, points), groups, walk), whole, 1e-6)


def test_a_block_that_is_remembered_is_not_read_for(material, monkeypatch):
    image, points, groups = material
    kept, made = {}, []

    def remember(name, make):
        if name not in kept:
            made.append(name)
            kept[name] = make()
        return kept[name]

    walk = Walk(6, 4, 3, 2)
    first = streamed(monkeypatch, Features(image, points), groups, walk, remember=remember)
    assert made == ["0/0", "0/1", "1/0", "1/1"]
    del kept["1/0"]
    again = streamed(monkeypatch, Features(image, points), groups, walk, remember=remember)
    assert made == ["0/0", "0/1", "1/0", "1/1", "1/0"]
    same(again, first, 0)


def test_parts_of_the_set_are_read_from_it(material, monkeypatch):
    image, points, groups = material
    settings = dataclasses.replace(
        config.released(), run=dataclasses.replace(config.released().run, subsets=2)
    )
    found = []
    for given in (Features(image, points), Features(lazy(image), lazy(points))):  # pyright: ignore[reportArgumentType]
        extracted = pipeline.Extracted(given, None, groups, (4, 4), (32, 32))
        found.append(pipeline.score_subsets(extracted, settings))
    same(found[1], found[0], 0)


def test_a_walk_keeps_to_its_budget():
    for n, shapes, budget in [
        (3072, [(196, 192)], 400 << 20),
        (4096, [(196, 192)], 1 << 30),
        (1024, [(1369, 768), (1024, 384)], 4 << 30),
        (8, [(16, 6)], 64 << 20),
    ]:
        walk = streaming.walk_of(n, shapes, memory_budget=budget)
        assert walk.queries % walk.block == walk.queries % walk.tile == walk.references % walk.tile == 0
        features = 4 * sum(m * c for m, c in shapes)
        rows = 4 * n * sum(m for m, _ in shapes)
        spent = walk.queries * (rows + 2 * features) + 3 * walk.references * features
        spent += 12 * walk.block * rows + (walk.tile * max(m for m, _ in shapes)) ** 2 * 4
        assert spent <= budget, (n, walk)
    with pytest.raises(InputError, match=r"run\.memory_budget: 64 MiB do not hold .* at least \d+ MiB"):
        streaming.walk_of(1 << 16, [(1369, 768)], memory_budget=64 << 20)


def test_no_intermediate_of_a_walk_outgrows_its_budget():
    """The 3,000 samples of the issue, without computing any."""
    n, m, c, budget = 3072, 196, 192, 400 << 20
    walk = streaming.walk_of(n, [(m, c)], memory_budget=budget)
    width = -(-n // walk.references) * walk.references
    rows = jax.ShapeDtypeStruct((walk.queries, m, width), np.float32)
    queries, references = (
        Samples(jax.ShapeDtypeStruct((count, m, c), np.float32), None, None)  # pyright: ignore[reportArgumentType]
        for count in (walk.queries, walk.references)
    )
    number = jax.ShapeDtypeStruct((), np.int32)
    settings = config.released()
    kernel = (("implementation", "xla"), ("precision", "float32"), ("refine", False))
    statistics = {
        "scoring_config": settings.scoring, "cae_config": settings.cae, "grid_hw": (14, 14),
        "map_hw": (224, 224), "fuse": None, "average": scoring.interval_average,
    }  # fmt: skip
    met = functools.partial(streaming._met, tile=walk.tile, kernel=kernel)
    within = functools.partial(streaming._within, tile=walk.tile, kernel=kernel)
    scored = functools.partial(streaming._scored, size=n, block=walk.block, **statistics)
    for function, given in (
        (met, (rows, queries, references, number)),
        (within, (rows, queries, number)),
        (scored, (rows, None, None, number, number)),
    ):
        assert largest_intermediate(jax.make_jaxpr(function)(*given).jaxpr) <= budget // 2


def test_a_store_is_such_a_disk(material, whole, tmp_path, monkeypatch):
    image = material[0]
    opened = store.open_store(
        tmp_path, {}, [str(i) for i in range(N)], {"x": Field((M, C))}, batch=2, batches=1
    )
    for ids in store.missing(opened):
        store.write(opened, ids, {"x": image[0, ids.start : ids.stop]})
    stages = Stages((Stage(store.column(opened, "x"), np.arange(N)),) * 2)
    again = streamed(monkeypatch, Features(stages, None), None, Walk(6, 4, 3, 2))  # pyright: ignore[reportArgumentType]
    alone = pipeline.score(Features(np.stack([image[0]] * 2), None), None, config.released(), **SHAPE)
    assert np.abs(np.asarray(again.image) - np.asarray(alone.image)).max() <= 1e-6
    np.testing.assert_array_equal(again.salient, alone.salient)


def test_reading_ahead_is_by_another_thread_and_no_further():
    seen, here = [], threading.get_ident()

    def load(item):
        seen.append((item, threading.get_ident() == here))
        return item

    found = ahead.prefetch(load, range(9), workers=1, ahead=1)
    assert next(found) == 0
    assert len(seen) <= 2
    assert list(found) == list(range(1, 9))
    assert not any(own for _, own in seen)


def test_extraction_goes_to_the_sink_it_is_given(material):
    calls = []

    class Half(extract.Held):
        def __init__(self, *given):
            super().__init__(*given)
            self.missing = [range(2, 4), range(6, 8)]
            self._features[...] = 7

        def put(self, ids, features, groups):
            calls.append(list(ids))
            super().put(ids, features, groups)

    images = np.random.default_rng(0).random((8, 8, 8, 3)).astype(np.float32)

    def tokens(batch):
        return batch.reshape(len(batch), 4, 2, 4, 2, 3).mean((2, 4)).reshape(1, len(batch), 16, 3)

    settings = config.override(config.released(), "run.memory_budget=67108864")
    given, _ = extract.extract_images(images, tokens, settings)
    found, _ = extract.extract_images(images, tokens, settings, keep=Half)
    assert calls == [[2, 3], [6, 7]]
    np.testing.assert_array_equal(found[:, [2, 3, 6, 7]], given[:, [2, 3, 6, 7]])
    assert (found[:, [0, 1, 4, 5]] == 7).all()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_memory_keeps_to_a_budget_and_time_per_pair_does_not_grow(tmp_path):
    """What 3,000 samples are promised, at fewer with as much less memory for each."""
    out = tmp_path / "stream"
    stream.main(["--samples", "600", "900", "--proportional", "--place", str(tmp_path), "--out", str(out)])
    runs = json.loads(out.with_suffix(".json").read_text())["runs"]
    for found in runs:
        assert found["features"] > found["budget"]
        assert found["peak"] <= found["samples"] / stream.WHOLE * (3 << 30)
        assert len(found["trace"]["resident"]) > 5
    few, many = (found["cpu_seconds_per_pair"] for found in runs)
    assert many <= 1.25 * few
    assert out.with_suffix(".png").stat().st_size > 10_000
