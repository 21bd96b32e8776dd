"""The benchmarks of the preset: what they try beside it does what its rows say, and tables go on."""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import directions, kinds, otherwise
from muscjax import config, pipeline
from muscjax.extract import patch_grid
from muscjax.pipeline import Extracted
from muscjax.types import Features


def tokens(seed: int, *shape: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=shape)
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("nearest", [1, 2, 5])
def test_the_kth_nearest_patch_is_numpys(nearest):
    queries, references = tokens(0, 4, 6, 8), tokens(1, 4, 9, 8)
    valid = np.ones((4, 9), bool)
    valid[2, 3:] = False
    valid[2, 3] = nearest > 3  # enough that there is a k-th
    valid[2, 4] = nearest > 3
    pairs = queries[:, None].astype(np.float64) @ references.transpose(0, 2, 1)[None]
    table = np.sqrt(2 - 2 * pairs)  # (query scan, reference scan, M, R)
    table = np.where(valid[None, :, None], table, np.inf)
    expected = np.sort(table, axis=-1)[..., nearest - 1].transpose(0, 2, 1)
    found = otherwise.distances(queries, references, valid, nearest=nearest)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("preset", ["released", "muscjax"])
def test_the_nearest_and_nothing_beside_it_is_the_pipeline(preset):
    settings = config.override(config.preset(preset), "scoring.interval=0.5")
    whole = Extracted(Features(tokens(2, 2, 6, 16, 8), None, (1, 1)), None, None, (4, 4), (32, 32))
    expected = np.asarray(pipeline.score_subsets(whole, settings).image)
    found = np.asarray(otherwise.score(whole, settings, nearest=1, beside=None).image)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    third = np.asarray(otherwise.score(whole, settings, nearest=3, beside=None).image)
    assert np.all(third > expected)


def test_a_reference_beside_is_found():
    image = tokens(3, 1, 4, 16, 8)
    beside = np.roll(image, 1, axis=1)  # every scan's patches are a reference patch of its neighbour too
    whole = Extracted(Features(image, None, (1, 1)), None, None, (4, 4), (32, 32))
    settings = config.override(config.muscjax(), "scoring.interval=0.3")
    found = otherwise.score(whole, settings, nearest=1, beside=beside)
    np.testing.assert_allclose(np.asarray(found.image), 0, atol=1e-3)


@pytest.mark.parametrize("side", [4, 5])
def test_tiles_of_a_local_network_are_the_whole_picture(side):
    def network(images):  # the mean colour of every patch of 4 pixels
        b, h, w, c = images.shape
        return images.reshape(b, h // 4, 4, w // 4, 4, c).mean(axis=(2, 4)).reshape(1, b, -1, c)

    picture = jnp.asarray(np.random.default_rng(4).random((2, 8 * side, 8 * side, 3)), jnp.float32)
    tiled = otherwise.Tiled(jax.tree_util.Partial(network), tile=4 * side, patch_size=4)
    np.testing.assert_allclose(tiled(picture), network(picture), atol=1e-6)
    assert patch_grid(tiled, 4 * side**2, (8 * side, 8 * side)) == (2 * side, 2 * side)


def test_pictures_grow_and_turn():
    picture = np.zeros((1, 4, 4, 3), np.uint8)
    picture[0, 0, 0] = 200
    large = otherwise.enlarged(picture, 8)
    assert large.shape == (1, 8, 8, 3)
    assert np.argmax(large[0, :, :, 0]) == 0

    def extract(images: np.ndarray) -> Extracted:
        found = images[None, ..., 0].reshape(1, len(images), -1, 1)
        return Extracted(Features(found, None, (1, 1)), None, None, (4, 4), (4, 4))

    turns = otherwise.turned(picture, extract)
    assert turns.shape == (1, 1, 48, 1)
    corners = [divmod(int(np.argmax(part)), 4) for part in turns[0, 0, :, 0].reshape(3, 16)]
    assert corners == [(3, 0), (3, 3), (0, 3)]


def test_every_direction_is_a_setting_or_a_change():
    for direction in directions.DIRECTIONS:
        changes = direction._replace(name="", alone=None, inside=None, kept=True)
        assert direction.inside or changes != directions.AS_IT_IS, direction.name
        for preset, sets in (("released", direction.alone), ("muscjax", direction.inside)):
            given = config.preset(preset)
            assert not sets or config.override(given, *sets) != given, (direction.name, preset)


def test_an_interrupted_table_goes_on_where_it_was(tmp_path, monkeypatch):
    options = argparse.Namespace(scans=6, defective=0.5, image_backbone="texture")
    asked = []

    class Fake(directions.Bench):
        def run(self, config, kind, changed=directions.AS_IT_IS):
            asked.append((config.preset, kind))
            if kind == "both" and asked.count(("released", "both")) == 1:
                raise KeyboardInterrupt
            maps = np.random.default_rng(0).random((6, 256, 256)).astype(np.float32)
            return directions.Run(list(maps), np.zeros(6), 0.0)

    monkeypatch.setattr(kinds, "Bench", Fake)
    keys = ("part", "seed", "modality")
    with pytest.raises(KeyboardInterrupt):
        kinds.line(directions.Table(tmp_path / "kinds.csv", keys), "cap", 0, options)
    table = directions.Table(tmp_path / "kinds.csv", keys)
    assert {row["modality"] for row in table.rows} == {"image", "points"}
    kinds.line(table, "cap", 0, options)
    places = [tuple(row[key] for key in (*keys, "defect")) for row in table.rows]
    assert len(set(places)) == len(places)
    assert asked[-2:] == [("released", "both"), ("muscjax", "both")]
    assert all(n == 1 for _, _, n in kinds.differences(table.rows).values())
    again = directions.Table(tmp_path / "kinds.csv", keys)
    assert again.rows == [{k: str(v) for k, v in row.items()} for row in table.rows]
