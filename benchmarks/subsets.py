"""What accuracy costs: a labelled category scored in subsets of n scans, and against reference sets of R.

    python -m benchmarks.subsets path/to/cable_gland --out benchmarks/results/scaling --name cable_gland

Features and distances are computed once. A subset, or a set of references, is a choice of their columns, so
every point of a curve costs the statistics alone. The scan score is the maximum of the map: re-scoring needs
a set of its own.

* ``subsets``: the scans are divided at random into parts of about n, each scored within itself.
* ``reference``: R scans drawn at random, defective ones among them, score all scans; none scores itself.
* ``good reference``: R good scans, as a person would choose them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.chart import figure
from benchmarks.run import environment
from muscjax import config as configuration
from muscjax import inputs, metrics, outputs, pairs, pipeline, reference, runtime
from muscjax.config import Config
from muscjax.console import Stages
from muscjax.errors import InputError
from muscjax.extract import pad_samples
from muscjax.inputs import Inputs
from muscjax.pipeline import Extracted
from muscjax.requests import Request
from muscjax.types import Features, PatchScores

SIZES = (3, 5, 9, 18, 27, 54, 108)
_BLOCK = 8
COLUMNS = ("data", "modality", "mode", "scans", "seed", "auroc", "ap", "seconds")


class Measured(NamedTuple):
    """One modality of a category: everything but the choice of references."""

    name: str  # of the modality
    features: Features
    distances: pairs.Distances
    extracted: Extracted
    loaded: Inputs
    config: Config

    @property
    def count(self) -> int:
        return len(self.loaded.dataset.scans)


def measured(path: Path, request: Request, config: Config, observe: Stages) -> Iterator[Measured]:
    """Each modality that the category has, and both together."""
    plan = inputs.plan(dataclasses.replace(request, path=path), config)
    loaded = inputs.load(plan.datasets[0], plan.kinds[0], request, plan.config, observe, observe.say)
    extracted = pipeline.extract(
        loaded.images, loaded.clouds, **plan.backbones(loaded.kind), config=loaded.config, progress=observe
    )
    off = dataclasses.replace(loaded.config, rscon=dataclasses.replace(loaded.config.rscon, enabled=False))
    image, points = pipeline.features_of(extracted.features)
    valid = None if extracted.groups is None else np.asarray(extracted.groups.valid)
    of_image = None if image is None else pairs.measure(np.asarray(image), off, progress=observe)
    of_points = (
        None if points is None else pairs.measure(np.asarray(points), off, valid=valid, progress=observe)
    )
    for name, sides in (("image", (1, 0)), ("points", (0, 1)), ("both", (1, 1))):
        if (sides[0] and image is None) or (sides[1] and points is None):
            continue
        features = dataclasses.replace(
            extracted.features, image=image if sides[0] else None, points=points if sides[1] else None
        )
        distances = pairs.Distances(of_image if sides[0] else None, of_points if sides[1] else None)
        yield Measured(name, features, distances, extracted, loaded, off)


def score(of: Measured, queries: np.ndarray, references: np.ndarray, width: int) -> list[np.ndarray | None]:
    """Patch scores (Q, M), (Q, G) of scans against others, none against itself.

    width: to which the references are padded, so that parts of nearly one size share a program.
    """
    from muscjax import rows

    groups = of.extracted.groups if of.distances.points is not None else None
    padded = np.concatenate([references, np.repeat(references[:1], width - len(references))])
    there = np.arange(width) < len(references)
    has_points = np.zeros(width, bool) if groups is None else np.asarray(groups.valid)[padded].any(axis=1)
    entries = rows.paired_entries(of.features)
    totals: list[Any] = [None, None]
    for pair in entries:
        parts: list[list[Any]] = [[], []]
        for start in range(0, len(queries), _BLOCK):
            own = queries[start : start + _BLOCK]
            counts = pad_samples(there[None] & (own[:, None] != padded[None]), _BLOCK)
            sides = [
                None if x is None else pad_samples(x[entry][own][..., padded], _BLOCK)
                for x, entry in zip(of.distances, pair, strict=True)
            ]
            chosen = None
            if groups is not None:
                fields = {
                    f.name: np.asarray(getattr(groups, f.name))[own] for f in dataclasses.fields(groups)
                }
                picked: Any = groups
                chosen = pipeline.pad_groups(dataclasses.replace(picked, **fields), _BLOCK)
            found = reference.statistics(
                *sides,
                chosen,
                has_points,
                counts,
                scoring_config=of.config.scoring,
                cae_config=of.config.cae,
                grid_hw=of.extracted.grid_hw if sides[0] is not None else None,
                map_hw=of.extracted.map_hw,
                fuse=pipeline.cae.enhance,
                average=pipeline.AVERAGES[of.config.scoring.average],
            )
            for into, scores in zip(parts, found, strict=True):
                into.append(None if scores is None else np.asarray(scores)[: len(own)])
        whole = [None if part[0] is None else np.concatenate(part) for part in parts]
        pipeline.add_part(totals, whole, len(queries), len(entries))
    return totals


def evaluate(of: Measured, totals: Sequence[np.ndarray | None]) -> dict[str, float | None]:
    """Image AUROC of the maps' maxima and pixel AP at working size, from patch scores of all scans."""
    nobody: Any = np.zeros((of.count, 1), np.float32)
    scores: Any = PatchScores(totals[0], totals[1], nobody)  # pyright: ignore[reportArgumentType]
    with_points = totals[1] is not None
    found = pipeline.finish(
        scores,
        of.extracted.clouds if with_points else None,
        of.extracted.groups if with_points else None,
        of.config,
        grid_hw=of.extracted.grid_hw if totals[0] is not None else None,
        map_hw=of.extracted.map_hw,
    )
    labels = np.asarray([scan.label for scan in of.loaded.dataset.scans])
    masks = [item.mask for item in of.loaded.prepared]
    if any(mask is None for mask in masks):
        raise InputError(f"{of.loaded.dataset.root}: subsets need the mask of every scan")
    maps = list(np.asarray(found.anomaly_map))
    return {
        "auroc": metrics.image_metrics(labels, np.asarray(found.map_max))["auroc"],
        "ap": metrics.pixel_metrics([mask for mask in masks if mask is not None], maps)["ap"],
    }


