"""The label-free decision: false alarms measured against false alarms requested.

    python -m benchmarks.decision --cache runs --real ../shared/data/mvtec3d/cable_gland

scores synthetic lines (six parts, 5 %, 20 % and 50 % defective, several seeds) and, where given, a real
category in the MVTec 3D-AD layout, decides at several rates, and writes ``decision.csv`` (a line per set,
score, rule and rate) and ``decision.json`` (the conditions) into ``--out``. Scores and maps are kept in
``--cache``: only what is missing there is run.

What was chosen by looking at labels (the law's order, the prior of the share, the score that is labelled) was
chosen on the lines with the seeds of ``--chosen``; the lines with other seeds and the real scans are only
reported, the real ones by even and odd numbers apart (every run scores all of them). The gauge's limits were
set with the scores (not the labels) of all real scans in view: that it warns on them is no independent
finding. ``mad`` is the usual rule, the normal quantile of median and median absolute deviation, as a
yardstick.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from muscjax import config, datasets, decision, outputs, runtime
from muscjax.config import DecisionConfig
from muscjax.console import watch
from muscjax.datasets import synthetic
from muscjax.requests import Request
from muscjax.run import run

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
SHARES = ("0.05", "0.2", "0.5", "0.8")
PARTS = ("cap", "knob", "housing", "biscuit", "rope", "gear")
RULES = {
    "law": "muscjax.decision",
    "mad": "above median + spread · normal quantile, spread = median absolute deviation / 0.6745",
}
COLUMNS = (
    "set",
    "role",
    "defective",
    "runs",
    "normal_scans",
    "score",
    "rule",
    "requested",
    "false_alarm_rate",
    "std_over_runs",
    "detection_rate",
    "called_defective",
    "false_alarms",
    "expected_false_alarms",
    "estimated_share",
    "warned",
    "masks_on_normal",
    "masks_on_called",
    "pixel_precision",
    "pixel_recall",
)


@dataclasses.dataclass(frozen=True)
class Scored:
    """One run: what the decision sees, and the truth that it does not see."""

    numbers: np.ndarray  # (N,) number of each scan in its folder
    labels: np.ndarray  # (N,) bool
    scores: np.ndarray  # (N,) after RsCon
    before: np.ndarray  # (N,) map maxima
    maps: np.ndarray  # (N, H, W)
    masks: np.ndarray  # (N, H, W) bool


def scored(place: Path, path: Path | None, modality: str, line: dict[str, Any] | None) -> Scored:
    """The run kept in the file ``place``; it is made first where it is missing."""
    if not place.exists():
        import tifffile

        with tempfile.TemporaryDirectory() as folder, watch(Console(stderr=True), quiet=True) as observe:
            if path is None:
                path = synthetic.write_line(Path(folder) / "line", **(line or {}))
            out = Path(folder) / "out"
            request = Request(path=path, out=out, modality=modality, overlays=False)  # pyright: ignore[reportArgumentType]
            (outcome,) = run(request, config.released(), observe)
            scans = outcome.dataset.scans
            made = {
                "names": [scan.name for scan in scans],
                "labels": [scan.label for scan in scans],
                "scores": outcome.scores,
                "before": outcome.before_rscon,
                "maps": np.stack([tifffile.imread(outputs.map_path(out, scan.name)) for scan in scans]),
                "masks": np.stack([datasets.load_truth(scan) for scan in scans]) != 0,  # pyright: ignore
            }
        with outputs.replaced(place) as file:
            np.savez_compressed(file, **made)
    with np.load(place) as kept:
        return Scored(
            numbers=np.array([int(name.split("/")[-1]) for name in kept["names"]]),
            labels=kept["labels"] != 0,
            scores=kept["scores"],
            before=kept["before"],
            maps=kept["maps"],
            masks=kept["masks"],
        )


def judged(run_: Scored, score: str, rule: str, rate: float, chosen: np.ndarray) -> dict[str, Any]:
    """The outcome of one decision on the scans ``chosen``; the decision itself sees all of them."""
    values = run_.before if score == "map_max" else run_.scores
    if rule == "mad":
        middle = np.median(values)
        spread = np.median(np.abs(values - middle)) / statistics.NormalDist().inv_cdf(0.75)
        called = values > middle + spread * statistics.NormalDist().inv_cdf(1 - rate)
        normal = chosen & ~run_.labels
        return {
            "alarms": int((called & normal).sum()),
            "normal": int(normal.sum()),
            "found": int((called & run_.labels & chosen).sum()),
            "bad": int((run_.labels & chosen).sum()),
            "called": int((called & chosen).sum()),
        }
    found = decision.decide(
        run_.scores,
        run_.before,
        config=DecisionConfig(false_alarm_rate=rate, score=score),  # pyright: ignore[reportArgumentType]
    )
    assert found.pred_label is not None
    assert found.pixel_threshold is not None
    normal, bad, called = chosen & ~run_.labels, chosen & run_.labels, chosen & found.pred_label
    masks = np.stack(
        [
            decision.mask(values, label, found.pixel_threshold, peak=peak)
            for values, label, peak in zip(run_.maps, called, run_.before, strict=True)
        ]
    )
    marked = masks.any((1, 2))
    truth = run_.masks & chosen[:, None, None]
    return {
        "alarms": int((found.pred_label & normal).sum()),
        "normal": int(normal.sum()),
        "found": int((found.pred_label & bad).sum()),
        "bad": int(bad.sum()),
        "called": int(called.sum()),
        "marked": int(marked.sum()),
        "marked_normal": int((marked & normal).sum()),
        "pixels": int(masks.sum()),
        "right": int((masks & truth).sum()),
        "truth": int(truth.sum()),
        "expected": found.expected_false_alarms if chosen.all() else None,
        "share": found.defective_share,
        "warned": found.warning is not None,
    }


def pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table from the outcomes of several runs."""

    def total(name: str) -> float | None:
        values = [row.get(name) for row in rows]
        return None if any(v is None for v in values) else float(sum(v for v in values if v is not None))

    def ratio(a: str, b: str) -> float | None:
        top, bottom = total(a), total(b)
        return None if top is None or not bottom else top / bottom

    rates = [row["alarms"] / row["normal"] for row in rows if row["normal"]]
    share, expected = total("share"), total("expected")
    return {
        "runs": len(rows),
        "normal_scans": total("normal"),
        "false_alarm_rate": ratio("alarms", "normal"),
        "std_over_runs": statistics.stdev(rates) if len(rates) > 1 else None,
        "detection_rate": ratio("found", "bad"),
        "called_defective": total("called"),
        "false_alarms": total("alarms"),
        "expected_false_alarms": expected,
        "estimated_share": None if share is None else share / len(rows),
        "warned": total("warned"),
        "masks_on_normal": ratio("marked_normal", "normal"),
        "masks_on_called": ratio("marked", "called"),
        "pixel_precision": ratio("right", "pixels"),
        "pixel_recall": ratio("right", "truth"),
    }


