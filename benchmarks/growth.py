"""Time and memory of mutual scoring against the number of samples."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from muscjax import config, pipeline, scoring, workloads
from muscjax.errors import InputError
from muscjax.profile import program, rates
from muscjax.types import Features

SAMPLES = (8, 12, 16, 24, 32, 48, 64)
BUDGET = config.RunConfig().memory_budget


def sweep(
    name: str, samples: Sequence[int], *, rounds: int, budget: int = BUDGET, least: float = 0.05
) -> dict[str, Any]:
    """The scoring workload ``name`` at each number of samples, as the pipeline runs it within ``budget``.

    All sizes and a plain product take turns in every round. The fit is time = a·N², ``off`` each
    time's relative distance from it, of the medians and of the rounds' ratios to the product.
    """
    if len(set(samples)) < 2 or min(samples) < 2:
        raise InputError("growth: expected at least two different numbers of samples, 2 or more")
    base = workloads.WORKLOADS.get(name)
    if not isinstance(base, workloads.Scoring):
        raise InputError(f"growth: {name!r} is no scoring workload")
    built: dict[str, Any] = {}
    plans, memory = [], []
    settings = config.released()
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, memory_budget=budget))
    for workload in workloads.scoring_sweep(name, samples):
        features = workload.inputs()["features"]
        given: Any = features[None]
        plan = pipeline.plan_of(Features(given, None), settings)[1]
        call = program.build(_scored(plan), (features,))
        built[str(workload.n)] = call
        plans.append(plan)
        memory.append(call.memory()["peak"])
    shape = (base.patches, base.channels, base.patches)
    built["product"] = rates.product_calls([shape], "float32")[shape]
    times = program.interleaved(built, rounds=rounds, least=least)
    product = times.pop("product")
    paired = [[t / p for t, p in zip(turns, product, strict=True)] for turns in times.values()]
    return {
        "workload": name,
        "samples": list(samples),
        "seconds": [program.summary(turns) for turns in times.values()],
        "fit": fit(samples, [statistics.median(turns) for turns in times.values()]),
        "fit_by_product": fit(samples, [statistics.median(turns) for turns in paired]),
        "plans": plans,
        "memory": memory,
        "memory_budget": budget,
    }


def _scored(plan: scoring.Plan) -> Any:
    def score(features):
        def average(image, points, ref_valid, ids):
            return scoring.interval_average(image, 0.3, ref_valid[:, None])

        return scoring.map_rows(features, None, average, plan=plan)

    return score


def fit(samples: Sequence[int], seconds: Sequence[float]) -> dict[str, Any]:
    """time = a·N²: a, the relative distance of each time from it, and the largest of them."""
    squares = np.asarray(samples, float) ** 2
    each = np.asarray(seconds) / squares
    low, high = each.min(), each.max()
    a = (low + high) / 2  # the a whose largest relative distance is smallest
    off = np.asarray(seconds) / (a * squares) - 1
    return {"a": float(a), "off": [float(x) for x in off], "worst": float(np.abs(off).max())}


def show(console: Console, found: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("N", "median s", "off a·N²", "off, by product", "memory MiB", "plan"):
        table.add_column(heading, justify="right")
    for i, n in enumerate(found["samples"]):
        memory = found["memory"][i]
        table.add_row(
            str(n),
            f"{found['seconds'][i]['median']:.3g}",
            f"{100 * found['fit']['off'][i]:+.1f} %",
            f"{100 * found['fit_by_product']['off'][i]:+.1f} %",
            "-" if memory is None else f"{memory / 2**20:.0f}",
            found["plans"][i].kind,
        )
    console.print(table)


def plot(record: dict[str, Any], path: Path) -> None:
    """Time with its fit, and memory with its budget."""
    from benchmarks.chart import figure, named

    found = record["growth"]
    plt, (left, right) = figure(1, 2, (9, 3.4))
    n = np.asarray(found["samples"])
    medians = np.asarray([s["median"] for s in found["seconds"]])
    spread = np.abs(np.asarray([s["iqr"] for s in found["seconds"]]).T - medians)
    left.errorbar(n, medians, yerr=spread, fmt="o", label="measured, quartiles")
    left.plot(n, found["fit"]["a"] * n**2, label=f"a·N², worst {100 * found['fit']['worst']:.1f} % off")
    left.set(xscale="log", yscale="log", xlabel="samples N", ylabel="seconds", title=found["workload"])
    left.set_xticks(n, [str(x) for x in n], minor=False)
    left.minorticks_off()
    left.legend(frameon=False)
    if all(m is not None for m in found["memory"]):
        right.plot(n, np.asarray(found["memory"]) / 2**20, "o-", label="arguments, results, intermediates")
    right.axhline(found["memory_budget"] / 2**20, color="0.5", linestyle="--", label="memory budget")
    right.set(yscale="log", xlabel="samples N", ylabel="MiB", title=named(record))
    right.legend(frameon=False)
    plt.savefig(path, dpi=150)
    plt.close()
