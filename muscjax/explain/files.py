"""From a scan on disk to its explanation: the data set around it, or the run that scored it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from muscjax import datasets, inputs, outputs
from muscjax.colormap import heat_limits
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.datasets import Dataset, Scan
from muscjax.errors import InputError
from muscjax.evaluate import score_table
from muscjax.explain.arrays import explain
from muscjax.explain.parts import Explanation
from muscjax.explain.place import to_working
from muscjax.inputs import Inputs, Plan
from muscjax.pipeline import Extracted
from muscjax.requests import Request, recorded

_LEVELS_UP = 6  # folders above a file among which its data set is looked for
_SAME = 1e-3  # difference to the run's score that rounding does not explain


@dataclasses.dataclass(frozen=True)
class Explained:
    """An explanation with what is needed to show it."""

    explanation: Explanation
    dataset: Dataset
    inputs: Inputs
    request: Request
    limits: tuple[float, float]  # of the heat, the same for the whole set

    @property
    def scan(self) -> Scan:
        return self.dataset.scans[self.explanation.sample]

    @property
    def stem(self) -> str:
        """A name for the place: that of the scan with the pixel, ``cable_gland/test/bent/000@120,88``."""
        y, x = self.explanation.place.source_yx
        return f"{self.scan.name}@{y},{x}"


def explain_scan(
    scan: str,
    at: tuple[int, int] | None = None,
    *,
    run: Path | None = None,
    request: Request | None = None,
    config: Config | None = None,
    observe: Observer,
) -> Explained:
    """Follow one pixel of one scan on disk through the method.

    All scans of its category are read and scored, as in a run; nothing is written, so that the features of
    all stages are held in memory. A pixel that is none of the scan's is refused before anything is read, one
    that the window cuts away (``input.window``) before any features are computed.

    Args:
        scan: a file of the scan, or with ``run`` also its name, such as ``cable_gland/test/bent/000``.
        at: (y, x), pixel of the original image; None: where the map is highest.
        run: output folder of ``muscjax detect``, whose data set, options and configuration are used.
        request, config: without ``run``, the options; ``request.path`` and ``out`` do not count.

    Raises:
        InputError: anything the user has to change.
    """
    if run is not None:
        request, config = recorded(run)
        if request.reference is not None:
            raise InputError(
                f"{run}: scored against the reference set {request.reference}; explain follows scans that "
                "score each other, expected a run without --reference"
            )
        if not request.path.exists():
            raise InputError(
                f"{run / 'run.json'}: records the data set {request.path}, which is not there; call from the "
                "folder in which detect was called, or give a file of the scan without --run"
            )
        plan = inputs.plan(request, config)
        number, sample = _find(scan, plan, run)
    else:
        assert request is not None
        assert config is not None
        request = _around(Path(scan), request)
        observe.say(f"data set: {request.path} (layout {request.layout})")
        plan = inputs.plan(request, config)
        number, sample = _find(scan, plan, None)
    dataset = plan.datasets[number]
    for problem in dataset.problems:
        observe.say(problem)
    if at is not None:  # outside of the image: seen before anything is read
        to_working(datasets.frame_of(dataset.scans[sample], 8), at)
    loaded = inputs.load(dataset, plan.kinds[number], request, plan.config, observe, observe.say)
    if at is not None:  # cut away: seen once all scans are read, before their features are computed
        to_working(loaded.prepared[sample].frame, at)
    return _explained(loaded, plan, request, sample, at, run, observe)


def _explained(
    loaded: Inputs,
    plan: Plan,
    request: Request,
    sample: int,
    at: tuple[int, int] | None,
    run: Path | None,
    observe: Observer,
) -> Explained:
    from muscjax import pipeline

    extracted = _extract(loaded, plan, observe)
    scored = pipeline.score_subsets(extracted, loaded.config, progress=observe)
    shape = {"grid_hw": extracted.grid_hw, "map_hw": extracted.map_hw}
    detection = pipeline.finish(
        scored, extracted.clouds, extracted.groups, loaded.config, **shape, progress=observe
    )
    frames = [item.frame for item in loaded.prepared]
    told = explain(extracted, loaded.config, sample, at, frames=frames, detection=detection, progress=observe)
    if run is not None:
        difference = _since(run, loaded.dataset.scans[sample], told.scan.pred_score)
        told = dataclasses.replace(told, notes=(*told.notes, *difference))
    limits = heat_limits(list(np.asarray(detection.anomaly_map)))
    return Explained(told, loaded.dataset, loaded, request, limits)


def _extract(loaded: Inputs, plan: Plan, observe: Observer) -> Extracted:
    """Features and groups of all scans; the one place where a store of features would come in."""
    from muscjax import pipeline

    return pipeline.extract(
        loaded.images,
        loaded.clouds,
        **plan.backbones(loaded.kind),
        config=loaded.config,
        progress=observe,
    )


def _find(scan: str, plan: Plan, run: Path | None) -> tuple[int, int]:
    """Which data set of the plan holds the scan, and its number there."""
    path = Path(scan).resolve()
    for number, dataset in enumerate(plan.datasets):
        for sample, candidate in enumerate(dataset.scans):
            if scan == candidate.name or _is_file_of(path, candidate):
                return number, sample
    where = "the data set" if run is None else f"the run in {run}"
    example = plan.datasets[0].scans[0].name
    raise InputError(f"{scan}: no scan of {where}, expected a file of it or a name such as {example}")


def _is_file_of(path: Path, scan: Scan) -> bool:
    return any(file is not None and file.resolve() == path for file in (scan.image, scan.xyz))


def _around(path: Path, request: Request) -> Request:
    """The request for the data set, and the category of it, that a file belongs to.

    The layouts are tried in the order of recognition, each from the file upwards: to a plain folder of
    images any folder with images would be one.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; a scan's name, such as cable_gland/test/bent/000, needs --run"
        )
    if request.layout != "auto" and request.layout not in datasets.LAYOUTS:
        raise InputError(f"layout: found {request.layout!r}, expected one of: {', '.join(datasets.LAYOUTS)}")
    names = list(datasets.LAYOUTS) if request.layout == "auto" else [request.layout]
    path = path.resolve()
    for name in names:
        for folder in itertools.islice(path.parents, _LEVELS_UP):
            for dataset in _read(name, folder, request):
                if any(_is_file_of(path, scan) for scan in dataset.scans):
                    category = dataset.category if dataset.root != folder else None
                    return dataclasses.replace(request, path=folder, layout=name, category=category)
    raise InputError(
        f"{path}: belongs to no data set (split {request.split!r}) above it; tried the layouts "
        f"{', '.join(names)}; --layout, --split and --modality say more"
    )


