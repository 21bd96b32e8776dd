"""The preset ``muscjax`` against ``released`` on the synthetic line, defect by defect, over several seeds.

    python -m benchmarks.kinds --seeds 3 --out benchmarks/results/preset

writes ``kinds.csv``: a line for each part, seed, modality and defect, with the average precision on the
object of both presets over the good scans and those with that defect. A table that is there is gone on with.
It prints the mean difference of every part, modality and defect, with its standard error over the seeds.
Weight-free backbones unless others are named.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Shown

from benchmarks.directions import Bench, Run, Table, Truth, truth_of
from muscjax import config as configs
from muscjax import inputs, metrics, runtime
from muscjax.console import watch
from muscjax.datasets import synthetic
from muscjax.datasets.synthetic import DEFECTS
from muscjax.requests import Request

PRESETS = ("released", "muscjax")
MODALITIES: tuple[Any, ...] = ("image", "points", "both")
EVERY = "all"  # defects together


def precision(truth: Truth, run: Run, ids: Sequence[int]) -> tuple[float, float]:
    """Average precision on the object, and the hit rate, of these scans, some of them defective; per cent."""
    part, shown = truth.take(ids), [run.maps[i] for i in ids]
    ap = metrics.foreground_ap(part.masks, shown, part.inside)
    hit = metrics.hit_rate(part.masks, shown)
    assert ap is not None
    assert hit is not None
    return 100 * ap, 100 * hit


def line(table: Table, part: str, seed: int, options: argparse.Namespace) -> None:
    """Render one line of products and measure both presets on it."""
    shape = {"scans": options.scans, "defective": options.defective}
    with (
        tempfile.TemporaryDirectory() as place,
        watch(Console(stderr=True), quiet=True) as observe,
    ):
        path = synthetic.write_line(Path(place), part=part, seed=seed, **shape)
        request = Request(path, Path(), image_backbone=options.image_backbone)
        bench = Bench(request, observe)
        scans = inputs.plan(request, configs.released()).datasets[0].scans
        truth = truth_of(scans)
        good = [i for i, scan in enumerate(scans) if scan.defect not in DEFECTS]
        members = {name: [i for i, s in enumerate(scans) if s.defect == name] for name in DEFECTS}
        members[EVERY] = [i for ids in members.values() for i in ids]
        for kind in MODALITIES:
            if table.has(part, str(seed), kind):
                continue
            runs = {name: bench.run(configs.preset(name), kind) for name in PRESETS}
            rows = []
            for defect, ids in members.items():
                if not ids:
                    continue
                row = {"part": part, "seed": str(seed), "modality": kind, "defect": defect}
                row |= {"shown_by": DEFECTS.get(defect, EVERY), "scans": str(len(ids))}
                for name, run in runs.items():
                    row[name], row[f"{name}_hit"] = precision(truth, run, sorted([*good, *ids]))
                rows.append(row)
            table.add(rows)


def differences(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], tuple[float, float, int]]:
    """By part, modality and defect: mean of muscjax - released, its standard error, and the seeds."""
    found = defaultdict(list)
    for row in rows:
        found[row["part"], row["modality"], row["defect"]].append(
            float(row["muscjax"]) - float(row["released"])
        )
    return {
        key: (
            statistics.fmean(values),
            statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan,
            len(values),
        )
        for key, values in found.items()
    }


def show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    found = differences(rows)
    table = Shown(title="average precision on the object, muscjax less released: mean (standard error)")
    defects = [*sorted({defect for _, _, defect in found} - {EVERY}), EVERY]
    for heading in ("part", "modality", *defects):
        table.add_column(heading, justify="left" if heading in ("part", "modality") else "right")
    for part, kind in dict.fromkeys((part, kind) for part, kind, _ in found):
        values = [found.get((part, kind, defect)) for defect in defects]
        table.add_row(part, kind, *("-" if v is None else f"{v[0]:+.0f} ({v[1]:.0f})" for v in values))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(synthetic.parts()))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scans", type=int, default=64)
    parser.add_argument("--defective", type=float, default=0.4)
    parser.add_argument("--image-backbone", default=Request.image_backbone)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/preset"))
    options = parser.parse_args()
    runtime.prepare()
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table(options.out / "kinds.csv", ("part", "seed", "modality"))
    for seed in range(options.seeds):
        for part in options.parts:
            if not table.has(part, str(seed), MODALITIES[-1]):
                line(table, part, seed, options)
    show(Console(width=160), table.rows)


if __name__ == "__main__":
    main()
