"""Operations counted from a program, parts that make up a whole, and the files of ``muscjax profile``."""

from __future__ import annotations

import functools
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from typer.testing import CliRunner

from muscjax import profile, workloads
from muscjax.cli import app
from muscjax.errors import InputError
from muscjax.profile import counting, parts, rates, stages, trace

X = jnp.ones((4, 8), jnp.float32)


def product(x):
    return jnp.matmul(x, x.T, precision=lax.Precision.HIGHEST)


def test_a_product_counts_two_operations_per_term():
    assert counting.count(product, X) == counting.Operations(matmul=2 * 4 * 8 * 4)


def test_loops_are_multiplied_out():
    def scanned(x):
        return lax.scan(lambda c, _: (c + product(x), None), jnp.zeros((4, 4)), None, length=5)[0]

    def counted(x, stop):
        half = lax.div(stop, jnp.int32(2))
        return lax.fori_loop(0, half, lambda _, c: c + product(x), jnp.zeros((4, 4)))

    assert counting.count(scanned, X) == counting.Operations(matmul=5 * 256, other=5 * 16)
    found = counting.count(jax.jit(counted), X, jnp.int32(7))
    assert found.matmul == 3 * 256
    assert found.open_loops == 0


def test_a_loop_that_the_data_end_counts_once_and_says_so():
    def until(x):
        return lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: c + product(x), jnp.zeros((4, 4)))

    found = counting.count(until, X)
    assert found.matmul == 256
    assert found.open_loops == 1


def test_the_branch_of_this_platform_counts():
    def either(x):
        return lax.platform_dependent(x, tpu=lambda x: product(product(x)), default=product)

    assert counting.count(either, X).matmul == 256
    most = counting.count(lambda x: lax.cond(x[0, 0] > 0, product, lambda x: x[:, :4] + 1, x), X)
    assert most.matmul == 256


def test_scoring_computes_every_unordered_pair_once():
    workload = workloads.Scoring(name="", n=8, patches=16, channels=24)
    stage = stages.stage_of(workload)
    found = counting.count(stage.function, *stage.arguments)
    norms = found.matmul - workload.ordered_pair_flop / 2
    assert found.open_loops == 0
    assert 0 <= norms <= 0.3 * found.matmul  # 2·C for each of 2·M rows of 2·M·M·C: small only where M is not


@pytest.mark.parametrize("name", ["backbone-vit-small", "backbone-pointmae-small"])
def test_the_parts_of_a_network_make_up_the_whole(name):
    workload = workloads.WORKLOADS[name]
    whole = stages.stage_of(workload)
    total = counting.count(whole.function, *whole.arguments).matmul
    each = {
        s.name: counting.count(s.function, *s.arguments) * s.times
        for s in parts.parts_of(workload)
        if not s.inside
    }
    assert sum(o.matmul for o in each.values()) == pytest.approx(total, rel=0.02)


def test_the_table_and_the_files_of_a_profile(tmp_path, monkeypatch):
    arguments = ["profile", "scoring", "--workload", "scoring-small", "--rounds", "1", "--quiet"]
    small = functools.partial(rates.measure, among=((64, 32, 64),))
    monkeypatch.setattr(rates, "measure", lambda p, rounds, size: small(p, rounds=rounds, size=1 << 16))
    found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    for text in ("distances", "interval average", "stages together", "scoring-small", "Floor"):
        assert text in found.output
    record = json.loads((tmp_path / "profile.json").read_text())
    assert [row["name"] for row in record["stages"]] == ["distances", "interval average"]
    for row in record["stages"]:
        assert row["floor"] > 0
        assert row["measured"] > 0
        assert row["gap"] == pytest.approx(row["measured"] / row["floor"])
    for stage in ("distances", "interval_average", "whole"):
        assert (tmp_path / "hlo" / f"{stage}.before.txt").read_text().startswith("HloModule")
        assert "HloModule" in (tmp_path / "hlo" / f"{stage}.after.txt").read_text()
    assert "scoring.mutual_min_distances" in (tmp_path / "hlo" / "whole.after.txt").read_text()
    events = json.loads(gzip.decompress((tmp_path / record["trace"]).read_bytes()))["traceEvents"]
    staged = {event["args"]["stage"] for event in events if "stage" in event.get("args", {})}
    assert any("scoring.mutual_min_distances" in stage for stage in staged)


def test_choices_that_do_not_fit_are_one_line():
    with pytest.raises(InputError, match="expected one of scoring, grouping, backbone, pipeline"):
        profile.choose("everything")
    with pytest.raises(InputError, match="--workload 'idw-20k': expected one of grouping-20k"):
        profile.choose("grouping", "idw-20k")
    with pytest.raises(InputError, match="--scans 1"):
        profile.choose("pipeline", samples=1)
    assert profile.choose("pipeline", samples=3).sizes["n"] == 3


def test_steps_of_a_run_become_slices():
    content = {"traceEvents": [{"ph": "X", "name": "muscjax run", "ts": 5.0, "dur": 9.0, "pid": 1, "tid": 2}]}
    content["traceEvents"].append({"ph": "X", "name": "fusion.1", "ts": 6.0, "dur": 1.0, "pid": 1, "tid": 2})
    trace.named(content, {"fusion.1": "ipg.group/neighbours.nearest"}, [("maps", 100.0, 100.5)], 99.0)
    names = {event["name"]: event for event in content["traceEvents"] if event["ph"] == "X"}
    assert names["neighbours.nearest (fusion.1)"]["args"]["stage"] == "ipg.group/neighbours.nearest"
    assert names["maps"]["ts"] == pytest.approx(5 + 1e6)
    assert names["maps"]["dur"] == pytest.approx(5e5)


def test_scopes_are_read_from_optimised_hlo():
    text = (
        '  %fusion.1 = f32[2]{0} fusion(%p), metadata={op_name="jit(f)/ipg.group/while/body/maps.blur/add"}\n'
    )
    assert trace.scopes_of(text) == {"fusion.1": "ipg.group/maps.blur"}
    assert trace.scopes_of(text.replace("ipg.group/", "").replace("maps.blur/", "")) == {}


def test_rates_are_positive_and_name_their_shape():
    found = rates.measure("float32", ((32, 16, 32), (8, 16, 8)), rounds=1, size=1 << 16)
    assert found.matmul > 0
    assert found.bandwidth > 0
    assert found.shape in ((32, 16, 32), (8, 16, 8))
    assert np.isfinite(found.matmul)
