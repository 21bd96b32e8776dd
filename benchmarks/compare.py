"""Two records of ``benchmarks.run`` side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from muscjax.errors import InputError


def read(path: Path) -> dict[str, Any]:
    """A record written by ``benchmarks.run``.

    Raises:
        InputError: no such file, or something else in it.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{path}: expected the JSON file of a benchmark") from None
    if not isinstance(record, dict) or record.get("kind") != "muscjax-benchmark":
        raise InputError(f"{path}: expected the JSON file of a benchmark")
    return record


def ratios(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each workload and precision that both hold: both medians and how much faster the second is.

    ``normalised`` divides each by the best product of its own run, so that a machine that was busier in one
    of them does not count; None where a run has no product.
    """
    old = {(w["name"], w["precision"]): w for w in first.get("workloads", [])}
    found = []
    for after in second.get("workloads", []):
        before = old.get((after["name"], after["precision"]))
        if before is None:
            continue
        a, b = before["seconds"]["median"], after["seconds"]["median"]
        fractions = [w["fraction"] and w["fraction"]["median"] for w in (before, after)]
        same_work = before["rate"] and before["rate"]["operations"] == after["rate"]["operations"]
        found.append(
            {
                "name": after["name"],
                "precision": after["precision"],
                "seconds": (a, b),
                "faster": a / b,
                "normalised": fractions[1] / fractions[0] if all(fractions) and same_work else None,
                "fractions": fractions,
                "same_result": (before["result"] or {}).get("checksum")
                == (after["result"] or {}).get("checksum"),
            }
        )
    return found


def show(console: Console, first: Path, second: Path) -> None:
    """Print the table of ``ratios``; warn where the two devices differ."""
    records = read(first), read(second)
    rows = ratios(*records)
    if not rows:
        raise InputError(f"{first}, {second}: found no workload of the same name and precision in both")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "workload",
        "A ms",
        "B ms",
        "B faster ×",
        "× by fraction",
        "A of matmul",
        "B of matmul",
        "result",
    ):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for r in rows:
        table.add_row(
            r["name"] if r["precision"] == "float32" else f"{r['name']} {r['precision']}",
            *(f"{1e3 * s:.3g}" for s in r["seconds"]),
            f"{r['faster']:.2f}",
            "-" if r["normalised"] is None else f"{r['normalised']:.2f}",
            *("-" if f is None else f"{f:.2f}" for f in r["fractions"]),
            "same bits" if r["same_result"] else "differs",
        )
    console.print(table)
    devices = [(r["device"]["kind"], r["host"]["cpu"], r["host"]["cores"]) for r in records]
    if devices[0] != devices[1]:
        console.print(f"different devices: {devices[0]} and {devices[1]}", highlight=False)
