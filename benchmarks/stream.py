"""Mutual scoring of more samples than memory holds: time per pair, and the process's memory while it runs.

    python -m benchmarks.stream --samples 3000 --budget 400MiB --out benchmarks/results/stream

Every number of samples is a process of its own: random features of unit norm go to a store on disk and are
scored from there, one stage of one modality. A thread notes the process's resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import chart
from benchmarks.run import environment
from muscjax import config, outputs, store
from muscjax.store import Field

WHOLE = 3000  # samples that the whole budget is for
EVERY_S = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, nargs="+", default=[300, 600])
    parser.add_argument("--patches", type=int, default=196)
    parser.add_argument("--channels", type=int, default=192)
    parser.add_argument("--budget", default="400MiB")
    parser.add_argument("--proportional", action="store_true", help=f"of the budget as of {WHOLE} samples")
    parser.add_argument("--half", action="store_true", help="float16 on the disk")
    parser.add_argument("--place", type=Path, help="folder of the stores; a temporary one by default")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.png")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.alone:
        json.dump(measured(given, given.samples[0]), sys.stdout)
        return
    runs = []
    for samples in given.samples:
        command = [sys.executable, "-m", "benchmarks.stream", "--alone", "--samples", str(samples)]
        for name in ("patches", "channels", "budget", "place"):
            if getattr(given, name) is not None:
                command += [f"--{name}", str(getattr(given, name))]
        command += [f"--{name}" for name in ("proportional", "half") if getattr(given, name)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        runs.append(json.loads(done.stdout))
        print(line(runs[-1]), flush=True)
    if given.out is not None:
        record = {**environment(()), "runs": runs}
        outputs.write_json(given.out.with_suffix(".json"), record)
        plot(record, given.out.with_suffix(".png"))


def line(run: dict[str, Any]) -> str:
    """A run in words."""
    return (
        f"N {run['samples']}: {run['seconds']:.1f} s, {run['cpu_seconds']:.1f} s of CPU, "
        f"{1e6 * run['cpu_seconds_per_pair']:.1f} µs of CPU per pair, {run['gflops']:.0f} GFLOP/s, "
        f"peak {run['peak'] / 2**20:.0f} MiB ({run['before'] / 2**20:.0f} MiB before), features "
        f"{run['features'] / 2**20:.0f} MiB, budget {run['budget'] / 2**20:.0f} MiB, walk {run['walk']}"
    )


class Trace:
    """The process's resident bytes over the seconds of a block."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.resident: list[int] = []
        self._ended = threading.Event()
        self._begun = time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.seconds.append(round(time.perf_counter() - self._begun, 2))
            self.resident.append(resident())
            if self._ended.wait(EVERY_S):
                return

    def __enter__(self) -> Trace:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(given: argparse.Namespace, samples: int) -> dict[str, Any]:
    """One number of samples: a store is filled and scored."""
    import jax

    from muscjax import pipeline, streaming
    from muscjax.streaming import Stage, Stages
    from muscjax.types import Features

    budget = config.parse_bytes(given.budget)
    if given.proportional:
        budget = budget * samples // WHOLE
    settings = config.override(
        config.released(), f"run.memory_budget={max(budget, 64 << 20)}", "cae.enabled=false"
    )
    shape = (given.patches, given.channels)
    jax.block_until_ready(jax.numpy.zeros(1))
    with tempfile.TemporaryDirectory(dir=given.place) as place:
        fields = {"features": Field(shape, "float16" if given.half else "float32")}
        names = [str(i) for i in range(samples)]
        opened = store.open_store(Path(place) / "store", {}, names, fields, batch=8, batches=2)
        for ids in store.missing(opened):
            rng = np.random.default_rng(ids.start)
            made = rng.normal(size=(len(ids), *shape)).astype(np.float32)
            made /= np.linalg.norm(made, axis=2, keepdims=True)
            store.write(opened, ids, {"features": made})
        stage = Stage(store.column(opened, "features"), np.arange(samples))
        features: Any = Features(Stages((stage,)), None)  # pyright: ignore[reportArgumentType]
        size = pipeline.geometry.bucket_size(samples, minimum=pipeline.SAMPLE_BUCKET)
        budget = settings.run.memory_budget
        walk = streaming.walk_of(size, [shape], memory_budget=budget)
        before = resident()
        begun, cpu = time.perf_counter(), time.process_time()
        steps: list[float] = []

        def note(kind: str, done: int, total: int) -> None:
            assert kind == "streamed scoring", "the features fit: choose a smaller budget"
            steps.append(round(time.perf_counter() - begun, 2))
            print(f"\r{done}/{total} {steps[-1]:.0f} s", end="", file=sys.stderr, flush=True)

        with Trace() as trace:
            side = int(shape[0] ** 0.5)
            scored = pipeline.score(
                features, None, settings, grid_hw=(side, side), map_hw=(224, 224), progress=note
            )
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        print(file=sys.stderr)
    found = np.asarray(scored.image)
    assert np.isfinite(found).all()
    assert found.shape == (samples, shape[0])
    pairs = samples * (samples - 1)
    flops = 2 * pairs * shape[0] ** 2 * shape[1]
    return {
        "samples": samples,
        "shape": shape,
        "type": fields["features"].dtype,
        "features": 4 * samples * int(np.prod(shape)),
        "budget": budget,
        "walk": {name: getattr(walk, name) for name in ("queries", "references", "block", "tile")},
        "seconds": seconds,
        "cpu_seconds": cpu,
        "cpu_seconds_per_pair": cpu / pairs,
        "gflops": flops / seconds / 1e9,
        "blocks": steps,
        "before": before,
        "peak": outputs.peak_memory(),
        "trace": {"seconds": trace.seconds, "resident": trace.resident},
        "mean_score": float(found.mean()),
    }


def plot(record: dict[str, Any], path: Path) -> None:
    """Memory over time of every run; time per pair over the number of samples."""
    plt, (left, right) = chart.figure(1, 2, (9, 3.4))
    for run in record["runs"]:
        trace = run["trace"]
        drawn = left.plot(
            trace["seconds"], np.asarray(trace["resident"]) / 2**20, label=f"N = {run['samples']}"
        )
        label = "features" if run is record["runs"][-1] else None
        left.axhline(run["features"] / 2**20, color=drawn[0].get_color(), linestyle=":", label=label)
    left.axhline(3 * 1024, color="0.5", linestyle="--", label="3 GiB")
    left.set(xlabel="seconds", ylabel="resident MiB", title=chart.named(record), ylim=(0, None))
    left.legend(frameon=False)
    samples = [run["samples"] for run in record["runs"]]
    right.plot(samples, [1e6 * run["cpu_seconds_per_pair"] for run in record["runs"]], "o-")
    right.set(xlabel="samples N", ylabel="µs of CPU per pair", ylim=(0, None))
    plt.savefig(path, dpi=150)
    plt.close()


if __name__ == "__main__":
    main()
