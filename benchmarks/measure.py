"""One workload measured: compile and run times, rates, memory, result, and peers in the same rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import suite
from muscjax import outputs, workloads
from muscjax.profile import counting, program, rates
from muscjax.profile.stages import stage_of

SETTLE = 0.05  # seconds of rest between turns when two libraries with worker threads share the cores


def measured(
    workload: workloads.Workload,
    *,
    rounds: int,
    precision: str = "float32",
    peers: Sequence[str] = (),
    least: float = 0.05,
    check: bool = True,
) -> dict[str, Any]:
    """Everything that is known of the workload on this device; the keys are always the same.

    Ours, plain products and the peers take turns within every round, and every ratio is the median of the
    rounds' own ratios.
    """
    stage = stage_of(workload, precision=precision)
    model = None
    if peers:
        from benchmarks.peers import calls as peer_calls

        stage, model = peer_calls.with_shared_weights(workload, stage, precision)
    seconds: dict[str, Any] = {"lower": None, "compile": None}
    operations, costs = None, {"flops": None, "bytes": None}
    memory: dict[str, int | None] = dict.fromkeys(("arguments", "results", "intermediates", "peak"))
    call: Callable[[], Any] = lambda: stage.function(*stage.arguments)  # noqa: E731
    if stage.compiled:
        built = program.build(stage.function, stage.arguments)
        seconds = {"lower": built.lower_s, "compile": built.compile_s}
        operations = counting.count(stage.function, *stage.arguments)
        costs, memory, call = built.cost(), built.memory(), built
    begun = time.perf_counter()
    found = jax.block_until_ready(call())
    seconds["first"] = time.perf_counter() - begun

    result = suite.checked(workload, stage, found, precision) if check else None
    contestants: dict[str, Callable[[], Any]] = {"ours": call}
    errors: dict[str, Any] = {}
    for kind in peers:
        rival = peer_calls.call_of(kind, workload, stage, model, precision)
        if rival is not None:
            contestants[kind] = rival
            ours, theirs = (suite.arrays_of(workload, x) for x in (found, rival()))
            errors[kind] = suite.difference(workload, ours, theirs)
    products: dict[str, rates.Shape] = {}
    if stage.compiled:
        shapes = suite.product_shapes(workload)
        for shape, product in rates.product_calls(shapes, precision).items():
            name = "product " + "·".join(map(str, shape))
            products[name], contestants[name] = shape, product
    times = program.interleaved(contestants, rounds=rounds, least=least, settle=SETTLE if peers else 0.0)
    seconds |= program.summary(times["ours"])
    # Only torch's networks have bfloat16 with float32 sums in between; its other stages stay in float32.
    spoken = "float32" if precision == "bfloat16" and model is None else precision
    return {
        "name": workload.name,
        "stage": workload.stage,
        "sizes": workload.sizes,
        "precision": precision,
        "seconds": seconds,
        "per_sample": seconds["median"] / getattr(workload, "n", getattr(workload, "batch", 1)),
        "operations": operations,
        "program": costs,  # as the compiler counts: bodies of loops once
        "memory": memory | {"process_peak": outputs.peak_memory(), "device_peak": program.device_peak()},
        "result": result,
        **_rates(workload, operations, times, products),
        "peers": {k: {"precision": spoken, **_peer(times["ours"], times[k], errors[k])} for k in errors},
    }


def _rates(
    workload: workloads.Workload,
    operations: counting.Operations | None,
    times: dict[str, list[float]],
    products: dict[str, rates.Shape],
) -> dict[str, Any]:
    """The rate in every round, and its share of the best product's rate in the same round."""
    counted = suite.counted(workload, operations)
    if counted is None or not products:
        return {"rate": None, "matmul": None, "fraction": None}
    what, amount = counted
    ours = [amount / t for t in times["ours"]]
    each = {name: [rates.operations(shape) / t for t in times[name]] for name, shape in products.items()}
    best = [max(turn) for turn in zip(*each.values(), strict=True)]
    medians = {name: statistics.median(values) for name, values in each.items()}
    return {
        "rate": {"counted": what, "operations": amount, **program.summary(ours)},
        "matmul": {"best": max(medians, key=medians.__getitem__), "rates": medians},
        "fraction": program.summary([a / b for a, b in zip(ours, best, strict=True)]),
    }


def _peer(ours: list[float], theirs: list[float], error: dict[str, float]) -> dict[str, Any]:
    return {
        "seconds": program.summary(theirs),
        "ratio": program.summary(
            [b / a for a, b in zip(ours, theirs, strict=True)]
        ),  # above 1: ours is faster
        "error": error,  # of ours and theirs
    }
