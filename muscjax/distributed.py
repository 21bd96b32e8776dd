"""``muscjax detect --distributed``: one run on many hosts, for which the data lie under the same path.

Every process prepares its share of the scans and extracts their features; all devices of all processes score
them in one ring; every process makes the maps of its share. Process 0 collects what a report is made of, in
bounded pieces, and is the only one that writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from muscjax import cae, datasets, inputs, outputs, parallel, pipeline, report, results, state, team
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.datasets import Dataset, Kind, Prepared
from muscjax.decision import decide
from muscjax.detection import neighbours, scan_scores
from muscjax.distances import Plan
from muscjax.errors import InputError
from muscjax.extract import SAMPLE_BUCKET, Progress
from muscjax.frame import Frame
from muscjax.geometry import bucket_size
from muscjax.identity import backbone_identity
from muscjax.inputs import Inputs
from muscjax.requests import Outcome, Request
from muscjax.rows import paired_entries
from muscjax.types import Cloud, Features, PatchScores, PointGroups


def run(request: Request, config: Config, observe: Observer) -> list[Outcome]:
    """``muscjax.run.run`` by all processes of ``team.join``; process 0 has the outcomes, the others none.

    A run does not go on where an interrupted one stopped. The process ends where another one is lost: without
    it nothing can be finished, not even JAX's own farewell.

    Raises:
        InputError: anything the user has to change, whichever process found it.
    """
    try:
        return _run(request, config, observe)
    except team.Lost as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("interrupted", 130)


def _leave(message: str, status: int) -> NoReturn:
    """End at once: JAX would wait for the other processes, and some may never come."""
    print(f"muscjax: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def _run(request: Request, config: Config, observe: Observer) -> list[Outcome]:
    first = team.number() == 0
    notes: list[str] = []

    def say(message: str) -> None:
        notes.append(message)
        observe.say(message)

    with team.together():
        if request.reference is not None or request.store is not None:
            raise InputError("--distributed: leave --reference and --store out")
        if config.run.subsets > 1:
            raise InputError("--distributed: found run.subsets, expected none: the set is scored at once")
        plan = inputs.plan(request, config)
        for dataset in plan.datasets:
            for scan in dataset.scans:
                outputs.map_path(request.out, scan.name)  # refused before any work is done
        if first:
            outputs.open_output(request.out)
    _compare(plan, request)
    if first:
        for dataset in plan.datasets:
            for problem in dataset.problems:
                say(problem)
        missing = report.available()
        if missing is not None:
            observe.say(missing)
    done: list[Outcome] = []
    with contextlib.ExitStack() as held, outputs.count_compiles() as compiles:
        with team.together():
            if first:
                held.enter_context(state.claimed(request.out, None))
                outputs.write_json(request.out / "run.json", {"unfinished": True})
        for dataset, kind in zip(plan.datasets, plan.kinds, strict=True):
            outcome = _category(dataset, kind, plan, request, observe, say)
            with team.together():
                if outcome is not None:
                    done.append(outcome)
                    for warning in results.warnings(outcome):
                        observe.say(warning)
                    results.write_tables(request.out, done, request, plan.config, observe, compiles, notes)
                    observe("tables", len(done), len(plan.datasets))
    return done


def _compare(plan: inputs.Plan, request: Request) -> None:
    """InputError where the processes do not see the same scans, or were not asked for the same."""
    names = [scan.name for dataset in plan.datasets for scan in dataset.scans]
    used = [None if b is None else backbone_identity(b) for b in (plan.image_backbone, plan.point_backbone)]
    asked = [request.clean, request.units, request.metric_size]
    seen = team.texts(json.dumps([names, plan.kinds, repr(plan.config), asked, used]))
    for process, text in enumerate(seen):
        if text != seen[0]:
            there = len(json.loads(text)[0])
            raise InputError(
                f"--distributed: process {process} has other scans or options than process 0 (found {there} "
                f"scans, expected the same {len(json.loads(seen[0])[0])}); all hosts need the same files"
            )


class Share(NamedTuple):
    """What one process has of the samples of a set."""

    ids: np.ndarray  # (L,) ascending
    n: int  # samples of the set
    size: int  # padded
    plan: Plan
    mesh: Mesh


def share_of(n: int, patches: tuple[int, ...], config: Config) -> Share:
    """The samples of this process: whole tiles, as evenly as they go, those of its devices in the ring.

    Raises:
        InputError: fewer samples than processes, or a memory budget that is too small.
    """
    mesh = parallel.mesh_of(jax.devices())
    if mesh is None:
        raise InputError("--distributed: found one process with one device; leave it out")
    over = parallel.plan_over(
        mesh,
        bucket_size(n, minimum=SAMPLE_BUCKET),
        tuple((m, 0) for m in patches),
        memory_budget=config.run.memory_budget,
    )
    if over is None:
        raise InputError("run.memory_budget: too small for one sample's rows of distances; raise it")
    size, plan = over
    owners = np.asarray([device.process_index for device in mesh.devices.flat])
    ids = np.arange(n)
    owner = owners[ids // plan.tile % mesh.size]
    missing = set(range(team.size())) - set(owner.tolist())
    if missing:
        raise InputError(f"--distributed: {n} scans are too few for {team.size()} processes")
    return Share(ids[owner == team.number()], n, size, plan, mesh)


def _check_whole(kind: Kind, config: Config) -> None:
    """InputError where the method needs, before the scans are dealt, what only the whole set knows."""
    if kind == "both" and config.maps.balance != "none":
        raise InputError(
            f"--distributed: found maps.balance {config.maps.balance!r}, whose units are those of the whole "
            "set; set maps.balance=none"
        )
    if config.input.window != "whole" and config.input.window_side is None:
        raise InputError(
            "--distributed: found input.window 'object', whose side is that of the whole set; "
            "set input.window=whole, or input.window_side"
        )


def _category(
    dataset: Dataset, kind: Kind, plan: inputs.Plan, request: Request, observe: Observer, say: Any
) -> Outcome | None:
    """Score one category; process 0 writes it and has the outcome."""
    remarks: list[str] = []
    with team.together():
        _check_whole(kind, plan.config)
        share = share_of(len(dataset.scans), _patches(kind, plan), plan.config)
        own = dataclasses.replace(dataset, scans=tuple(dataset.scans[i] for i in share.ids))
        side = datasets.working_sizes(own.scans, plan.config, modality=kind)[1]
    side = int(team.gather(np.asarray(side, np.int32)).min())
    sized = dataclasses.replace(plan.config.input, map_size=side)
    with team.together():
        sizes = dataclasses.replace(plan.config, input=sized)
        loaded = inputs.load(own, kind, request, sizes, observe, remarks.append)
        extracted = pipeline.extract(
            loaded.images,
            loaded.clouds,
            **plan.backbones(kind),
            config=loaded.config,
            fewest=1,
            progress=observe,
        )
    for text in team.texts(json.dumps(remarks)):
        for remark in json.loads(text):
            say(remark)
    with team.together():
        _check_memory(extracted.features, share, loaded.config)
    scores = _score(extracted, share, loaded.config, observe)
    with team.together():
        alone = dataclasses.replace(loaded.config.rscon, enabled=False)
        detection = pipeline.finish(
            scores,
            extracted.clouds,
            extracted.groups,
            dataclasses.replace(loaded.config, rscon=alone),
            grid_hw=extracted.grid_hw,
            map_hw=extracted.map_hw,
            progress=observe,
        )
    highest = team.gather_rows(detection.map_max, share.ids, share.n)
    salient = team.gather_rows(scores.salient, share.ids, share.n)
    everyone = dataclasses.replace(scores, image=None, points=None, salient=salient)
    maps, prepared = _collected(np.asarray(detection.anomaly_map), loaded, share, observe)
    outcome = None
    with team.together():
        if team.number() == 0:
            ranked = scan_scores(highest, everyone, loaded.config)
            decision = decide(ranked, highest, config=loaded.config.decision)
            found = results.Found(maps, ranked, highest, decision, neighbours(everyone, loaded.config))
            whole = Inputs(dataset, kind, loaded.config, tuple(prepared), None, None)
            source_maps, cards = results.write_scans(whole, found, request, observe)
            summary = results.evaluate(whole, found, source_maps, request)
            observe("metrics", 1, 1)
            outcome = Outcome(dataset, kind, ranked, highest, decision, summary, cards)
    return outcome


def _patches(kind: Kind, plan: inputs.Plan) -> tuple[int, ...]:
    """Patches and groups of a scan, before any is read: what a tile of the ring follows from."""
    found: list[int] = []
    if kind != "points":
        side = plan.config.input.image_size
        one = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        assert plan.image_backbone is not None
        found.append(jax.eval_shape(plan.image_backbone, one).shape[2])
    if kind != "image":
        found.append(plan.config.ipg.groups)
    return tuple(found)


def _check_memory(features: Features, share: Share, config: Config) -> None:
    shapes = [x.shape[2:] for x in pipeline.features_of(features) if x is not None]
    budget = config.run.memory_budget
    if parallel.plan_over(share.mesh, share.size, shapes, memory_budget=budget) is None:
        raise InputError(
            f"run.memory_budget: {budget / 2**30:.1f} GiB are too small for a device's share of {share.n} "
            "scans; raise it, or take more processes"
        )


def _score(extracted: pipeline.Extracted, share: Share, config: Config, progress: Progress) -> PatchScores:
    """``pipeline.score`` of this process's samples by those of all processes."""
    features, n = extracted.features, len(share.ids)
    entries = paired_entries(features)
    groups = _everyones(extracted.groups, share)
    totals: list[Any] = [None, None]
    for done, pair in enumerate(entries, start=1):
        sides = [
            None if x is None else parallel.deal_own(x[entry], share.ids, share.size, share.mesh, share.plan)
            for x, entry in zip(pipeline.features_of(features), pair, strict=True)
        ]
        with team.talking():
            found = pipeline.score_stage(
                *sides,
                groups,
                np.asarray(share.n, np.int32),
                plan=share.plan,
                scoring_config=config.scoring,
                cae_config=config.cae,
                grid_hw=extracted.grid_hw,
                map_hw=extracted.map_hw,
                fuse=cae.enhance,
                average=pipeline.AVERAGES[config.scoring.average],
                mesh=share.mesh,
            )
            own = [None if x is None else parallel.collect_own(x, share.ids) for x in found]
        pipeline.add_part(totals, own, n, len(entries))
        progress(f"{share.plan.kind} scoring", done, len(entries))
    return pipeline.patch_scores(features, totals)


