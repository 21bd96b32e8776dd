"""Every direction of the preset ``muscjax``: its gain alone, its gain in the preset, its seconds; one table.

    python -m benchmarks.directions DATASET --image-backbone FILE --out benchmarks/results/preset

writes ``directions.csv`` and ``comparison.csv`` row by row, and takes up an unfinished table where it ends.
Every scan is scored by all others; metrics are taken over the even-numbered and the odd-numbered scans apart,
at the size of the masks. The even ones are to choose by, the odd ones to report.

``alone``: the released preset with this one change, less the released preset. ``in the preset``: the preset,
less the preset without it; of a direction that the preset does not have, the preset with it less the preset.
Intervals: 95 %, of the paired difference, scans drawn with replacement. Seconds are of all threads, of one
scan; of the features with programs compiled for sets of at most 16 scans alone, so read them as hints.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import otherwise
from muscjax import config as configs
from muscjax import datasets, evaluate, inputs, intervals, maps, metrics, outputs, pipeline, runtime
from muscjax.backbones import overlap, registry
from muscjax.config import Config
from muscjax.console import Observer, watch
from muscjax.pipeline import Extracted
from muscjax.requests import Request
from muscjax.types import Features

RESAMPLES = 500
FIGURES = ("foreground_ap", "hit_rate", "aupro", "pixel_ap", "image_auroc")

Tokens = Callable[[np.ndarray], np.ndarray]  # (S, N, M, C) to (S, N, M, C')


class Direction(NamedTuple):
    """One idea: what turns it on in the released preset, and what turns it off (or on) in ``muscjax``."""

    name: str
    alone: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    kept: bool = True  # False: ``inside`` turns it on
    tokens: Tokens | None = None  # or a change of the pooled image features
    tiled: bool = False  # images twice as large, in tiles
    turned: bool = False  # references also in quarter turns
    nearest: int = 1  # which of the nearest patches counts
    beside: tuple[str, ...] = ()  # settings of further point features, beside the usual ones


_DEPTHS = "network.depths=[0.16667, 0.25, 0.33333, 0.41667, 0.5]"
_GROUPS = ("ipg.expansion=none", "ipg.initial_size=64", "ipg.group_size=64")
_OLD_GROUPS = ("ipg.expansion=released", "ipg.group_size=128", "ipg.initial_size=80")
_QUINCUNX = "network.overlap=quincunx"
_FULL = "fpfh.full_resolution=true"
_WIDE = ("fpfh.feature_radius=0.02", "fpfh.feature_neighbours=400")
_PLACE = ("snamd.place_distance=1.5", "snamd.place_facing=0.9")

AS_IT_IS = Direction("")

DIRECTIONS = (
    Direction("window around the object", ("input.window=object",), ("input.window=whole",)),
    Direction("patches every half side", ("network.overlap=full",), ("network.overlap=none",)),
    Direction("every second of them only", (_QUINCUNX,), (_QUINCUNX,), kept=False),
    Direction("early depths", (_DEPTHS,), ("network.depths=[]",)),
    Direction("one token of all depths", ("network.join=true",), ("network.join=false",)),
    Direction("fewer references, X = 5 %", ("scoring.interval=0.05",), ("scoring.interval=0.3",)),
    Direction("a Gaussian for each patch", ("maps.cells=gaussian",), ("maps.cells=corners",)),
    Direction("balance of the modalities", ("maps.balance=calm",), ("maps.balance=none",)),
    Direction("place on the object (3D)", _PLACE, ("snamd.place_distance=0", "snamd.place_facing=0")),
    Direction("no SNAMD of points", ("snamd.points=false",), ("snamd.points=true",)),
    Direction("groups of 64 neighbours, no IPG", _GROUPS, _OLD_GROUPS),
    Direction("no SNAMD of images", ("snamd.image=false",), ("snamd.image=true",)),
    Direction("no CAE", ("cae.enabled=false",), ("cae.enabled=true",)),
    Direction("no RsCon", ("rscon.enabled=false",), ("rscon.enabled=true",)),
    Direction("blur in float", ("maps.blur=float",), ("maps.blur=uint8",)),
    Direction("X = 10 %", ("scoring.interval=0.1",), ("scoring.interval=0.1",), kept=False),
    Direction("X = 3 %", ("scoring.interval=0.03",), ("scoring.interval=0.03",), kept=False),
    Direction("image side 448", ("input.image_size=448",), ("input.image_size=448",), kept=False),
    Direction("whitened tokens", (), (), kept=False, tokens=otherwise.whitened),
    Direction("tokens less their mean", (), (), kept=False, tokens=otherwise.centred),
    Direction("place in the picture (2D)", (), (), kept=False, tokens=otherwise.placed),
    Direction("the third nearest patch", (), (), kept=False, nearest=3),
    Direction("references in quarter turns", (), (), kept=False, turned=True),
    Direction("tiles, magnified twice", (), ("network.overlap=none",), kept=False, tiled=True),
    Direction("FPFH of all the sensor's points", (_FULL,), (_FULL,), kept=False),
    Direction("FPFH over 20 mm", _WIDE, _WIDE, kept=False),
    Direction("FPFH over 10 and 20 mm", (), (), kept=False, beside=_WIDE),
)  # fmt: skip


class Run(NamedTuple):
    """What one variant gives."""

    maps: list[np.ndarray]  # in the geometry of the scans
    scores: np.ndarray
    seconds: float  # of all threads, per scan


@dataclasses.dataclass
class Bench:
    """A data set with its truth, and the features that were made last."""

    request: Request
    observe: Observer
    kept: OrderedDict[Any, Any] = dataclasses.field(default_factory=OrderedDict)

    def load(self, config: Config, kind: Any) -> tuple[Any, Any]:
        """Plan and scans at working size."""
        request = dataclasses.replace(self.request, modality=kind)
        plan = inputs.plan(request, config)
        return plan, inputs.load(plan.datasets[0], kind, request, plan.config, self.observe, lambda _: None)

    def side(
        self, config: Config, kind: Any, used: str, changed: Direction = AS_IT_IS
    ) -> tuple[Extracted, Config, Any, float]:
        """Features of one modality, from memory where the same settings were asked for before.

        kind: of the run, which decides how scans are prepared. used: the modality wanted.
        """
        tiled, tile = changed.tiled and used == "image", config.input.image_size or 0
        if tiled:
            config = configs.override(config, f"input.image_size={2 * tile}")
        own = (config.network, config.texture) if used == "image" else (config.ipg, config.fpfh)
        key = (kind, used, config.input, *own)
        snamd = config.snamd
        key += (snamd.image if used == "image" else dataclasses.replace(snamd, image=True), tiled)
        if key not in self.kept:
            plan, loaded = self.load(config, kind)
            images, clouds, backbones = loaded.images, loaded.clouds, plan.backbones(used)
            if tiled:
                images = otherwise.enlarged(images, 2 * tile)
                network = registry.load_image_backbone(self.request.image_backbone, image_size=tile)
                network = overlap.configured(network, config.network)
                backbones["image_backbone"] = otherwise.Tiled(network, tile, loaded.config.input.image_step)
            given = (images, None) if used == "image" else (None, clouds)
            seconds = []
            for _ in range(1 + (len(loaded.prepared) <= 16)):  # few scans: the second time is compiled
                begun = time.process_time()
                found = pipeline.extract(*given, **backbones, config=loaded.config)
                seconds.append(time.process_time() - begun)
            self.kept[key] = (found, loaded.config, loaded.prepared, min(seconds))
        self.kept.move_to_end(key)
        while len(self.kept) > 4:
            self.kept.popitem(last=False)
        return self.kept[key]

    def turned(self, config: Config, kind: Any) -> tuple[np.ndarray, float]:
        """Image features of the pictures in quarter turns, and the seconds they take."""
        plan, loaded = self.load(config, kind)
        begun = time.process_time()
        extract = functools.partial(pipeline.extract, **plan.backbones("image"), config=loaded.config)
        return otherwise.turned(loaded.images, extract), time.process_time() - begun

    def run(self, config: Config, kind: Any, changed: Direction = AS_IT_IS) -> Run:
        """All scans scored by all others."""
        wanted = ("image", "points") if kind == "both" else (kind,)
        sides = [self.side(config, kind, used, changed) for used in wanted]
        loaded = sides[0][1]
        working = sides[-1][1].input  # of the points, where tiles have other pictures
        settings = dataclasses.replace(config, input=working, network=loaded.network)
        settings = overlap.resolved(settings, wanted)  # its cells
        image = sides[0][0].features.image if kind != "points" else None
        if changed.tokens is not None and image is not None:
            image = changed.tokens(np.asarray(image))
        points = sides[-1][0].features.points if kind != "image" else None
        if changed.beside and points is not None:
            sides.append(self.side(configs.override(config, *changed.beside), kind, "points"))
            further: Any = sides[-1][0].features.points
            points = np.concatenate([points, further], axis=-1) / np.float32(2**0.5)
        first, last = sides[0][0], sides[-1][0]
        features = Features(image, points, (first.features.levels[0], last.features.levels[1]))
        whole = Extracted(features, last.clouds, last.groups, first.grid_hw, last.map_hw)
        beside, took = self.turned(config, kind) if changed.turned and image is not None else (None, 0.0)
        begun = time.process_time()
        shape: dict[str, Any] = {"grid_hw": whole.grid_hw, "map_hw": whole.map_hw}
        if changed.nearest > 1 or beside is not None:
            scored = otherwise.score(whole, settings, nearest=changed.nearest, beside=beside)
        else:
            scored = pipeline.score_subsets(whole, settings)
        found = pipeline.finish(scored, whole.clouds, whole.groups, settings, **shape)
        seconds = time.process_time() - begun + took + sum(side[3] for side in sides)
        frames = [item.frame for item in sides[-1][2]]
        shown = [np.asarray(maps.to_source(m, f)) for m, f in zip(found.anomaly_map, frames, strict=True)]
        return Run(shown, np.asarray(found.pred_score), seconds / len(frames))


class Truth(NamedTuple):
    labels: np.ndarray
    masks: list[np.ndarray]
    inside: list[np.ndarray]

    def take(self, ids: Sequence[int]) -> Truth:
        return Truth(self.labels[ids], [self.masks[i] for i in ids], [self.inside[i] for i in ids])


def truth_of(scans: Sequence[Any]) -> Truth:
    masks = [datasets.load_truth(scan) for scan in scans]
    inside = [evaluate.foreground(scan) for scan in scans]
    assert not any(part is None for part in (*masks, *inside))
    return Truth(np.asarray([s.label for s in scans]), masks, inside)  # pyright: ignore[reportArgumentType]


def figures(truth: Truth, run: Run, ids: Sequence[int]) -> tuple[dict[str, float], np.ndarray]:
    """The figures of these scans, and the resamples of their foreground AP; per cent."""
    part, shown, scores = truth.take(ids), [run.maps[i] for i in ids], run.scores[ids]
    pixel = metrics.pixel_metrics(part.masks, shown)
    found = {
        "foreground_ap": metrics.foreground_ap(part.masks, shown, part.inside),
        "hit_rate": metrics.hit_rate(part.masks, shown),
        "aupro": pixel["aupro_mvtec"],
        "pixel_ap": pixel["ap"],
        "image_auroc": metrics.image_metrics(part.labels, scores)["auroc"],
    }
    drawn = intervals.resampled(part.labels, scores, part.masks, shown, part.inside, resamples=RESAMPLES)
    return {k: 100 * float(v or 0) for k, v in found.items()}, 100 * drawn["pixel"]["foreground_ap"]


def difference(new: Any, old: Any) -> dict[str, float]:
    """Differences of the figures, with the interval of the first."""
    out = {name: new[0][name] - old[0][name] for name in FIGURES}
    low, high = np.nanquantile(new[1] - old[1], [0.025, 0.975])
    return {**out, "foreground_ap_low": float(low), "foreground_ap_high": float(high)}


def parts_of(n: int) -> dict[str, list[int]]:
    return {"even": list(range(0, n, 2)), "odd": list(range(1, n, 2))}


class Table:
    """A CSV file that grows row by row; rows that are there already are not made again."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self._path, self._keys = path, tuple(keys)
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, *key: str) -> bool:
        return any(tuple(row[k] for k in self._keys) == key for row in self.rows)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self.rows.append({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()})
            print(", ".join(f"{k} {v}" for k, v in self.rows[-1].items()), flush=True)
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with self._path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def compare(bench: Bench, truth: Truth, table: Table, sizes: Sequence[int]) -> None:
    """Both presets by size and modality, with the differences."""
    parts = parts_of(len(truth.labels))
    for size in sizes:
        for kind in ("both", "image", "points"):
            if table.has(str(size), kind, "muscjax", "odd") or (kind == "points" and size != sizes[0]):
                continue
            named = {}
            for name in ("released", "muscjax"):
                config = configs.override(configs.preset(name), f"input.image_size={size}")
                run = bench.run(config, kind)
                named[name] = {p: figures(truth, run, ids) for p, ids in parts.items()}, run.seconds
            for name, (found, seconds) in named.items():
                for part in parts:
                    row = {"image_size": str(size), "modality": kind, "preset": name, "scans": part}
                    row |= found[part][0] | {"cpu_s_per_scan": seconds}
                    if name == "muscjax":
                        gain = difference(found[part], named["released"][0][part])
                        row |= {f"gain_{k}": v for k, v in gain.items()}
                    table.add([row])


