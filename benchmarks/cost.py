"""What scoring costs: FLOP, network bytes and memory of each device, for three ways to score N scans.

    python -m benchmarks.cost table --out benchmarks/results/scaling    # 10³ to 10⁶ scans, 1 to 256 devices
    python -m benchmarks.cost check --out benchmarks/results/scaling  # the model beside runs on this device

* ``full``: every scan by all the others, round the ring of ``muscjax.parallel``.
* ``subsets``: parts of n scans, each scored within itself on one device.
* ``reference``: every scan against R kept ones, whose features every device has.

FLOP are those of the matrix products (a multiplication and an addition are two), of all stages. Times are
estimates: documented peaks times a stated fraction. On this device the fraction is measured and the estimate
is set beside measured runs; on the others it is an assumption, as nothing was measured there.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import environment
from muscjax import outputs, parallel, scoring, streaming
from muscjax.errors import InputError

WAYS = ("full", "subsets", "reference")
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Features of one scan: patches and channels of each modality, and how many stages are scored."""

    patches: tuple[int, ...]
    channels: tuple[int, ...]
    stages: int

    @property
    def pair_flops(self) -> int:
        """Of the products of two scans in one stage."""
        return sum(2 * m * m * c for m, c in zip(self.patches, self.channels, strict=True))

    @property
    def feature_bytes(self) -> int:
        """Of one scan in one stage."""
        return sum(4 * m * c for m, c in zip(self.patches, self.channels, strict=True))


SHAPES = {
    "vitb8": Shape((784,), (768,), 3),
    "vitb8+pointmae": Shape((784, 1024), (768, 384), 3),
    "vitl14": Shape((1369,), (1024,), 3),
    "texture+fpfh": Shape((1369, 1024), (72, 33), 1),
}


@dataclasses.dataclass(frozen=True)
class Device:
    """Documented peaks of one device, and the shares of them that are assumed or measured."""

    name: str
    peak_flops: float  # per second, of the products at the stated precision
    precision: str
    link_bytes: float  # per second and direction, to the next device of the ring
    memory: float  # bytes
    disk_bytes: float = 3e9  # per second, that a solid-state disk gives; an assumption
    fraction: float = 0.5  # of the peaks; an assumption unless `check` measured it
    measured: bool = False


# Dense, as the makers' data sheets have them. A float32 product on TPU is six bfloat16 passes.
NAMED = {
    "h100": Device("H100 SXM", 494.7e12, "tf32", 450e9, 80e9),
    "a100": Device("A100 SXM 80 GB", 156e12, "tf32", 300e9, 80e9),
    "rtx3090": Device("RTX 3090", 35.6e12, "float32", 16e9, 24e9),
    "tpu-v5e": Device("TPU v5e", 197e12 / 6, "float32", 50e9, 16e9),
}


@dataclasses.dataclass(frozen=True)
class Bill:
    """Of one device, for the whole set and all stages; None where the way does not fit into its memory."""

    flops: int
    network_bytes: int  # sent, or read from where the features are
    memory: int  # at the fullest moment
    how: str  # the plan