def _read(name: str, folder: Path, request: Request) -> Iterator[Dataset]:
    """The data sets of one layout in a folder; none where it has another one."""
    try:
        if datasets.LAYOUTS[name].matches(folder):
            yield from datasets.open_dataset(
                folder, layout=name, split=request.split, modality=request.modality, strict=False
            )
    except (InputError, OSError):
        return


def _since(run: Path, scan: Scan, score: float) -> list[str]:
    """A remark where the run's own table says something else about the scan."""
    path = run / "scores.csv"
    try:
        rows = {row["path"].lstrip("'"): float(row["score"]) for row in score_table(path)}
    except ValueError:  # an InputError is one
        return [f"{path}: cannot be read, so these numbers are not compared with the run's"]
    named = (scan.image or scan.xyz or Path(scan.name)).as_posix()
    before = rows.get(named)
    if before is None or abs(before - score) <= _SAME * max(abs(before), abs(score)):
        return []
    return [
        f"the run gave this scan the score {before:.4g}, now it is {score:.4g}: its files, weights or device "
        "changed since"
    ]


def record(explained: Explained) -> dict:
    """What explanation.json holds: the explanation, and the scans by name that its numbers stand for."""
    told = explained.explanation
    return {
        "scan": explained.scan.name,
        "scans": [scan.name for scan in explained.dataset.scans],
        "config": explained.inputs.config,
        "request": explained.request,
        "explanation": dataclasses.replace(told, anomaly_map=np.zeros((0, 0), np.float32)),
    }


def write(out: Path, explained: Explained) -> list[Path]:
    """explanation.json, and explanation.png where the ``report`` extra is installed; what was written."""
    from muscjax.explain import picture

    written = [out / "explanation.json"]
    outputs.write_json(written[0], record(explained))
    if picture.available() is None:
        written.append(out / "explanation.png")
        picture.write(written[1], explained)
    return written
