"""The ring against one device. The eight devices are one other process's (``tests/eight_devices.py``)."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from muscjax import parallel, scoring

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def eight():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.eight_devices"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_ring_equals_one_device_with_the_same_tiles_to_the_bit(eight):
    assert len(eight["equality"]) == 9
    for name, found in eight["equality"].items():
        assert found["relative"] <= 1e-6, name
        assert found["identical"], name


def test_a_window_goes_round_with_the_features(eight):
    assert eight["windowed"]["identical"]


def test_the_pipeline_over_a_mesh_equals_the_pipeline(eight):
    assert eight["whole_score"]["relative"] <= 1e-6


def test_symmetric_computes_each_pair_once(eight):
    found = eight["programs"]
    assert found["symmetric 8×4"]["once"] == 1
    assert found["symmetric 3×4"]["once"] == 1
    assert found["symmetric 2×6"]["once"] == pytest.approx(13 / 11)  # three tiles cannot be halved
    assert 2 < found["rows 8×4"]["once"] < 2.2


def test_the_cost_is_that_of_the_compiled_program(eight):
    for name, found in eight["programs"].items():
        for what in ("flops", "bytes", "transfers"):
            counted, predicted = found[what]
            assert counted == predicted > 0, (name, what)
        counted, predicted = found["held"]
        assert counted <= predicted, name


def test_a_block_leaves_while_the_last_one_is_scored_and_no_sooner(eight):
    # Parts with products: two within the own block, one for each block that was met before the last.
    assert eight["programs"]["symmetric 8×4"]["waits"] == [0, 2, 3, 4]
    assert eight["programs"]["symmetric 3×4"]["waits"] == [0]


def test_no_array_of_a_device_outgrows_its_budget(eight):
    assert set(eight["largest"]) == {"symmetric", "rows"}
    for kind, (largest, budget) in eight["largest"].items():
        assert largest <= budget, kind


def test_the_plan_follows_the_budget_of_a_device():
    patches = (784, 1024)
    assert scoring.plan(600, patches, memory_budget=4 << 30).kind == "rows"
    assert parallel.plan(600, patches, devices=8, memory_budget=4 << 30).kind == "symmetric"
    assert parallel.plan(3000, patches, devices=8, memory_budget=4 << 30).kind == "rows"
    with pytest.raises(ValueError, match="too small"):
        parallel.plan(3000, patches, devices=8, memory_budget=64 << 20)


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_the_tiles_are_those_of_one_device(devices):
    for n, m in ((150, 784), (600, 196), (40, 1024), (12, 49)):
        for budget in (4 << 30, 1 << 30):
            alone = scoring.plan(n, (m,), memory_budget=budget)
            ring = parallel.plan(n, (m,), devices=devices, memory_budget=budget)
            own = -(-n // devices)
            assert ring.tile == (1 if alone.tile == n else min(alone.tile, -(-own // 2)))
            assert parallel.padded_size(n, devices, ring) % (devices * ring.tile) == 0


def test_every_device_has_samples_where_there_are_enough():
    for devices in (2, 3, 8):
        for n in range(devices, 40):
            ring = parallel.plan(n, (4000,), devices=devices, memory_budget=4 << 30)
            assert set((np.arange(n) // ring.tile) % devices) == set(range(devices)), n


def test_dealing_and_collecting_give_the_rows_back():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (parallel.AXIS,))
    plan = scoring.Plan("rows", 4, 2)
    rows = np.random.default_rng(0).random((8, 3)).astype(np.float32)
    np.testing.assert_array_equal(parallel.deal(rows, mesh, plan), rows.reshape(4, 1, 2, 3))
    ids = np.asarray([0, 1, 4, 6])
    dealt = parallel.deal_own(rows[ids], ids, 8, mesh, plan)
    expected = np.zeros((8, 3), np.float32)
    expected[ids] = rows[ids]
    np.testing.assert_array_equal(np.asarray(dealt).reshape(8, 3), expected)
    np.testing.assert_array_equal(parallel.collect_own(dealt, ids), rows[ids])


def test_one_device_needs_no_mesh():
    assert parallel.mesh_of(jax.devices()[:1]) is None


def test_the_cost_of_two_modalities_is_that_of_both():
    plan = scoring.Plan("symmetric", 2, 2)
    image, points = (parallel.cost(32, m, c, 4, plan) for m, c in ((12, 8), (10, 6)))
    both = parallel.cost(32, (12, 10), (8, 6), 4, plan)
    assert both == image + points
    assert both.flops == image.flops + points.flops
    assert both.tile_bytes == max(image.tile_bytes, points.tile_bytes)


def test_more_devices_do_less_each_and_send_their_features_along():
    n, m, c = 960, 196, 192
    costs = {d: parallel.cost(n, m, c, d, scoring.Plan("symmetric", 8, 5)) for d in (1, 2, 4, 8)}
    assert costs[1].bytes_sent == costs[1].transfers == 0
    for d in (2, 4, 8):
        assert costs[d].flops == pytest.approx(costs[1].flops / d, rel=0.01)
        features = d // 2 * (n // d) * m * c * 4
        minima = (d - 1) / 2 * (n // d) ** 2 * m * 4
        assert costs[d].bytes_sent == pytest.approx(features + minima)
