import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import cost
from muscjax import scoring
from muscjax.profile import counting

ONE = cost.Shape((784,), (768,), 1)
BOTH = cost.SHAPES["vitb8+pointmae"]
ROOM = 64 << 30


def test_the_products_of_the_model_are_those_of_the_programs():
    shape, small = jax.ShapeDtypeStruct((12, 512, 8), "float32"), cost.Shape((512,), (8,), 1)
    # The norms are products too: four of M by C for each M by M, 0.8 % here.
    counted = counting.count(lambda x: scoring.mutual_min_distances(x, tile=1), shape).matmul
    full = cost.bill("full", 12, 1, small, memory=ROOM)
    assert full.how == "symmetric"
    assert full.flops == 66 * small.pair_flops == pytest.approx(counted, rel=0.01)
    counted = counting.count(lambda x: scoring.min_distances(x[:3], x[3:], tile=3), shape).matmul
    against = cost.bill("reference", 3, 1, small, memory=ROOM, references=9)
    assert against.flops == 27 * small.pair_flops == pytest.approx(counted, rel=0.01)
    # A budget that is too small for whole rows computes every pair twice.
    rows = cost.bill("full", 96, 1, small, memory=20 << 20)
    assert rows.how == "rows"
    assert rows.flops == pytest.approx(2 * cost.bill("full", 96, 1, small, memory=ROOM).flops, rel=0.1)


def test_what_grows_and_what_does_not():
    full = {d: cost.bill("full", 4096, d, BOTH, memory=ROOM) for d in (1, 2, 8, 64)}
    assert full[1].network_bytes == 0
    for d in (2, 8, 64):
        assert full[d].flops == pytest.approx(full[1].flops / d, rel=0.6)
        assert full[d].network_bytes > 0
    assert full[64].memory < full[8].memory
    parts = [cost.bill("subsets", n, 1, BOTH, memory=ROOM, subset=100) for n in (1000, 10_000)]
    assert parts[1].flops == 10 * parts[0].flops
    assert parts[1].memory == parts[0].memory
    kept = [cost.bill("reference", 800, 8, BOTH, memory=ROOM, references=r) for r in (100, 200)]
    assert kept[1].flops == 2 * kept[0].flops
    assert cost.bill("reference", 800, 8, BOTH, memory=ROOM, references=100).flops == (
        100 * 100 * 3 * BOTH.pair_flops
    )


def test_what_does_not_fit_says_so_and_references_are_streamed():
    assert cost.bill("full", 1_000_000, 8, BOTH, memory=ROOM) is None
    assert cost.bill("full", 4, 8, BOTH, memory=ROOM) is None  # fewer than two scans for each device
    streamed = cost.bill("reference", 80, 1, ONE, memory=1 << 30, references=1000)
    assert streamed.how == "streamed"
    assert streamed.memory < 1 << 30
    assert streamed.network_bytes == 10 * 1000 * ONE.feature_bytes
    with pytest.raises(ValueError, match="way 'all'"):
        cost.bill("all", 10, 1, ONE, memory=ROOM)
    with pytest.raises(ValueError, match="expected two"):
        cost.bill("full", 1, 1, ONE, memory=ROOM)


def test_the_simulated_ring_hides_transfers_that_are_short_enough():
    total, waited = cost.ring_seconds(7, [2.0] * 8, 1.0)
    assert total == pytest.approx(16)
    assert waited == pytest.approx(0)
    # Transfers that are longer than the products set the pace.
    total, waited = cost.ring_seconds(7, [1.0] * 8, 3.0)
    assert total == pytest.approx(7 * 3 + 1)
    assert waited == pytest.approx(1 - 8 / 22)
    assert cost.ring_seconds(0, [5.0], 1.0) == (5.0, 0.0)
    # One slow device holds up the others by its own lag at most.
    total, _ = cost.ring_seconds(7, [3.0, *[2.0] * 7], 1.0)
    assert 24 <= total <= 24 + 2


def test_an_estimate_is_the_slower_of_products_and_network():
    device = dataclasses.replace(cost.NAMED["h100"], peak_flops=100.0, link_bytes=10.0, fraction=0.5)
    assert cost.seconds(cost.Bill(1000, 20, 0, ""), device) == pytest.approx(20)
    assert cost.seconds(cost.Bill(1000, 200, 0, ""), device) == pytest.approx(40)


def test_the_table_has_every_way_on_every_device():
    rows = cost.rows("vitb8", (1, 8), (1000,), subset=100, references=100)
    assert len(rows) == len(cost.NAMED) * 2 * len(cost.WAYS)
    assert all(np.isfinite(row["estimated_seconds"]) for row in rows if row["how"] != "does not fit")
