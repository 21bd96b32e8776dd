"""Benchmarks that can be believed: named workloads, plain products and PyTorch peers in the same rounds.

    python -m benchmarks.run                          the stages that the project states figures for
    python -m benchmarks.run scoring-vitb8 snamd-*    workloads by name, pattern or group (--list)
    python -m benchmarks.run --peer torch --peer torch-strong
    python -m benchmarks.run growth                   time and memory against the number of samples
    python -m benchmarks.run --compare A.json B.json

writes a JSON file and a CSV file beside it (--out). Run it on an idle machine; ratios are taken within rounds
and survive noise, times do not. The same commands serve a CPU, a GPU and a TPU.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import compare, growth, measure, suite
from muscjax import outputs, workloads
from muscjax.errors import InputError

KIND = "muscjax-benchmark"
COLUMNS: tuple[str, ...] = (
    "name", "device", "precision", "lower_s", "compile_s", "first_s", "median_s", "iqr_low_s", "iqr_high_s",
    "per_sample_s", "operations", "program_flops", "program_bytes", "rate", "matmul_rate", "fraction",
    "peak_bytes", "process_peak_bytes", "checksum", "max_error", "torch_ratio", "torch_strong_ratio",
)  # fmt: skip


def environment(peers: Sequence[str]) -> dict[str, Any]:
    """Device, versions and threads: what a time means nothing without."""
    record = outputs.run_record(None, seconds={})
    found: dict[str, Any] = {key: record[key] for key in ("finished", "versions", "device")}
    found["host"] = {"cpu": cpu_name(), "cores": suite.cores(), "load": os.getloadavg()[0]}
    found["threads"] = {"xla": found["host"]["cores"] if jax.default_backend() == "cpu" else None}
    if peers:
        if importlib.util.find_spec("torch") is None:
            raise InputError("--peer: needs torch, which is not installed")
        from benchmarks.peers import calls

        found["torch"] = calls.setup()
        found["threads"]["torch"] = found["torch"]["threads"]
    return found


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def device_slug(record: Mapping[str, Any]) -> str:
    """The device's name as part of a file name."""
    kind = record["host"]["cpu"] if record["device"]["platform"] == "cpu" else record["device"]["kind"]
    slug = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
    return f"{slug}_{record['host']['cores']}cores" if record["device"]["platform"] == "cpu" else slug


def row(found: Mapping[str, Any], device: str) -> dict[str, Any]:
    """One workload as a line of the CSV file."""
    seconds, memory = found["seconds"], found["memory"]
    result: Mapping[str, Any] = found["result"] or {}
    error: Mapping[str, Any] = result.get("error") or {}
    peers = {k: v["ratio"]["median"] for k, v in found["peers"].items()}
    operations = found["operations"]
    values = (
        found["name"], device, found["precision"], seconds["lower"], seconds["compile"], seconds["first"],
        seconds["median"], *seconds["iqr"], found["per_sample"],
        operations and operations["matmul"] + operations["other"],
        found["program"]["flops"], found["program"]["bytes"],
        found["rate"] and found["rate"]["median"],
        found["matmul"] and found["matmul"]["rates"][found["matmul"]["best"]],
        found["fraction"] and found["fraction"]["median"],
        memory["peak"], memory["process_peak"], result.get("checksum"), error.get("max"),
        peers.get("torch"), peers.get("torch-strong"),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record as JSON, and its workloads as CSV beside it."""
    outputs.write_json(path, record)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for found in record["workloads"]:
        line = row(found, record["slug"])
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    with outputs.replaced(path.with_suffix(".csv")) as file:
        file.write(text.getvalue().encode())


def show(console: Console, record: Mapping[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("workload", "compile s", "median ms", "iqr ms", "Gop/s", "of matmul", "max error"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    peers = sorted({kind for found in record["workloads"] for kind in found["peers"]})
    for kind in peers:
        table.add_column(f"× {kind}", justify="right")
    for found in record["workloads"]:
        s = found["seconds"]
        error = (found["result"] or {}).get("error")
        cells = [
            found["name"],
            number(s["compile"], ".2f"),
            number(1e3 * s["median"], ".3g"),
            f"{1e3 * s['iqr'][0]:.3g}-{1e3 * s['iqr'][1]:.3g}",
            number(found["rate"] and found["rate"]["median"] / 1e9, ".3g"),
            number(found["fraction"] and found["fraction"]["median"], ".2f"),
            number(error and error["max"], ".1e"),
        ]
        cells += [
            number(found["peers"][kind]["ratio"]["median"], ".2f") if kind in found["peers"] else "-"
            for kind in peers
        ]
        table.add_row(*cells)
    console.print(table)
    for found in record["workloads"]:
        result = found["result"] or {}
        error, tolerance = result.get("error"), result.get("tolerance")
        if error and tolerance is not None and error["max"] > tolerance:
            console.print(f"{found['name']}: error {error['max']:.1e} is above its tolerance {tolerance:.1e}")


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def listing(console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("workload", "stage", "sizes"):
        table.add_column(heading, overflow="fold")
    for name, workload in workloads.WORKLOADS.items():
        sizes = ", ".join(
            f"{k}={v['name'] if isinstance(v, dict) else v}"
            for k, v in workload.sizes.items()
            if v is not None
        )
        table.add_row(name, workload.stage, sizes)
    console.print(table)
    console.print(f"groups: {', '.join(workloads.GROUPS)}; none named: stages")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the workloads and stop")
    parser.add_argument("--out", type=Path, help="JSON file; default speed_<device>.json")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--peer", action="append", choices=("torch", "torch-strong"), default=[])
    parser.add_argument("--no-check", action="store_true", help="do not compute the plain result")
    parser.add_argument("--least", type=float, default=0.05, help="seconds that one turn lasts at least")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"))
    parser.add_argument("--samples", type=int, nargs="+", default=list(growth.SAMPLES), help="of growth")
    parser.add_argument("--workload", default="scoring-vitb8", help="of growth")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options, console = arguments(argv), Console(width=None if sys.stdout.isatty() else 160)
    if options.list:
        return listing(console)
    if options.compare:
        return compare.show(console, *options.compare)
    # A program from the disk would make the compile times a lie.
    jax.config.update("jax_enable_compilation_cache", False)
    growing = options.names == ["growth"]
    chosen = () if growing else workloads.find(options.names or ["stages"])
    record: dict[str, Any] = {"kind": KIND, **environment(options.peer), "rounds": options.rounds}
    record |= {"slug": device_slug(record), "command": list(sys.argv[1:] if argv is None else argv)}
    default = "growth" if growing else "speed"
    path = options.out or Path(f"{default}_{record['slug']}.json")
    if growing:
        record["growth"] = growth.sweep(options.workload, options.samples, rounds=options.rounds)
        outputs.write_json(path, record)
        growth.show(console, record["growth"])
        return growth.plot(record, path.with_suffix(".png"))
    record["workloads"] = []
    for workload in chosen:
        begun = time.perf_counter()
        found = measure.measured(
            workload,
            rounds=options.rounds,
            precision=options.precision,
            peers=options.peer,
            least=options.least,
            check=not options.no_check,
        )
        record["workloads"].append(outputs.plain(found))
        write(path, record)  # after every workload: an interrupted run keeps what it had
        console.print(f"{workload.name}: {time.perf_counter() - begun:.0f} s", highlight=False)
    show(console, record)
    console.print(f"{path}, {path.with_suffix('.csv')}", highlight=False, soft_wrap=True)
    return None


def entry() -> None:
    try:
        main()
    except InputError as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    entry()