def table(name: str, role: str, share: str, runs: Sequence[Scored], parity: int | None) -> list[dict]:
    """The lines of one set: both scores, both rules, all rates; ``parity``: even (0) or odd numbers only."""
    out = []
    for score in ("map_max", "pred_score"):
        for rule in RULES:
            for rate in RATES:
                rows = []
                for one in runs:
                    chosen = np.ones(len(one.labels), bool) if parity is None else one.numbers % 2 == parity
                    rows.append(judged(one, score, rule, rate, chosen))
                head = {"set": name, "role": role, "defective": share, "score": score, "rule": rule}
                out.append({**head, "requested": rate, **pooled(rows)})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for scores and maps")
    parser.add_argument("--chosen", default="0,10", help="seeds on which the rule was chosen")
    parser.add_argument("--reported", default="1,11", help="seeds that are only reported")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--shares", default=",".join(SHARES))
    parser.add_argument("--scans", type=int, default=64)
    parser.add_argument("--real", type=Path, help="a category in the MVTec 3D-AD layout")
    parser.add_argument("--kept-only", action="store_true", help="leave out what is not in the cache yet")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    runtime.prepare()
    begun = time.perf_counter()
    outputs.open_output(options.cache)
    rows: list[dict[str, Any]] = []
    for role, seeds in (("chosen", options.chosen), ("reported", options.reported)):
        for share in options.shares.split(","):
            runs = []
            for seed in seeds.split(","):
                for part in options.parts.split(","):
                    place = options.cache / f"{part}-{share}-{seed}-both.npz"
                    line = {
                        "part": part,
                        "scans": options.scans,
                        "defective": float(share),
                        "seed": int(seed),
                    }
                    if place.exists() or not options.kept_only:
                        runs.append(scored(place, None, "both", line))
            if runs:
                rows += table("synthetic", role, share, runs, None)
    if options.real is not None:
        for modality in ("both", "image", "points"):
            one = scored(options.cache / f"real-{modality}.npz", options.real, modality, None)
            share = f"{one.labels.mean():.2f}"
            for parity, role in ((0, "even"), (1, "odd")):
                rows += table(f"{options.real.name} {modality}", role, share, [one], parity)
    outputs.open_output(options.out)
    tidy = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    outputs.write_csv(options.out / "decision.csv", COLUMNS, tidy)
    protocol = {name: getattr(options, name) for name in ("chosen", "reported", "parts", "shares", "scans")}
    seconds = {"all": time.perf_counter() - begun}
    record = outputs.run_record(config.released(), seconds=seconds, protocol=protocol, rules=RULES)
    outputs.write_json(options.out / "decision.json", record)
    for row in tidy:
        if row["rule"] == "law" and row["requested"] == 0.05:
            print(*(row[k] for k in ("set", "role", "defective", "score", "runs", "false_alarm_rate")))


if __name__ == "__main__":
    main()
