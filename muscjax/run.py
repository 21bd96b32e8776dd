"""A data set on disk to maps, ranked scores, metrics and a report: what ``muscjax detect`` does."""

from __future__ import annotations

import numpy as np

from muscjax import inputs, outputs, report, results
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.inputs import Inputs, Plan
from muscjax.requests import Outcome, Request


def run(request: Request, config: Config, observe: Observer) -> list[Outcome]:
    """Score every category under ``request.path`` and write the results below ``request.out``.

    Each category's files are complete before the next one begins.

    Raises:
        InputError: anything the user has to change; what was finished before stays.
    """
    plan = inputs.plan(request, config)
    out = outputs.open_output(request.out)
    notes: list[str] = []

    def say(message: str) -> None:
        notes.append(message)
        observe.say(message)

    for dataset in plan.datasets:
        for problem in dataset.problems:
            say(problem)
    missing = report.available()
    if missing is not None:
        observe.say(missing)
    for dataset in plan.datasets:
        for scan in dataset.scans:
            outputs.map_path(out, scan.name)  # refused before any work is done
    outputs.write_json(out / "run.json", {"unfinished": True})  # marks the folder as results, not input
    done: list[Outcome] = []
    with outputs.count_compiles() as compiles:
        for dataset, kind in zip(plan.datasets, plan.kinds, strict=True):
            loaded = inputs.load(dataset, kind, request, plan.config, observe, say)
            done.append(run_category(loaded, plan, request, observe))
            for warning in results.warnings(done[-1]):
                observe.say(warning)
            results.write_tables(out, done, request, plan.config, observe, compiles, notes)
            observe("tables", len(done), len(plan.datasets))
    return done


def run_category(loaded: Inputs, plan: Plan, request: Request, observe: Observer) -> Outcome:
    """Score and write one category."""
    from muscjax import pipeline
    from muscjax.decision import decide
    from muscjax.detection import neighbours

    extracted = pipeline.extract(
        loaded.images,
        loaded.clouds,
        **plan.backbones(loaded.kind),
        config=loaded.config,
        progress=observe,
    )
    patch_scores = pipeline.score_subsets(extracted, loaded.config, progress=observe)
    detection = pipeline.finish(
        patch_scores,
        extracted.clouds,
        extracted.groups,
        loaded.config,
        grid_hw=extracted.grid_hw,
        map_hw=extracted.map_hw,
        progress=observe,
    )
    scores, highest = np.asarray(detection.pred_score), np.asarray(detection.map_max)
    decision = decide(scores, highest, config=loaded.config.decision)
    found = results.Found(
        np.asarray(detection.anomaly_map),
        scores,
        highest,
        decision,
        neighbours(patch_scores, loaded.config),
    )
    source_maps, cards = results.write_scans(loaded, found, request, observe)
    summary = results.evaluate(loaded, found, source_maps, request)
    observe("metrics", 1, 1)
    return Outcome(loaded.dataset, loaded.kind, scores, highest, decision, summary, cards)
