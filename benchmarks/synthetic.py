"""The synthetic line over many seeds: mean and spread of every figure of ``muscjax demo``.

    python -m benchmarks.synthetic --seeds 20 --part cap --out benchmarks/results

writes ``synthetic_<part>.csv`` (a line per seed and modality) and ``synthetic_<part>.json`` (mean and
standard deviation over the seeds, versions and device).
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from muscjax import config, outputs, runtime
from muscjax.console import watch
from muscjax.demo import KINDS, MODALITIES, Row, demo


def flat(row: Row) -> dict[str, Any]:
    """One row of the demo's table as columns."""
    out: dict[str, Any] = {
        "modality": row.modality,
        "image_auroc": row.image_auroc,
        "pixel_ap": row.pixel_ap,
        "hit_rate": row.hit_rate,
    }
    for kind in KINDS:
        out |= {f"pixel_ap_{kind}": row.ap_by_kind[kind], f"hit_rate_{kind}": row.hit_by_kind[kind]}
    return out


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds, per modality and figure."""
    out: dict[str, Any] = {}
    for modality in MODALITIES:
        mine = [row for row in rows if row["modality"] == modality]
        figures = {}
        for name in mine[0]:
            values = [row[name] for row in mine if isinstance(row[name], float)]
            if name in ("modality", "seed") or not values:
                continue
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            figures[name] = {"mean": statistics.fmean(values), "std": spread, "n": len(values)}
        out[modality] = figures
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--part", default="cap")
    parser.add_argument("--scans", type=int, default=48)
    parser.add_argument("--defective", type=float, default=0.375)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    runtime.prepare()
    rows: list[dict[str, Any]] = []
    seconds = {}
    for seed in range(options.seeds):
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as place, watch(Console(stderr=True), quiet=True) as observe:
            found = demo(
                Path(place),
                part=options.part,
                scans=options.scans,
                defective=options.defective,
                seed=seed,
                config=config.released(),
                observe=observe,
            )
        seconds[f"seed {seed}"] = time.perf_counter() - begun
        rows += [{"seed": seed, **flat(row)} for row in found]
        best = {row.modality: f"{100 * (row.pixel_ap or 0):.1f}" for row in found}
        print(f"seed {seed}: pixel AP {best}, {seconds[f'seed {seed}']:.0f} s", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    (options.out / f"synthetic_{options.part}.csv").write_text(text.getvalue())
    line = {name: getattr(options, name) for name in ("part", "scans", "defective", "seeds")}
    record = outputs.run_record(config.released(), seconds=seconds, line=line, figures=summary(rows))
    outputs.write_json(options.out / f"synthetic_{options.part}.json", record)


if __name__ == "__main__":
    main()