def bill(
    way: str,
    n: int,
    devices: int,
    shape: Shape,
    *,
    memory: int,
    tile_bytes: int | None = None,
    subset: int = 100,
    references: int = 100,
) -> Bill | None:
    """What each of ``devices`` computes, sends and holds at once to score ``n`` scans.

    Args:
        way: one of WAYS. subset: n of ``subsets``. references: R.
        memory: bytes that a device gives to scoring. tile_bytes: of one block of distances; None: a
            sixteenth of them, as the pipeline takes on accelerators.

    Raises:
        ValueError: an unknown way, or fewer than two scans.
    """
    if way not in WAYS:
        raise ValueError(f"way {way!r}: expected one of {', '.join(WAYS)}")
    if n < 2 or devices < 1:
        raise ValueError(f"found {n} scans on {devices} devices, expected two on one or more")
    tile_bytes = memory // 16 if tile_bytes is None else tile_bytes
    if way == "full":
        return _full(n, devices, shape, memory, tile_bytes)
    if way == "subsets":
        subset = min(subset, n)
        one = _full(subset, 1, shape, memory, tile_bytes)
        if one is None:
            return None
        parts = -(-(n // subset) // devices)
        return Bill(parts * one.flops, 0, one.memory, f"{n // subset} parts of {subset}, {one.how}")
    return _reference(n, devices, shape, memory, tile_bytes, references)


def _full(n: int, devices: int, shape: Shape, memory: int, tile_bytes: int) -> Bill | None:
    if devices > max(n // 2, 1):
        return None
    for share in (
        1,
        2,
        4,
        8,
    ):  # a smaller budget for the rows, where all that is alive would exceed the memory
        try:
            plan = parallel.plan(
                n, shape.patches, devices=devices, memory_budget=memory // share, tile_bytes=tile_bytes
            )
        except ValueError:
            break
        size = parallel.padded_size(n, devices, plan)
        one = parallel.cost(size, shape.patches, shape.channels, devices, plan)
        held = one.held_bytes
        if devices == 1 and plan.kind == "symmetric":  # no blocks under way: the rows and their roots
            held = one.feature_bytes + 8 * size**2 * sum(shape.patches) + one.tile_bytes
        if held <= memory:
            return Bill(shape.stages * one.flops, shape.stages * one.bytes_sent, held, plan.kind)
    return _streamed(n, shape, memory, tile_bytes) if devices == 1 else None


def _streamed(n: int, shape: Shape, memory: int, tile_bytes: int) -> Bill | None:
    """One device that reads features past it from a disk: ``muscjax.streaming``."""
    sides = list(zip(shape.patches, shape.channels, strict=True))
    try:
        walk = streaming.walk_of(n, sides, memory_budget=memory, tile_bytes=tile_bytes)
    except InputError:
        return None
    reads = -(-n // walk.queries)
    flops = shape.stages * n * n * shape.pair_flops
    return Bill(flops, shape.stages * reads * n * shape.feature_bytes, memory, "streamed")


def _reference(
    n: int, devices: int, shape: Shape, memory: int, tile_bytes: int, references: int
) -> Bill | None:
    row = 4 * references * sum(shape.patches)
    if row > memory // 16:
        return None
    own = -(-n // devices)
    several = int(min(max(memory // 16 // shape.feature_bytes, 1), 64, references))
    block = int(min(8, own, memory // (16 * row)))
    tile = math.isqrt(min(tile_bytes, memory // 8) // (4 * max(shape.patches) ** 2)) or 1
    tile = min(tile, several)
    kept = references * shape.feature_bytes
    held = kept if kept <= memory // 4 else 2 * several * shape.feature_bytes
    product = 4 * (tile * max(shape.patches)) ** 2
    flops = shape.stages * own * references * shape.pair_flops
    # Once where they stay, or with every block of new scans.
    reads = 1 if kept <= memory // 4 else -(-own // block)
    memory_used = held + 12 * block * row + block * shape.feature_bytes + product
    return Bill(flops, shape.stages * kept * reads, memory_used, "held" if reads == 1 else "streamed")


def seconds(cost: Bill, device: Device) -> float:
    """The products, or the network (the disk) where it takes longer: they overlap. An estimate."""
    products = cost.flops / (device.peak_flops * device.fraction)
    if cost.how == "streamed":
        return max(products, cost.network_bytes / device.disk_bytes)
    return max(products, cost.network_bytes / (device.link_bytes * device.fraction))


def ring_seconds(
    steps: int, compute: Sequence[float], transfer: float, *, latency: float = 0.0
) -> tuple[float, float]:
    """Simulates the ring: each device scores a block while the next one is on its way to it.

    Args:
        steps: blocks that come from other devices; the own block is scored first.
        compute: seconds per block of each device; they may differ. transfer: of one block to the next device.

    Returns:
        Seconds until the last device is done, and the share of that time that the mean device waited.

    A block that a device has received goes on at once, if the next device has room: it has finished with the
    block before the last one (two buffers).
    """
    size = len(compute)
    here = [0.0] * size  # when the block of the present step is at the device
    done = [0.0] * size  # when it has been scored
    before = [0.0] * size  # when the one before was
    for step in range(steps + 1):
        before, done = done, [max(h, d) + c for h, d, c in zip(here, done, compute, strict=True)]
        if step < steps:
            # From the device behind: it has the block, and the buffer of the block before is free here.
            here = [
                max(here[(place + 1) % size], before[place]) + transfer + latency for place in range(size)
            ]
    total = max(done)
    busy = sum(compute) * (steps + 1) / size
    return total, 1 - busy / total


def rows(
    shape: str, devices: Sequence[int], samples: Sequence[int], *, subset: int, references: int
) -> list[dict[str, Any]]:
    """The table: every way on every number of named devices, with estimated seconds."""
    out = []
    for key, device in NAMED.items():
        memory = int(0.8 * device.memory)
        for n in samples:
            for count in devices:
                for way in WAYS:
                    found = bill(
                        way, n, count, SHAPES[shape], memory=memory, subset=subset, references=references
                    )
                    row = {"shape": shape, "way": way, "scans": n, "devices": count, "device": key}
                    if found is None:
                        out.append({**row, "how": "does not fit"})
                        continue
                    out.append(
                        {
                            **row,
                            "how": found.how,
                            "petaflop_per_device": found.flops / 1e15,
                            "network_gb_per_device": found.network_bytes / 1e9,
                            "memory_gb_per_device": found.memory / 1e9,
                            "estimated_seconds": seconds(found, device),
                        }
                    )
    return out


COLUMNS = (
    "shape",
    "way",
    "scans",
    "devices",
    "device",
    "how",
    "petaflop_per_device",
    "network_gb_per_device",
    "memory_gb_per_device",
    "estimated_seconds",
)


def check(sizes: Sequence[int] = (16, 32, 48), *, rounds: int = 3) -> dict[str, Any]:
    """Estimates beside measured runs on this device, in CPU seconds of all threads over the cores' number.

    One stage of ``vitb8`` features with the interval average. The rate of the products is measured on one
    size, the smallest of ``full``; its estimate for the others, and for the other ways, is what is checked.
    """
    import os
    import statistics
    import time

    import jax
    import numpy as np

    from muscjax import config, pipeline
    from muscjax.profile import counting
    from muscjax.reference import score_against
    from muscjax.types import Features

    base = SHAPES["vitb8"]
    shape = dataclasses.replace(base, stages=1)
    settings, memory = config.released(), config.released().run.memory_budget
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(1, max(sizes), *base.patches, *base.channels)).astype(np.float32)
    whole /= np.linalg.norm(whole, axis=-1, keepdims=True)
    place: dict[str, Any] = {"grid_hw": (28, 28), "map_hw": (224, 224)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def full(n: int) -> Any:
        return pipeline.score(Features(whole[:, :n], None), None, settings, **place)

    def against(n: int, r: int) -> Any:
        queries, kept = Features(whole[:, :n], None), Features(whole[:, -r:], None)
        return score_against(queries, None, kept, None, settings, **place)

    runs: list[dict[str, Any]] = []
    for n in sizes:
        runs.append({"way": "full", "scans": n, "call": lambda n=n: full(n)})
    small = sizes[0]
    runs.append(
        {
            "way": "subsets",
            "scans": max(sizes),
            "subset": small,
            "call": lambda: [full(small) for _ in range(max(sizes) // small)],
        }
    )
    for r in (small, max(sizes)):
        runs.append({"way": "reference", "scans": 8, "references": r, "call": lambda r=r: against(8, r)})
    for run in runs:
        run["call"]()  # compiled
        run["spent"] = []
    for _ in range(rounds):
        for run in runs:
            begun = time.process_time()
            jax.block_until_ready(jax.tree.leaves(run["call"]()))
            run["spent"].append((time.process_time() - begun) / cores)
    rate = None
    for run in runs:
        options = {k: run[k] for k in ("subset", "references") if k in run}
        found = bill(
            run["way"], run["scans"], 1, shape, memory=memory, tile_bytes=scoring.TILE_BYTES, **options
        )
        assert found is not None
        run["flops"], run["seconds"] = found.flops, statistics.median(run.pop("spent"))
        if rate is None:
            rate = found.flops / run["seconds"]
        run["estimated"] = found.flops / rate
        run["ratio"] = run["estimated"] / run["seconds"]
        del run["call"]
    counted = counting.count(
        lambda x: scoring.mutual_min_distances(x, tile=2), jax.ShapeDtypeStruct((8, 784, 768), "float32")
    )
    return {
        "shape": dataclasses.asdict(shape),
        "cores": cores,
        "flops_per_second": rate,
        "runs": runs,
        "counted_matmul_flops_of_8": counted.matmul,
        "modelled_flops_of_8": 28 * shape.pair_flops,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("table", "check"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling"))
    parser.add_argument("--shape", choices=sorted(SHAPES), default="vitb8+pointmae")
    parser.add_argument("--subset", type=int, default=100)
    parser.add_argument("--references", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    if options.what == "check":
        record = environment(()) | {"kind": "muscjax-cost-check", "check": check(rounds=options.rounds)}
        outputs.write_json(options.out / "cost_check.json", record)
        for run in record["check"]["runs"]:
            others = run.get("references") or run.get("subset") or ""
            times = f"{run['seconds']:7.2f} s measured, {run['estimated']:7.2f} s estimated"
            print(f"{run['way']:<10} {run['scans']:>4} scans {others:>4} {times}, ratio {run['ratio']:.2f}")
        return
    made = rows(options.shape, DEVICES, SAMPLES, subset=options.subset, references=options.references)
    outputs.write_csv(options.out / "cost.csv", COLUMNS, made)
    for row in made:
        if row["device"] == "h100" and row["devices"] in (1, 8, 256):
            estimate = row.get("estimated_seconds")
            print(
                row["way"],
                row["scans"],
                row["devices"],
                row["how"],
                "" if estimate is None else f"{estimate:.3g} s",
            )


def entry() -> None:
    try:
        main()
    except InputError as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    entry()
