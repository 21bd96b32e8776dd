"""A data set on disk to maps, ranked scores, metrics and a report: what ``muscjax detect`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from muscjax import inputs, outputs, reference, report, results, state
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.inputs import Inputs, Plan
from muscjax.requests import Outcome, Request
from muscjax.state import Scored, State

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from muscjax.types import Cloud


def run(request: Request, config: Config, observe: Observer, *, mesh: Mesh | None = None) -> list[Outcome]:
    """Score every category under ``request.path`` and write the results below ``request.out``.

    Each category's files are complete before the next one begins. What an interrupted run had finished is
    not done again (`muscjax.state`), and nobody else may run into ``request.out`` meanwhile.

    Raises:
        InputError: anything the user has to change, or another run in the same place; what was finished
            before stays, that of an earlier run too where the first category cannot be read.
    """
    kept = None if request.reference is None else reference.open_line(request.reference)
    plan = inputs.plan(request, config, fewest=2 if kept is None else 1)
    if kept is not None:
        reference.compare_request(kept.kept, plan, request)
    out = outputs.open_output(request.out)
    notes: list[str] = []

    def say(message: str) -> None:
        notes.append(message)
        observe.say(message)

    for remark in () if kept is None else kept.remarks:
        say(remark)
    for dataset in plan.datasets:
        for problem in dataset.problems:
            say(problem)
    missing = report.available()
    if missing is not None:
        observe.say(missing)
    for dataset in plan.datasets:
        for scan in dataset.scans:
            outputs.map_path(out, scan.name)  # refused before any work is done
    done: list[Outcome] = []
    with state.claimed(out, request.store) as root, outputs.count_compiles() as compiles:
        for dataset, kind in zip(plan.datasets, plan.kinds, strict=True):
            loaded = inputs.load(dataset, kind, request, plan.config, observe, say)
            record = None if kept is None else kept.record
            devices = 1 if mesh is None else mesh.size
            work = state.open_state(root, loaded, plan, request, observe.say, record, devices)
            if not done:  # only now: a run that is refused at once replaces nothing of an earlier one
                outputs.write_json(out / "run.json", {"unfinished": True})  # results, not input
            done.append(run_category(loaded, plan, request, observe, work, kept, mesh))
            for warning in results.warnings(done[-1]):
                observe.say(warning)
            results.write_tables(out, done, request, plan.config, observe, compiles, notes)
            observe("tables", len(done), len(plan.datasets))
    return done


def run_category(
    loaded: Inputs,
    plan: Plan,
    request: Request,
    observe: Observer,
    work: State,
    kept: reference.Line | None = None,
    mesh: Mesh | None = None,
) -> Outcome:
    """Score and write one category: each scan by all the others, or by the kept ones alone."""
    from muscjax import pipeline

    scored, found, record = work.scored() if kept is None else None, None, None
    if scored is None:
        extracted = pipeline.extract(
            loaded.images,
            loaded.clouds,
            **plan.backbones(loaded.kind),
            config=loaded.config,
            fewest=2 if kept is None else 1,
            keep=work.keep,
            progress=observe,
        )
        if kept is not None:
            found, record = reference.detect(extracted, loaded, kept, observe), kept.record
        else:
            patch_scores = pipeline.score_subsets(
                extracted, loaded.config, remember=work.remember, mesh=mesh, progress=observe
            )
            scored = Scored(patch_scores, extracted.groups, extracted.grid_hw, extracted.map_hw)
            work.keep_scored(scored)
    if found is None:
        assert scored is not None
        found = _by_each_other(scored, loaded.clouds, loaded.config, observe)
    source_maps, cards = results.write_scans(loaded, found, request, observe, once=work.written.once)
    summary = results.evaluate(loaded, found, source_maps, request)
    observe("metrics", 1, 1)
    scores, highest, decision = found.scores, found.before_rscon, found.decision
    return Outcome(loaded.dataset, loaded.kind, scores, highest, decision, summary, cards, record)


def _by_each_other(
    scored: Scored, clouds: Sequence[Cloud] | None, config: Config, observe: Observer
) -> results.Found:
    from muscjax import pipeline
    from muscjax.decision import decide
    from muscjax.detection import neighbours

    patch_scores, groups, grid_hw, map_hw = scored
    detection = pipeline.finish(
        patch_scores, clouds, groups, config, grid_hw=grid_hw, map_hw=map_hw, progress=observe
    )
    scores, highest = np.asarray(detection.pred_score), np.asarray(detection.map_max)
    decision = decide(scores, highest, config=config.decision)
    near = neighbours(patch_scores, config)
    return results.Found(np.asarray(detection.anomaly_map), scores, highest, decision, near)
