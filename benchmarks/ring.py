"""The ring of ``muscjax.parallel`` under the profiler: when each device computes, and when its data travel.

    python -m benchmarks.ring --devices 4 --out benchmarks/results/NAME/ring

Writes NAME.json and NAME.png. On a host with fewer devices the CPU is split into so many virtual ones. These
share its cores, and on XLA's CPU backend a transfer is a meeting of threads at which a device's own work
stops: the upper chart shows that, measured. The lower one is a model: the compiled program's loops and
transfers, each begun as soon as its data are there, on a device of the given rates that does one of either at
a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import hlo

Interval = tuple[float, float]


def intervals(events: Sequence[dict[str, Any]]) -> dict[int, dict[str, list[Interval]]]:
    """Per device, in milliseconds from the first slice on: ``compute`` and ``transfer``, merged."""
    found: dict[int, dict[str, list[Interval]]] = {}
    for event in events:
        arguments = event.get("args", {})
        operation = arguments.get("hlo_op", "")
        if event.get("ph") != "X" or "device_ordinal" not in arguments or not operation:
            continue
        if operation.startswith(("while", "call", "conditional")):  # they hold other slices
            continue
        transfer = "permute" in operation
        device = found.setdefault(int(arguments["device_ordinal"]), {"compute": [], "transfer": []})
        begin = event["ts"] / 1e3
        device["transfer" if transfer else "compute"].append((begin, begin + event.get("dur", 0) / 1e3))
    start = min((a for device in found.values() for spans in device.values() for a, _ in spans), default=0.0)
    return {
        number: {kind: merged([(a - start, b - start) for a, b in spans]) for kind, spans in device.items()}
        for number, device in sorted(found.items())
    }


def merged(spans: Sequence[Interval], gap: float = 0.2) -> list[Interval]:
    """The same times as disjoint intervals in order; gaps shorter than ``gap`` are closed."""
    joined: list[Interval] = []
    for begin, end in sorted(spans):
        if joined and begin - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def total(spans: Sequence[Interval]) -> float:
    return sum(end - begin for begin, end in spans)


def shared(first: Sequence[Interval], second: Sequence[Interval]) -> float:
    """How long both are under way."""
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in first for c, d in second)


def summary(devices: dict[int, dict[str, list[Interval]]]) -> list[dict[str, float]]:
    """Milliseconds per device; ``hidden`` is the share of the transfers' time in which it computes too."""
    return [
        {
            "device": number,
            "compute": total(spans["compute"]),
            "transfer": total(spans["transfer"]),
            "both": shared(spans["compute"], spans["transfer"]),
            "hidden": shared(spans["compute"], spans["transfer"]) / max(total(spans["transfer"]), 1e-9),
        }
        for number, spans in devices.items()
    ]


def modelled(parts: Sequence[hlo.Part], *, flops: float, link: float) -> dict[str, list[Interval]]:
    """When each part of the program would run, in milliseconds; every device is at the same place.

    Args:
        flops: of the products, per second. link: bytes sent per second.
    """
    ends: dict[str, float] = {}
    free = {"compute": 0.0, "transfer": 0.0}
    spans: dict[str, list[Interval]] = {"compute": [], "transfer": []}
    waiting = list(parts)
    while waiting:
        ready = [part for part in waiting if part.after <= ends.keys()]
        starts = [
            max(free["transfer" if p.bytes_sent else "compute"], *(ends[name] for name in p.after), 0.0)
            for p in ready
        ]
        begin, part = min(zip(starts, ready, strict=True), key=lambda pair: pair[0])
        kind = "transfer" if part.bytes_sent else "compute"
        end = begin + 1e3 * (part.bytes_sent / link if part.bytes_sent else part.product_flops / flops)
        ends[part.name] = free[kind] = end
        spans[kind].append((begin, end))
        waiting.remove(part)
    return spans


