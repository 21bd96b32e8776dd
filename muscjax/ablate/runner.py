"""All rows of the tables that are asked for: what is not done yet is computed, then everything is written.

A finished (row, seed) is a file ``OUT/.cells/<hash>.json``; the hash is over all that the result depends on,
so a second call does only what is missing, and rows that are the same computation share one file.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import inputs, outputs, published
from muscjax.ablate import bench as benches
from muscjax.ablate import cells, plots
from muscjax.ablate.bench import Bench
from muscjax.ablate.cells import Cell
from muscjax.ablate.tables import TABLES, Table, Variant
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.errors import InputError
from muscjax.outputs import plain
from muscjax.requests import Request
from muscjax.texts import read_record

COLUMNS = (
    "table",
    "category",
    "modality",
    "setting",
    "seeds",
    "metric",
    "value",
    "std",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "published",
    "seconds",
)
OURS = Variant("Ours")  # what every row of the same modality is held against


@dataclasses.dataclass(frozen=True)
class Result:
    """One value of a table, in per cent (``time_ms``, ``cpu_ms``: milliseconds per scan)."""

    table: str
    category: str  # "mean" over several
    modality: str
    setting: str
    seeds: int
    metric: str
    value: float
    std: float | None = None  # over the seeds, ddof 1
    low: float | None = None  # 95 % interval over resampled scans
    high: float | None = None
    difference: float | None = None  # to the method as configured, all scans, same modality
    difference_low: float | None = None  # of the paired bootstrap over scans
    difference_high: float | None = None
    published: float | None = None  # mean of the data set, with the paper's networks
    seconds: float | None = None  # computing it, all seeds
    yardstick: bool = False  # maps without any information


def chosen_tables(names: Sequence[str]) -> list[Table]:
    """The tables by name, in the paper's order; ``all`` stands for every one.

    Raises:
        InputError: an unknown name.
    """
    for name in names:
        if name != "all" and name not in TABLES:
            raise InputError(f"--table: found {name!r}, expected one of {', '.join((*TABLES, 'all'))}")
    return [table for name, table in TABLES.items() if name in names or "all" in names]


def run(request: Request, config: Config, tables: Sequence[Table], observe: Observer) -> list[Result]:
    """Every table over every category; ``OUT/<table>.csv`` and ``.png`` are written after each category.

    Raises:
        InputError: anything the user has to change; what was finished before stays.
    """
    plan = inputs.plan(request, config)
    out = outputs.open_output(request.out)
    sizes = {dataset.category: len(dataset.scans) for dataset in plan.datasets}
    dataset_name, _ = published.dataset_of(sizes)
    results: list[Result] = []
    for dataset, kind in zip(plan.datasets, plan.kinds, strict=True):
        loaded = inputs.load(dataset, kind, request, plan.config, observe, observe.say)
        bench = benches.open_bench(loaded, plan, out / ".features", observe)
        cells.labels_of(bench)  # refused before any work is done
        for table in tables:
            results += _table(bench, table, out / ".cells", dataset_name)
            _write(out, table, results)
    for table in tables:
        mine = of_table(results, table)
        plots.draw(out / f"{table.name}.png", table, mine, observe.say)
    return [row for table in tables for row in of_table(results, table)]


def of_table(results: Sequence[Result], table: Table) -> list[Result]:
    """The rows of a table; over several categories their means stand at the end."""
    rows = [row for row in results if row.table == table.name]
    categories = list(dict.fromkeys(row.category for row in rows))
    return rows if len(categories) < 2 else [*rows, *_means(rows, len(categories))]


def _write(out: Path, table: Table, results: Sequence[Result]) -> None:
    rows = [dataclasses.asdict(row) for row in of_table(results, table)]
    for row in rows:
        for name in COLUMNS:
            if isinstance(row[name], float):
                row[name] = round(row[name], 3)
    outputs.write_csv(out / f"{table.name}.csv", COLUMNS, rows)


def _table(bench: Bench, table: Table, folder: Path, dataset: str | None) -> list[Result]:
    category = bench.inputs.dataset.category
    out: list[Result] = []
    for variant in table.variants:
        first = cells.cell_of(bench, variant, 0)
        if isinstance(first, str):
            bench.observe.say(f"Table {table.name}: {first}")
            continue
        done = []
        for seed in range(variant.seeds):
            done.append(_cell(bench, dataclasses.replace(first, seed=seed), folder))
            bench.observe(f"table {table.name}", len(done), variant.seeds)
        ours = _reference(bench, first, folder)
        beside = functools.partial(published_value, table.name, dataset, first.kind, variant.setting)
        out += _results(table, category, first, done, ours, beside)
    name, trivial = cells.yardstick(bench)
    kind = bench.inputs.kind
    return out + [
        Result(table.name, category, kind, name, 1, metric, value, yardstick=True)
        for metric, value in trivial.items()
        if metric in table.metrics
    ]


def _cell(bench: Bench, cell: Cell, folder: Path) -> dict[str, Any]:
    path = folder / f"{cells.cell_key(bench, cell)}.json"
    if path.exists():
        return _kept(path)
    found = cells.evaluate(bench, cell)
    with outputs.replaced(path) as file:  # on one line: thousands of numbers
        file.write(json.dumps(plain({"setting": cell.variant.setting, "seed": cell.seed, **found})).encode())
    return found


def _kept(path: Path) -> dict[str, Any]:
    """A row that an earlier run finished; InputError where it is none."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2.0**63

    try:
        found = read_record(path)
    except InputError as error:
        raise InputError(f"{error}: not a finished row; delete it to have it made again") from None
    values, resamples = found.get("values"), found.get("resamples")
    whole = (
        number(found.get("seconds"))
        and isinstance(values, dict)
        and all(value is None or number(value) for value in values.values())
        and isinstance(resamples, dict)
        and all(isinstance(drawn, list) for drawn in resamples.values())
        and all(value is None or number(value) for drawn in resamples.values() for value in drawn)
    )
    if not whole:
        raise InputError(f"{path}: not a finished row; delete it to have it made again")
    return found


