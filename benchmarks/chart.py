"""One chart per device from committed records of ``benchmarks.run``.

    python -m benchmarks.chart benchmarks/results/speed_*.json --out benchmarks/results

One file: --out is a picture (.png or .svg). Several: --out is a folder, which gets one picture per record.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import compare
from muscjax.errors import InputError

COLOURS = {"ours": "#1f6f8b", "torch": "#c98b2b", "torch-strong": "#8a5a9e"}


def figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """pyplot and axes, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    plt.rcParams["svg.hashsalt"] = "muscjax"
    return plt, plt.subplots(rows, columns, figsize=size, layout="constrained")[1]


def named(record: dict[str, Any]) -> str:
    """The device in words."""
    device, host = record["device"], record["host"]
    return f"{host['cpu']}, {host['cores']} cores" if device["platform"] == "cpu" else str(device["kind"])


def draw(record: dict[str, Any], path: Path) -> None:
    """Median times of ours and the peers; beside them the share of the product's rate.

    Whiskers are the quartiles over the rounds.
    """
    items = record.get("workloads") or []
    if not items:
        raise InputError("chart: found a record without workloads")
    kinds = ["ours", *sorted({kind for w in items for kind in w["peers"]})]
    plt, (left, right) = figure(1, 2, (10, 0.9 + 0.42 * len(items) * (0.6 + 0.2 * len(kinds))))
    height = 0.8 / len(kinds)
    for k, kind in enumerate(kinds):
        for place, w in enumerate(items):
            s = w["seconds"] if kind == "ours" else w["peers"].get(kind, {}).get("seconds")
            if s is None:
                continue
            y, middle = place + (k - (len(kinds) - 1) / 2) * height, 1e3 * s["median"]
            spread = [[middle - 1e3 * s["iqr"][0]], [1e3 * s["iqr"][1] - middle]]
            label = kind if place == 0 or not any(kind in v["peers"] for v in items[:place]) else None
            left.barh(
                y,
                middle,
                height * 0.92,
                color=COLOURS[kind],
                label=label if kind != "ours" or not place else None,
            )
            left.errorbar(middle, y, xerr=[[max(0, e[0])] for e in spread], color="0.2", linewidth=0.8)
            text = f"{middle:.0f}" if middle >= 100 else f"{middle:.3g}"
            if kind != "ours":
                text += f"  ({w['peers'][kind]['ratio']['median']:.1f}×)"
            left.annotate(text, (1.12 * max(middle, 1e3 * s["iqr"][1]), y), va="center", fontsize=7)
    left.set(xscale="log", xlabel="milliseconds, logarithmic; in brackets: times ours")
    left.set_yticks(range(len(items)), [w["name"] for w in items])
    left.invert_yaxis()
    left.margins(x=0.25)
    left.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for place, w in enumerate(items):
        if w["fraction"] is None:
            continue
        middle = w["fraction"]["median"]
        right.barh(place, middle, 0.6, color=COLOURS["ours"])
        right.annotate(
            f"{middle:.2f}",
            (middle, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    right.axvline(1, color="0.5", linestyle="--", linewidth=1)
    right.set(xlabel="rate / best plain matrix product of the same rounds")
    right.set_yticks(range(len(items)), [""] * len(items))
    right.set_ylim(left.get_ylim())
    versions = record["versions"]
    title = f"{named(record)} · {items[0]['precision']} · jax {versions['jax']}"
    if "torch" in record:
        title += f" · torch {record['torch']['version']}, {record['torch']['threads']} threads"
    left.figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"Date": None} if path.suffix == ".svg" else {}
    plt.savefig(path, dpi=150, metadata=stamp)
    plt.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    picture = options.out.suffix in (".png", ".svg")
    if picture and len(options.records) > 1:
        parser.error("--out: expected a folder for several records")
    for source in options.records:
        draw(compare.read(source), options.out if picture else options.out / f"{source.stem}.png")


def entry() -> None:
    try:
        main()
    except InputError as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    entry()