def measure(
    *, devices: int, samples: int, patches: int, channels: int, flops: float, link: float
) -> dict[str, Any]:
    """Score once under the profiler; the program beside what ``parallel.cost`` predicts, and the model."""
    import jax
    import numpy as np

    from benchmarks.run import environment
    from muscjax import parallel, scoring

    mesh = parallel.mesh_of(jax.devices()[:devices])
    assert mesh is not None
    over = parallel.plan_over(mesh, samples, [(patches, channels)], memory_budget=4 << 30)
    assert over is not None
    size, plan = over

    def average(rows, _, valid, ids):
        del ids
        return scoring.interval_average(rows, 0.3, valid[:, None])

    rng = np.random.default_rng(0)
    features = rng.normal(size=(size, patches, channels)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    dealt = parallel.deal(features, mesh, plan)
    run = jax.jit(functools.partial(parallel.map_rows, points=None, fn=average, plan=plan, mesh=mesh))
    compiled = run.lower(dealt).compile()
    jax.block_until_ready(compiled(dealt))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            jax.block_until_ready(compiled(dealt))
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = intervals(events)
    text = compiled.as_text() or ""
    model = modelled(hlo.parts(text), flops=flops, link=link)
    predicted = parallel.cost(size, patches, channels, devices, plan)
    return {
        **environment(()),
        "devices": devices,
        "virtual": jax.devices()[0].platform == "cpu",
        "sizes": {"samples": size, "patches": patches, "channels": channels},
        "plan": dataclasses.asdict(plan),
        "compiled": dataclasses.asdict(hlo.read(text)),
        "predicted": {**dataclasses.asdict(predicted), "held_bytes": predicted.held_bytes},
        "milliseconds": summary(found),
        "intervals": {str(number): spans for number, spans in found.items()},
        "model": {
            "flops_per_second": flops,
            "link_bytes_per_second": link,
            "milliseconds": summary({0: model})[0],
            "intervals": model,
        },
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Two lanes per device: what it computes, and what travels to or from it. Measured, and the model."""
    from benchmarks.chart import figure, named

    numbers = list(record["intervals"])
    plt, (upper, lower) = figure(2, 1, (10, 2.6 + 0.5 * len(numbers)))
    sizes, model = record["sizes"], record["model"]
    hidden = [each["hidden"] for each in record["milliseconds"]]
    kind = "virtual devices" if record["virtual"] else "devices"
    _lanes(upper, [(f"device {number}", record["intervals"][number]) for number in numbers])
    upper.set_title(
        f"measured: {sizes['samples']} samples × {sizes['patches']} patches × {sizes['channels']} channels, "
        f"{record['plan']['kind']}, {len(numbers)} {kind} of {named(record)}; "
        f"{min(hidden):.0%} to {max(hidden):.0%} of the transfer time hidden",
        loc="left",
        fontsize=8,
    )
    _lanes(lower, [("each device", model["intervals"])])
    lower.set_title(
        f"model: the same program at {model['flops_per_second'] / 1e12:g} TFLOP/s and "
        f"{model['link_bytes_per_second'] / 1e9:g} GB/s per device; "
        f"{model['milliseconds']['hidden']:.0%} of the transfer time hidden",
        loc="left",
        fontsize=8,
    )
    lower.set_xlabel("milliseconds")
    plt.savefig(path, dpi=110)
    plt.close("all")


def _lanes(axes: Any, rows: Sequence[tuple[str, dict[str, list[Interval]]]]) -> None:
    from benchmarks.chart import COLOURS

    for row, (_, spans) in enumerate(rows):
        for lane, (kind, colour) in enumerate((("compute", "ours"), ("transfer", "torch"))):
            bars = [(begin, end - begin) for begin, end in spans[kind]]
            place = row + 0.1 + 0.4 * lane, 0.36
            axes.broken_barh(bars, place, color=COLOURS[colour], label=None if row else kind)
    axes.set_yticks([row + 0.5 for row in range(len(rows))], [name for name, _ in rows])
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ring", description="The ring under the profiler."
    )
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--patches", type=int, default=784)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--flops", type=float, default=50e12, help="of the modelled device, per second")
    parser.add_argument("--link", type=float, default=12.5e9, help="bytes per second that it can send")
    parser.add_argument("--out", type=Path, required=True, help="path of .json and .png, without the ending")
    asked = parser.parse_args(argv)
    flags = os.environ.get("XLA_FLAGS", "")
    if "device_count" not in flags:  # only the CPU heeds it
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={asked.devices}".strip()

    from muscjax import outputs

    record = measure(
        devices=asked.devices,
        samples=asked.samples,
        patches=asked.patches,
        channels=asked.channels,
        flops=asked.flops,
        link=asked.link,
    )
    outputs.write_json(asked.out.with_suffix(".json"), record)
    draw(record, asked.out.with_suffix(".png"))
    for each in record["milliseconds"]:
        print({name: round(value, 3) for name, value in each.items()})


if __name__ == "__main__":
    main()