def _reference(bench: Bench, cell: Cell, folder: Path) -> dict[str, Any] | None:
    """The method as configured on the same modality; None for rows over another set of scans."""
    if cell.variant.draw.cut != 1:
        return None
    ours = cells.cell_of(bench, dataclasses.replace(OURS, modality=cell.variant.modality), 0)
    assert isinstance(ours, Cell)
    return _cell(bench, ours, folder)


def _results(
    table: Table,
    category: str,
    cell: Cell,
    done: Sequence[dict[str, Any]],
    ours: dict[str, Any] | None,
    beside: Callable[[str], float | None],
) -> Iterable[Result]:
    seconds = sum(found["seconds"] for found in done)
    for metric in table.metrics:
        values = [found["values"].get(metric) for found in done]
        known = [value for value in values if value is not None]
        if not known:
            continue
        mean = float(np.mean(known))
        std = float(np.std(known, ddof=1)) if len(known) > 1 else None
        own = _resamples(done[0], metric) if len(done) == 1 else None
        low, high = _interval(own)
        difference = below = above = None
        if ours is not None and metric in ours["values"]:
            difference = mean - ours["values"][metric]
            theirs = _resamples(ours, metric)
            if own is not None and theirs is not None and own.shape == theirs.shape:
                below, above = _interval(own - theirs)
        yield Result(
            table.name,
            category,
            cell.kind,
            cell.variant.setting,
            len(done),
            metric,
            mean,
            std,
            low,
            high,
            difference,
            below,
            above,
            beside(metric),
            seconds,
        )


def _resamples(found: dict[str, Any], metric: str) -> np.ndarray | None:
    numbers = found["resamples"].get(metric)
    return None if numbers is None else np.asarray([np.nan if v is None else v for v in numbers])


def _interval(numbers: np.ndarray | None) -> tuple[float | None, float | None]:
    if numbers is None or not np.isfinite(numbers).any():
        return None, None
    low, high = np.nanquantile(numbers, [0.025, 0.975])
    return float(low), float(high)


def _means(rows: Sequence[Result], categories: int) -> list[Result]:
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.modality, row.setting, row.metric), []).append(row)
    out = []
    for group in groups.values():
        if len(group) < categories:
            continue  # undefined or left out somewhere: a mean over the rest would compare with nothing
        first = group[0]
        differences = [row.difference for row in group if row.difference is not None]
        out.append(
            Result(
                first.table,
                "mean",
                first.modality,
                first.setting,
                first.seeds,
                first.metric,
                float(np.mean([row.value for row in group])),
                difference=float(np.mean(differences)) if len(differences) == len(group) else None,
                published=first.published,
                seconds=sum(row.seconds or 0 for row in group),
            )
        )
    return out


@functools.cache
def _published() -> dict[tuple[str, str, str, str], dict[str, float]]:
    """Tables III-VIII of arXiv 2511.10047 with ViT-B/8 and Point-MAE; keys as in ``published_value``."""
    text = resources.files("muscjax").joinpath("ablate/published.csv").read_text(encoding="utf-8")
    keys = ("table", "dataset", "modality", "setting")
    return {
        (row["table"], row["dataset"], row["modality"], row["setting"]): {
            name: float(v) for name, v in row.items() if name not in keys and v
        }
        for row in csv.DictReader(text.splitlines())
    }


def published_value(
    table: str, dataset: str | None, modality: str, setting: str, metric: str
) -> float | None:
    """The mean over the whole data set that the paper states, or None."""
    return _published().get((table, dataset or "", modality, setting), {}).get(metric)