def directions(bench: Bench, truth: Truth, table: Table, size: int, only: Sequence[str]) -> None:
    """A row for each direction, way and half of the scans."""
    parts = parts_of(len(truth.labels))
    bases: dict[str, Any] = {}

    def measured(name: str, sets: Sequence[str], changed: Direction = AS_IT_IS) -> tuple[Any, float]:
        config = configs.override(configs.preset(name), f"input.image_size={size}", *sets)
        run = bench.run(config, "both", changed)
        return {p: figures(truth, run, ids) for p, ids in parts.items()}, run.seconds

    for way, base in (("in the preset", "muscjax"), ("alone", "released")):
        for direction in DIRECTIONS:
            sets = direction.inside if way == "in the preset" else direction.alone
            unwanted = bool(only) and direction.name not in only
            if unwanted or table.has(direction.name, way, "odd"):
                continue
            if base not in bases:
                bases[base] = measured(base, ())
            with_it, without = measured(base, sets, direction), bases[base]
            if way == "in the preset" and direction.kept:
                with_it, without = without, with_it
            rows = []
            for part in parts:
                row = {"direction": direction.name, "way": way, "scans": part}
                row |= {"kept": str(direction.kept)} | difference(with_it[0][part], without[0][part])
                rows.append(row | {"cpu_s_per_scan": with_it[1] - without[1]})
            table.add(rows)
            jax.clear_caches()  # the programs of fifty variants are more than one process may map


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--image-backbone", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--sizes", type=int, nargs="*", default=(224, 448), help="of the comparison")
    parser.add_argument("--only", nargs="*", default=(), help="names of directions")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/preset"))
    options = parser.parse_args()
    runtime.prepare()
    from rich.console import Console

    options.out.mkdir(parents=True, exist_ok=True)
    request = Request(options.dataset, Path(), image_backbone=options.image_backbone)
    with watch(Console(stderr=True), quiet=True) as observe:
        bench = Bench(request, observe)
        scans = inputs.plan(request, configs.released()).datasets[0].scans
        truth = truth_of(scans)
        compared = Table(options.out / "comparison.csv", ("image_size", "modality", "preset", "scans"))
        compare(bench, truth, compared, options.sizes)
        tried = Table(options.out / "directions.csv", ("direction", "way", "scans"))
        directions(bench, truth, tried, options.size, options.only)
    record = outputs.run_record(configs.muscjax(), seconds={}, scans=len(scans), resamples=RESAMPLES)
    outputs.write_json(options.out / "directions.json", record)


if __name__ == "__main__":
    main()
