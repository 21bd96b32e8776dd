"""What of this package runs a workload."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import cae, ipg, maps, pipeline, scoring, snamd, workloads
from muscjax.backbones import network, point_mae, vit
from muscjax.config import Config, released
from muscjax.types import Features, PointGroups

LEVELS = {
    "float32": jax.lax.Precision.HIGHEST,
    "tf32": jax.lax.Precision.HIGH,
    "bfloat16": jax.lax.Precision.DEFAULT,
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A function with its arguments, ready to be compiled; or one that runs by itself."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    times: int = 1  # how often the whole runs it
    compiled: bool = True  # False: it compiles what it needs when called
    inside: str = ""  # the stage that it is a part of


def settings(workload: workloads.Workload, precision: str = "float32") -> Config:
    """The released configuration at the workload's sizes and that precision of the scoring products."""
    config = released()
    sizes = workload
    if isinstance(workload, workloads.Pipeline) and workload.points is not None:
        sizes = workload.points
    if isinstance(sizes, (workloads.Grouping, workloads.PointNetwork)):
        initial = getattr(sizes, "initial_size", max(3, sizes.group_size * 80 // 128))
        fields = {"groups": sizes.groups, "group_size": sizes.group_size, "initial_size": initial}
        config = dataclasses.replace(config, ipg=dataclasses.replace(config.ipg, **fields))
    given: Any = {"precision": precision}
    return dataclasses.replace(config, scoring=dataclasses.replace(config.scoring, **given))


def network_options(precision: str) -> dict[str, Any]:
    """Keywords of a backbone: bfloat16 is the dtype of its products, tf32 their precision."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    return {"dtype": dtype, "precision": LEVELS[precision]}


def _random_parameters(init: Callable[..., Any]) -> Any:
    """Parameters of the shapes that ``init`` gives, without compiling it."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.ones(leaf.shape)
        spread = leaf.shape[0] ** -0.5 if name == "kernel" else 0.02
        return jnp.asarray(spread * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))


@functools.lru_cache(maxsize=2)
def random_image_backbone(
    workload: workloads.ImageNetwork, precision: str = "float32"
) -> network.ImageBackbone:
    """The workload's vision transformer with random weights; for measuring, never for detection."""
    spec = workload.spec()
    params = _random_parameters(functools.partial(vit.init, spec=spec))
    return network.image_backbone(params, spec, image_size=workload.image_size, **network_options(precision))


@functools.lru_cache(maxsize=2)
def random_point_backbone(
    workload: workloads.PointNetwork, precision: str = "float32"
) -> network.PointBackbone:
    """The workload's Point-MAE encoder with random weights; for measuring, never for detection."""
    spec = workload.spec()
    params = _random_parameters(functools.partial(point_mae.init, spec=spec))
    return network.point_backbone(params, spec, **network_options(precision))


def fraction_of(config: Config) -> float:
    return config.scoring.interval


def stage_of(workload: workloads.Workload, *, precision: str = "float32", seed: int = 0) -> Stage:
    """The workload as this package computes it.

    Results: scoring (N, M); average (rows,); cae (N, M) and (N, G); grouping ``PointGroups``; snamd
    (S, h·w, C); maps (P,); backbone tokens; pipeline a ``Detection``.
    """
    return _MAKERS[type(workload)](workload, settings(workload, precision), precision, seed)


def _scoring(w: workloads.Scoring, config: Config, precision: str, seed: int) -> Stage:
    features = w.inputs(seed)["features"]
    config = dataclasses.replace(config, scoring=dataclasses.replace(config.scoring, refine=w.refine))
    return Stage(
        w.name, functools.partial(score_set, tile=tile_of(features, config), config=config), (features,)
    )


def tile_of(features: np.ndarray, config: Config) -> int:
    """Samples on each side of a distance block, as the pipeline chooses them for (N, M, C)."""
    given: Any = features[None]
    return pipeline.plan_of(Features(given, None), config)[1].tile


def distances(features: jax.Array, *, tile: int, config: Config) -> jax.Array:
    s = config.scoring
    return scoring.mutual_min_distances(
        features, tile=tile, precision=s.precision, implementation=s.implementation, refine=s.refine
    )


def score_set(features: jax.Array, *, tile: int, config: Config) -> jax.Array:
    found = distances(features, tile=tile, config=config)
    return scoring.interval_average(found, fraction_of(config))


def _averaging(w: workloads.Averaging, config: Config, precision: str, seed: int) -> Stage:
    del precision
    function = functools.partial(scoring.interval_average, fraction=fraction_of(config))
    return Stage(w.name, function, (w.inputs(seed)["distances"],))


def fusing_groups(pixel: np.ndarray) -> PointGroups:
    """Groups (N, G) of which nothing is known but their centres' pixels, which is all that CAE reads."""
    n, g = pixel.shape
    zeros = functools.partial(np.zeros, dtype=np.float32)
    given: Any = {
        "indices": np.zeros((n, g, 0), np.int32), "centers": zeros((n, g, 3)),
        "center_index": np.zeros((n, g), np.int32), "curvature": zeros((n, g)),
        "pixel": pixel, "valid": np.ones((n, g), bool),
    }  # fmt: skip
    return PointGroups(**given)


def _fusing(w: workloads.Fusing, config: Config, precision: str, seed: int) -> Stage:
    del precision
    given = w.inputs(seed)
    groups = fusing_groups(given["pixel"])
    size, plan = pipeline.plan_of(Features(given["image"][None], given["points"][None]), config)
    function = functools.partial(
        pipeline.score_stage,
        plan=plan,
        scoring_config=config.scoring,
        cae_config=config.cae,
        grid_hw=w.grid,
        map_hw=(w.map_side, w.map_side),
        fuse=cae.enhance,
        average=scoring.interval_average,
    )
    image, points = (pipeline.pad_samples(given[k], size) for k in ("image", "points"))
    padded = pipeline.pad_groups(groups, size)
    return Stage(w.name, function, (image, points, padded, np.int32(w.n)))


def _grouping(w: workloads.Grouping, config: Config, precision: str, seed: int) -> Stage:
    del precision
    function = functools.partial(ipg.group, config=config.ipg)
    return Stage(w.name, function, (w.inputs(seed)["cloud"],))


def pool_stages(tokens: jax.Array, *, config: Config) -> jax.Array:
    """(S, h, w, C) to (S, h·w, C)."""
    return jax.lax.map(lambda grid: snamd.pool_grid(grid, config.snamd)[0], tokens)


def _pooling(w: workloads.Pooling, config: Config, precision: str, seed: int) -> Stage:
    del precision
    return Stage(w.name, functools.partial(pool_stages, config=config), (w.inputs(seed)["tokens"],))


def pool_group_stages(tokens: jax.Array, groups: PointGroups, *, config: Config) -> jax.Array:
    """(S, G, C) to (S, G, C)."""
    pool = functools.partial(snamd.pool_groups, curvature_threshold=config.ipg.curvature_threshold)
    return jnp.stack([pool(stage, groups, config.snamd)[0] for stage in tokens])


def _group_pooling(w: workloads.GroupPooling, config: Config, precision: str, seed: int) -> Stage:
    del precision
    given = w.inputs(seed)
    return Stage(
        w.name, functools.partial(pool_group_stages, config=config), (given["tokens"], given["groups"])
    )


def _interpolating(w: workloads.Interpolating, config: Config, precision: str, seed: int) -> Stage:
    del precision
    given = w.inputs(seed)
    function = functools.partial(maps.interpolate_points, neighbours=config.maps.neighbours)
    masks = np.ones(w.centers, bool), np.ones(w.points, bool)
    return Stage(w.name, function, (given["scores"], given["centers"], masks[0], given["points"], masks[1]))


def run_backbone(backbone: Any, *data: Any) -> jax.Array:
    return backbone(*data)


def _image_network(w: workloads.ImageNetwork, config: Config, precision: str, seed: int) -> Stage:
    del config
    return Stage(w.name, run_backbone, (random_image_backbone(w, precision), w.inputs(seed)["images"]))


def _point_network(w: workloads.PointNetwork, config: Config, precision: str, seed: int) -> Stage:
    del config
    given = w.inputs(seed)
    return Stage(w.name, run_backbone, (random_point_backbone(w, precision), given["cloud"], given["groups"]))


def _pipeline(w: workloads.Pipeline, config: Config, precision: str, seed: int) -> Stage:
    given = w.inputs(seed)
    side = w.map_side if given["clouds"] is not None else None
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, map_size=side))
    keywords: dict[str, Any] = {"config": config}
    if w.image is not None:
        keywords["image_backbone"] = random_image_backbone(w.image, precision)
    if w.points is not None:
        keywords["point_backbone"] = random_point_backbone(w.points, precision)
    function = functools.partial(pipeline.detect, **keywords)
    return Stage(w.name, function, (given["images"], given["clouds"]), compiled=False)


_MAKERS: dict[type, Callable[..., Stage]] = {
    workloads.Scoring: _scoring,
    workloads.Averaging: _averaging,
    workloads.Fusing: _fusing,
    workloads.Grouping: _grouping,
    workloads.Pooling: _pooling,
    workloads.GroupPooling: _group_pooling,
    workloads.Interpolating: _interpolating,
    workloads.ImageNetwork: _image_network,
    workloads.PointNetwork: _point_network,
    workloads.Pipeline: _pipeline,
}