def _everyones(groups: PointGroups | None, share: Share) -> PointGroups | None:
    """The groups of the whole set, padded, with the fields that scoring reads."""
    if groups is None:
        return None
    valid, pixel = (
        pipeline.pad_samples(team.gather_rows(x, share.ids, share.n), share.size)
        for x in (groups.valid, groups.pixel)
    )
    small = dataclasses.replace(groups, pixel=pixel, valid=valid)
    unread = ("indices", "centers", "center_index", "curvature")
    return dataclasses.replace(small, **{name: np.zeros((share.size, 0), np.float32) for name in unread})


def _collected(
    maps: np.ndarray, loaded: Inputs, share: Share, progress: Progress
) -> tuple[np.ndarray, list[Prepared]]:
    """On process 0 the maps of all scans and what was prepared of them, in the order of the set."""

    def packed() -> Iterator[bytes]:
        for i, one, item in zip(share.ids.tolist(), maps, loaded.prepared, strict=True):
            yield _pack(i, one, item)

    lengths = [len(data) for data in packed()]  # made twice, rather than all held at once
    size = share.n if team.number() == 0 else 0
    whole = np.zeros((size, *maps.shape[1:]), np.float32)
    prepared: list[Any] = [None] * size
    for done, (_, data) in enumerate(team.bring(packed(), lengths), start=1):
        i, one, item = _unpack(data)
        whole[i], prepared[i] = one, item
        progress("collecting", done, share.n)
    return whole, prepared