def curves(of: Measured, sizes: Sequence[int], seeds: int) -> Iterator[dict[str, Any]]:
    """The rows of all three curves; where a size leaves no choice, one seed."""
    n, every = of.count, np.arange(of.count)
    good = np.flatnonzero([scan.label == 0 for scan in of.loaded.dataset.scans])
    for size in sizes:
        for mode, among in (("subsets", every), ("reference", every), ("good reference", good)):
            if size > len(among):
                continue
            for seed in range(seeds if size < len(among) else 1):
                begun = time.perf_counter()
                totals: list[Any]
                if mode == "subsets":
                    parts = pipeline.subset_ids(n, max(1, round(n / size)), seed)
                    width = max(len(part) for part in parts)
                    order = np.argsort(np.concatenate(parts))
                    made = [score(of, part, part, width) for part in parts]
                    totals = [
                        None if side[0] is None else np.concatenate(side)[order]
                        for side in zip(*made, strict=True)
                    ]
                else:
                    chosen = np.sort(np.random.default_rng(seed).permutation(among)[:size])
                    totals = score(of, every, chosen, size)
                values = evaluate(of, totals)
                seconds = round(time.perf_counter() - begun, 2)
                row = {"modality": of.name, "mode": mode, "scans": size, "seed": seed}
                yield {**row, **values, "seconds": seconds}


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Mean over the seeds with its whole range, one panel per metric and modality."""
    kinds = list(dict.fromkeys(row["modality"] for row in rows))
    plt, axes = figure(2, len(kinds), (3.6 * len(kinds), 5.4))
    colours = {"subsets": "#1f6f8b", "reference": "#c98b2b", "good reference": "#5a8f4e"}
    for column, kind in enumerate(kinds):
        for line, metric in enumerate(("auroc", "ap")):
            axis = axes[line][column] if len(kinds) > 1 else axes[line]
            for mode, colour in colours.items():
                chosen = [r for r in rows if r["modality"] == kind and r["mode"] == mode]
                sizes = sorted({r["scans"] for r in chosen})
                values = [[100 * r[metric] for r in chosen if r["scans"] == size] for size in sizes]
                axis.plot(sizes, [np.mean(v) for v in values], "o-", ms=3, color=colour, label=mode)
                low, high = ([end(v) for v in values] for end in (min, max))
                axis.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)
            axis.set_xscale("log")
            axis.set_xticks(sorted({r["scans"] for r in rows}), minor=False)
            axis.set_xticklabels(sorted({r["scans"] for r in rows}))
            axis.minorticks_off()
            if line == 0:
                axis.set_title(kind)
            else:
                axis.set_xlabel("scans in a subset, or in the reference set")
            if column == 0:
                axis.set_ylabel("image AUROC, %" if metric == "auroc" else "pixel AP, %")
            if line == column == 0:
                axis.legend(frameon=False)
    plt.gcf().suptitle(title)
    plt.savefig(path, dpi=140)
    plt.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.subsets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling"))
    parser.add_argument("--name", help="of the data, for the files; the folder's by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="released")
    parser.add_argument("--set", dest="assignments", action="append", default=[])
    parser.add_argument("--image-backbone", default="texture")
    parser.add_argument("--point-backbone", default="fpfh")
    parser.add_argument("--modality", default="auto")
    options = parser.parse_args(argv)
    runtime.prepare()
    name = options.name or options.path.name
    config = configuration.override(configuration.preset(options.preset), *options.assignments)
    observe = Stages(lambda stage, done, total: None, print)
    request = Request(
        path=options.path,
        out=options.out,
        modality=options.modality,
        image_backbone=options.image_backbone,
        point_backbone=options.point_backbone,
    )
    rows: list[dict[str, Any]] = []
    for of in measured(options.path, request, config, observe):
        for row in curves(of, [s for s in options.sizes if s <= of.count], options.seeds):
            rows.append({"data": name, **row})
            print(row, flush=True)
            outputs.write_csv(options.out / f"subsets_{name}.csv", COLUMNS, rows)
    record = environment(()) | {"kind": "muscjax-subsets", "config": config, "seconds": observe.seconds}
    record["backbones"] = [Path(options.image_backbone).name, Path(options.point_backbone).name]
    outputs.write_json(options.out / f"subsets_{name}.json", record)
    draw(
        rows,
        f"{name}, {options.preset}: {', '.join(record['backbones'])}",
        options.out / f"subsets_{name}.png",
    )


def entry() -> None:
    try:
        main()
    except InputError as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    entry()
