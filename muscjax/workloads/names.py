"""Every workload by name."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable
from typing import Any

from muscjax.errors import InputError
from muscjax.workloads.sizes import (
    Averaging,
    Fusing,
    Grouping,
    GroupPooling,
    ImageNetwork,
    Interpolating,
    Pipeline,
    PointNetwork,
    Pooling,
    Scoring,
    Workload,
)

_VIT_L: dict[str, Any] = {
    "family": "clip", "patch": 14, "width": 1024, "depth": 24, "heads": 16, "stored_size": 336,
    "taps": (7, 15, 23),
}  # fmt: skip
_VIT_B8 = ImageNetwork(
    name="backbone-vitb8", family="dino", patch=8, width=768, depth=12, heads=12, image_size=224,
    stored_size=224, taps=(3, 7, 11),
)  # fmt: skip
_VIT_L336 = ImageNetwork(name="backbone-vitl14-576", image_size=336, **_VIT_L)
_VIT_L518 = ImageNetwork(name="backbone-vitl14-1369", image_size=518, **_VIT_L)
_POINT_MAE = PointNetwork(name="backbone-pointmae", points=20_000)
_VIT_TINY = ImageNetwork(
    name="backbone-vit-small", family="dino", patch=8, width=128, depth=3, heads=2, image_size=32,
    stored_size=32, taps=(0, 1, 2), batch=2,
)  # fmt: skip
_POINTS_TINY = PointNetwork(
    name="backbone-pointmae-small", points=400, groups=32, group_size=16, width=128, depth=3, heads=2,
    taps=(0, 1, 2), side=32,
)  # fmt: skip
_SETS = {"vitb8": (784, 768), "vitl14-576": (576, 1024), "vitl14-1369": (1369, 1024), "pointmae": (1024, 384)}
_NETWORKS: dict[str, tuple[ImageNetwork | None, PointNetwork | None]] = {
    "2d-vitb8": (_VIT_B8, None),
    "2d-vitl14-576": (_VIT_L336, None),
    "2d-vitl14-1369": (_VIT_L518, None),
    "3d-pointmae": (None, _POINT_MAE),
    "2d3d-vitb8": (_VIT_B8, _POINT_MAE),
    "2d3d-vitl14-1369": (_VIT_L518, _POINT_MAE),
}
_MANY = (50, 100, 150)


def scoring_sweep(name: str, sizes: Iterable[int]) -> tuple[Scoring, ...]:
    """The scoring workload ``name`` with other numbers of samples."""
    base = WORKLOADS[name]
    assert isinstance(base, Scoring)
    return tuple(dataclasses.replace(base, name=f"{name}-n{n}", n=n) for n in sizes)


def _all() -> Iterable[Workload]:
    for key, (patches, channels) in _SETS.items():
        yield Scoring(name=f"scoring-{key}", n=16, patches=patches, channels=channels)
        yield Scoring(name=f"scoring-{key}-refine", n=16, patches=patches, channels=channels, refine=True)
        for n in _MANY:
            yield Scoring(name=f"scoring-{key}-n{n}", n=n, patches=patches, channels=channels)
    yield Averaging(name="average-n150", rows=8 * 784, references=149)
    both: dict[str, Any] = {
        "grid": (28, 28), "channels": 768, "groups": 1024, "point_channels": 384
    }  # fmt: skip
    yield Fusing(name="cae-vitb8", n=12, **both)
    for n in _MANY:
        yield Fusing(name=f"cae-vitb8-n{n}", n=n, **both)
    yield Grouping(name="grouping-20k", points=20_000)
    yield Pooling(name="snamd-vitb8", grid=(28, 28), channels=768)
    yield Pooling(name="snamd-vitl14-1369", grid=(37, 37), channels=1024)
    yield GroupPooling(name="snamd-pointmae", points=20_000)
    yield Interpolating(name="idw-20k", points=20_000)
    yield from (_VIT_B8, _VIT_L336, _VIT_L518, _POINT_MAE)
    for key, (image, points) in _NETWORKS.items():
        for n in _MANY:
            yield Pipeline(name=f"pipeline-{key}-n{n}", n=n, image=image, points=points)
    yield Scoring(name="scoring-small", n=5, patches=16, channels=24)
    yield Averaging(name="average-small", rows=12, references=9)
    yield Fusing(name="cae-small", n=4, grid=(4, 4), channels=24, groups=20, point_channels=12, map_side=32)
    yield Grouping(name="grouping-small", points=400, groups=32, group_size=16, initial_size=10, side=32)
    yield Pooling(name="snamd-small", grid=(4, 4), channels=24)
    yield GroupPooling(name="snamd-points-small", points=400, groups=32, channels=24, side=32)
    yield Interpolating(name="idw-small", points=400, centers=32, side=32)
    yield from (_VIT_TINY, _POINTS_TINY)
    yield Pipeline(name="pipeline-small", n=4, image=_VIT_TINY, points=_POINTS_TINY)


WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _all()}

# The stages that the project's speed figures are stated for.
STAGES = (
    "scoring-vitb8", "scoring-vitb8-refine", "cae-vitb8", "grouping-20k", "snamd-vitb8", "idw-20k",
    "backbone-pointmae", "backbone-vitb8",
)  # fmt: skip
GROUPS: dict[str, tuple[str, ...]] = {
    "stages": STAGES,
    "small": tuple(name for name in WORKLOADS if name.endswith("-small")),
    "pipelines": tuple(name for name in WORKLOADS if name.startswith("pipeline-") and name[-1].isdigit()),
}


def find(names: Iterable[str]) -> tuple[Workload, ...]:
    """Workloads by name, by group ("stages", "small", "pipelines") or by pattern ("scoring-*"), once each.

    Raises:
        InputError: a name that stands for nothing.
    """
    found: dict[str, Workload] = {}
    for name in names:
        matching = GROUPS.get(name) or fnmatch.filter(WORKLOADS, name)
        if not matching:
            choices = ", ".join([*GROUPS, *WORKLOADS])
            raise InputError(f"workload {name!r} is unknown; choose a pattern or one of {choices}")
        found |= {match: WORKLOADS[match] for match in matching}
    return tuple(found.values())