def _pack(number: int, anomaly_map: np.ndarray, item: Prepared) -> bytes:
    """One scan's results as the bytes of an NPZ file, without the image and the sensor's own points."""
    arrays: dict[str, Any] = {"map": anomaly_map}
    if item.cloud is not None:
        for name in ("points_m", "points", "valid", "pixel"):
            arrays[f"cloud.{name}"] = np.asarray(getattr(item.cloud, name))
    arrays |= {name: x for name in ("mask", "foreground") if (x := getattr(item, name)) is not None}
    text = json.dumps([number, dataclasses.asdict(item.frame), item.notes])
    file = io.BytesIO()
    np.savez(file, text=np.frombuffer(text.encode(), np.uint8), **arrays)
    return file.getvalue()


def _unpack(data: bytes) -> tuple[int, np.ndarray, Prepared]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        number, frame, notes = json.loads(arrays["text"].tobytes())
        cloud = None
        if "cloud.points" in arrays:
            cloud = Cloud(*(arrays[f"cloud.{name}"] for name in ("points_m", "points", "valid", "pixel")))
        mask, foreground = (arrays.get(name) for name in ("mask", "foreground"))
        sizes: dict[str, Any] = {name: value and tuple(value) for name, value in frame.items()}
        return number, arrays["map"], Prepared(None, cloud, Frame(**sizes), mask, foreground, tuple(notes))
