"""The instruments: records hold what they promise, results equal the plain expressions and the peers."""

from __future__ import annotations

import csv
import importlib.util
import json

import numpy as np
import pytest

from benchmarks import chart, compare, growth, measure, run
from benchmarks.run import COLUMNS
from muscjax import outputs, workloads
from muscjax.errors import InputError
from muscjax.profile import program

PEERS = ("torch", "torch-strong") if importlib.util.find_spec("torch") else ()
STAGES = [w.name for w in workloads.find(["small"]) if not isinstance(w, workloads.Pipeline)]
KEYS = {
    "name", "stage", "sizes", "precision", "seconds", "per_sample", "operations", "program", "memory",
    "result", "rate", "matmul", "fraction", "peers",
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_results_equal_the_plain_expression_and_the_peers(name):
    found = measure.measured(workloads.WORKLOADS[name], rounds=2, peers=PEERS, least=0)
    assert found.keys() == KEYS
    result = found["result"]
    assert result["finite"]
    assert result["error"]["max"] <= result["tolerance"]
    for kind, peer in found["peers"].items():
        assert peer["error"]["max"] <= result["tolerance"], kind
        assert len(peer["ratio"]["rounds"]) == 2
    if PEERS:
        both = name.startswith(("scoring", "backbone"))
        assert set(found["peers"]) == (set(PEERS) if both else {"torch"})
    assert found["operations"].total > 0
    assert found["fraction"]["median"] > 0
    seconds = found["seconds"]
    assert min(seconds["lower"], seconds["compile"], seconds["first"], seconds["min"]) > 0
    assert seconds["iqr"][0] <= seconds["median"] <= seconds["iqr"][1]


def test_rates_of_scoring_count_ordered_pairs():
    workload = workloads.WORKLOADS["scoring-small"]
    found = measure.measured(workload, rounds=1, least=0, check=False)
    amount = 2 * 5 * 4 * 16**2 * 24
    assert found["rate"]["operations"] == amount
    assert found["rate"]["median"] == pytest.approx(amount / found["seconds"]["median"])
    assert found["result"] is None


def test_the_command_writes_json_and_csv_and_compares_them(tmp_path, capsys):
    path = tmp_path / "a.json"
    run.main(["scoring-small", "average-small", "--rounds", "2", "--least", "0", "--out", str(path)])
    record = json.loads(path.read_text())
    assert {"kind", "versions", "device", "host", "threads", "rounds", "slug", "command"} <= record.keys()
    assert [w["name"] for w in record["workloads"]] == ["scoring-small", "average-small"]
    assert all(w.keys() == KEYS for w in record["workloads"])
    lines = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert tuple(lines[0]) == COLUMNS
    assert lines[0]["checksum"] == record["workloads"][0]["result"]["checksum"]

    faster = json.loads(json.dumps(record))
    faster["workloads"] = faster["workloads"][:1]
    faster["workloads"][0]["seconds"]["median"] /= 4
    outputs.write_json(tmp_path / "b.json", faster)
    (row,) = compare.ratios(record, faster)
    assert row["faster"] == pytest.approx(4)
    assert row["normalised"] == pytest.approx(1)
    assert row["same_result"]
    capsys.readouterr()
    run.main(["--compare", str(path), str(tmp_path / "b.json")])
    assert "4.00" in capsys.readouterr().out

    chart.main([str(path), "--out", str(tmp_path / "speed.svg")])
    assert (
        "scoring-small" in (tmp_path / "speed.svg").read_text()
        or (tmp_path / "speed.svg").stat().st_size > 5000
    )


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "other.json").write_text('{"kind": "something"}')
    with pytest.raises(InputError, match="expected the JSON file of a benchmark"):
        run.main(["--compare", str(tmp_path / "other.json"), str(tmp_path / "other.json")])
    with pytest.raises(InputError, match="workload 'nothing' is unknown"):
        run.main(["nothing"])
    with pytest.raises(InputError, match="no scoring workload"):
        growth.sweep("snamd-small", (2, 4), rounds=1)


def test_growth_fits_squares_and_states_memory(tmp_path):
    exact = growth.fit((8, 16, 64), [3.0 * n * n for n in (8, 16, 64)])
    assert exact["a"] == pytest.approx(3)
    assert exact["worst"] < 1e-12
    off = growth.fit((1, 2), [0.9, 4 * 1.1])
    assert off["off"] == pytest.approx([-0.1, 0.1])
    path = tmp_path / "growth.json"
    small = ["--workload", "scoring-small", "--samples", "3", "6"]
    run.main(["growth", *small, "--rounds", "1", "--least", "0", "--out", str(path)])
    found = json.loads(path.read_text())["growth"]
    assert found["samples"] == [3, 6]
    assert len(found["seconds"]) == len(found["memory"]) == 2
    assert 0 < max(found["memory"]) < found["memory_budget"]
    assert path.with_suffix(".png").stat().st_size > 1000


def test_candidates_take_turns_and_the_order_turns_round():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = program.interleaved(calls, rounds=2, least=0)
    assert "".join(order) == "abc" + "abc" + "cba"
    assert all(len(turns) == 2 for turns in times.values())


def test_growth_within_a_small_budget_takes_rows():
    found = growth.sweep("scoring-small", (4, 100), rounds=1, budget=1 << 20, least=0)
    kinds = [plan.kind for plan in found["plans"]]
    assert kinds == ["symmetric", "rows"]
    assert np.all(np.asarray(found["memory"]) < 1 << 20)
