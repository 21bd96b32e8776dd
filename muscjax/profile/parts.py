"""The stages of which a workload is made, each to be measured by itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import cae, geometry, ipg, maps, rscon, scoring, workloads
from muscjax.backbones import layers, point_mae, vit
from muscjax.config import Config
from muscjax.profile.stages import (
    LEVELS,
    Stage,
    distances,
    fraction_of,
    network_options,
    random_image_backbone,
    random_point_backbone,
    settings,
    stage_of,
    tile_of,
)


def parts_of(workload: workloads.Workload, *, precision: str = "float32", seed: int = 0) -> Iterator[Stage]:
    """The stages that a workload is made of, each with how often the whole runs it."""
    config = settings(workload, precision)
    if isinstance(workload, workloads.Scoring):
        yield from _scoring_parts(workload.inputs(seed)["features"], config, "", 1)
    elif isinstance(workload, workloads.Fusing):
        yield from _fusing_parts(workload, config, seed, 1)
    elif isinstance(workload, workloads.Grouping):
        yield from _grouping_parts(workload.inputs(seed)["cloud"], config, 1)
    elif isinstance(workload, workloads.ImageNetwork):
        yield from _vit_parts(workload, precision, seed)
    elif isinstance(workload, workloads.PointNetwork):
        yield from _point_mae_parts(workload, precision, seed)
    elif isinstance(workload, workloads.Pipeline):
        yield from _pipeline_parts(workload, config, precision, seed)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compiled under another identity, so that the compile time measured later is not one from a cache."""
    return jax.jit(lambda *given: function(*given))(*arguments)


def _scoring_parts(features: np.ndarray, config: Config, which: str, times: int) -> Iterator[Stage]:
    measure = functools.partial(distances, tile=tile_of(features, config), config=config)
    average = functools.partial(scoring.interval_average, fraction=fraction_of(config))
    rows = np.asarray(_run(measure, features))
    yield Stage(f"distances{which}", measure, (features,), times)
    yield Stage(f"interval average{which}", average, (rows,), times)


def _fusing_parts(w: workloads.Fusing, config: Config, seed: int, times: int) -> Iterator[Stage]:
    given = w.inputs(seed)
    rows = []
    for which in ("image", "points"):
        parts = list(_scoring_parts(given[which], config, f", {which}", times))
        rows.append(parts[1].arguments[0])
        yield from parts
    shape = (w.map_side, w.map_side), w.grid
    patch = np.asarray(maps.patch_of_pixel(given["pixel"], *shape))
    others = ~np.eye(w.n, dtype=bool)
    everywhere = jnp.ones(w.groups, bool)

    def enhance(image, points, patch, ref_valid):
        one = lambda s: cae.enhance(s[0], s[1], s[2], everywhere, s[3], config.cae)  # noqa: E731
        return jax.lax.map(one, (image, points, patch, ref_valid))

    yield Stage("enhancement", enhance, (*rows, patch, others), times)


def _grouping_parts(cloud: Any, config: Config, times: int) -> Iterator[Stage]:
    c = config.ipg
    sample = functools.partial(geometry.farthest_points, count=c.groups, skip_origin=c.skip_origin)
    index, valid = map(np.asarray, _run(sample, cloud.points, cloud.valid))
    yield Stage("farthest points", sample, (cloud.points, cloud.valid), times)

    def near(centers, points, valid, query_valid):
        return geometry.nearest(centers, points, valid, 2 * c.group_size, query_valid=query_valid)

    arguments = (cloud.points[index], cloud.points, cloud.valid, valid)
    found, apart = map(np.asarray, _run(near, *arguments))
    yield Stage("neighbours", near, arguments, times)

    def bend(points, centers, index, distance):
        return jax.vmap(functools.partial(ipg.curvature, points))(centers, index, distance)

    first = found[:, : c.group_size], apart[:, : c.group_size]
    yield Stage("curvature", bend, (cloud.points, arguments[0], *first), times)
    if c.initial_size < c.group_size:
        sizes = {"group_size": c.group_size, "initial_size": c.initial_size}
        grow = functools.partial(ipg.expand_released, **sizes)
        yield Stage("expansion", grow, (cloud.points, cloud.valid, found, apart), times)


