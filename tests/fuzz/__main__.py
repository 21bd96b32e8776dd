"""``python -m tests.fuzz``: the counts of all readers as a table, and what went wrong."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import tempfile
from pathlib import Path

from tests.fuzz import engine

COLUMNS = ("family", "reader", "cases", "accepted", "refused", "died", "faults", "cpu_s", "peak_mib")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=2000, help="of each reader")
    options.add_argument("--out", type=Path, default=Path("benchmarks/results/fuzzing.csv"))
    given = options.parse_args()
    found: list[engine.Counts] = []
    for family in engine.FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            found += engine.run(family, given.cases, Path(place))
        for counts in (c for c in found if c.family == family):
            print(f"{counts.reader}: {counts.cases} cases, {len(counts.faults)} faults")
            for fault in counts.faults:
                print(f"  {fault}", file=sys.stderr)
    with given.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for counts in found:
            row = dataclasses.asdict(counts) | {
                "faults": len(counts.faults),
                "cpu_s": round(counts.seconds, 1),
            }
            table.writerow([row[name] for name in COLUMNS])
    return int(any(counts.faults for counts in found))


if __name__ == "__main__":
    sys.exit(main())