def _block_parts(
    spec: Any, backbone: Any, tokens: int, batch: int, precision: str, **more: Any
) -> Iterator[Stage]:
    """A transformer block, and the attention inside it."""
    rng = np.random.default_rng(0)
    options = network_options(precision)
    last = max(backbone.taps) + 1
    hidden = round(spec.width * spec.mlp_ratio)
    block = layers.Block(spec.heads, hidden, spec.eps, **options, **more)
    x = jnp.asarray(rng.standard_normal((batch, tokens, spec.width), np.float32), options["dtype"])

    def run(params, x):
        return block.apply({"params": params}, x)

    yield Stage("block", run, (backbone.params["block_0"], x), last)
    heads = x.reshape(batch, tokens, spec.heads, spec.width // spec.heads)

    def attend(q, k, v):
        with (
            jax.default_matmul_precision(LEVELS[precision].name.lower()),
            jax.numpy_dtype_promotion("standard"),
        ):
            return jax.nn.dot_product_attention(q, k, v, implementation=backbone.implementation)

    yield Stage("attention", attend, (heads, heads, heads), last, inside="block")


def _vit_parts(w: workloads.ImageNetwork, precision: str, seed: int) -> Iterator[Stage]:
    backbone = random_image_backbone(w, precision)
    spec: Any = backbone.spec
    images = w.inputs(seed)["images"]

    def embed(kernel, images):
        p, (h, width) = spec.patch_size, w.grid
        x = vit.normalise(images, spec=spec).astype(backbone.dtype)
        x = x.reshape(len(x), h, p, width, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), h * width, -1)
        return jnp.dot(x, kernel.astype(backbone.dtype), precision=backbone.precision)

    yield Stage("embedding", embed, (backbone.params["patch"]["kernel"], images))
    tokens = w.grid[0] * w.grid[1] + 1 + spec.registers
    more = {"activation": spec.activation, "layer_scale": spec.layer_scale}
    yield from _block_parts(spec, backbone, tokens, w.batch, precision, **more)


def _point_mae_parts(w: workloads.PointNetwork, precision: str, seed: int) -> Iterator[Stage]:
    backbone = random_point_backbone(w, precision)
    spec: Any = backbone.spec
    given = w.inputs(seed)
    groups, points = given["groups"], np.asarray(given["cloud"].points)
    options = network_options(precision)
    encoder = point_mae.GroupEncoder(spec.width, spec.eps, "running", **options)

    def encode(params, neighbourhood, valid):
        return encoder.apply({"params": params}, neighbourhood, valid)

    neighbourhood = points[groups.indices] - groups.centers[:, None]
    yield Stage("group encoder", encode, (backbone.params["encoder"], neighbourhood, groups.valid))
    yield from _block_parts(spec, backbone, w.groups, 1, precision, qkv_bias=False)


def _pipeline_parts(w: workloads.Pipeline, config: Config, precision: str, seed: int) -> Iterator[Stage]:
    n, side = w.n, w.map_side
    stages = len((w.image or w.points).taps)  # type: ignore[union-attr]
    if w.image is not None:
        yield dataclasses.replace(
            stage_of(w.image, precision=precision, seed=seed), name="image network", times=n // w.image.batch
        )
        channels = w.image.width
        pooling = workloads.Pooling(name="", grid=w.image.grid, channels=channels, stages=stages)
        yield dataclasses.replace(stage_of(pooling, seed=seed), name="image pooling", times=n)
    if w.points is not None:
        p = w.points
        cloud = workloads.cloud(p.points, p.side, seed=seed)
        yield from _grouping_parts(cloud, config, n)
        yield dataclasses.replace(stage_of(p, precision=precision, seed=seed), name="point network", times=n)
        pooling = workloads.GroupPooling(
            name="", points=p.points, groups=p.groups, channels=p.width, stages=stages, side=p.side
        )
        yield dataclasses.replace(stage_of(pooling, seed=seed), name="point pooling", times=n)
    if w.image is not None and w.points is not None:
        both = workloads.Fusing(
            name="", n=n, grid=w.image.grid, channels=w.image.width, groups=w.points.groups,
            point_channels=w.points.width, map_side=side,
        )  # fmt: skip
        yield from _fusing_parts(both, config, seed, stages)
    elif w.image is not None:
        features = workloads.features(n, w.image.grid[0] * w.image.grid[1], w.image.width, seed=seed)
        yield from _scoring_parts(features, config, ", image", stages)
    elif w.points is not None:
        features = workloads.features(n, w.points.groups, w.points.width, seed=seed)
        yield from _scoring_parts(features, config, ", points", stages)
    yield from _map_parts(w, config, seed)


def _map_parts(w: workloads.Pipeline, config: Config, seed: int) -> Iterator[Stage]:
    rng = np.random.default_rng(seed)
    hw = (w.map_side, w.map_side)
    width = 0
    if w.image is not None:
        width += w.image.width
        grid = rng.random(w.image.grid, np.float32)
        yield Stage("upsampling", functools.partial(maps.upsample_grid, hw=hw), (grid,), w.n)
    if w.points is not None:
        width += w.points.width
        spread = workloads.Interpolating(
            name="", points=w.points.points, centers=w.points.groups, side=w.map_side
        )
        yield dataclasses.replace(stage_of(spread, seed=seed), name="interpolation", times=w.n)
        blur = functools.partial(maps.blur, form=config.maps.blur)
        yield Stage("blur", blur, (rng.random(hw, np.float32),), w.n)
    scores, salient = rng.random(w.n, np.float32), rng.standard_normal((w.n, width), np.float32)
    yield Stage(
        "re-scoring", functools.partial(rscon.rescore, windows=config.rscon.windows), (scores, salient)
    )
