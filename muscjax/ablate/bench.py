"""What the rows of one category share: its scans, backbone tokens on disk, and the last things computed.

Tokens are stored once per backbone and, for points, per grouping. Pooling, distances and enhancement are
functions of them and stay in memory as long as there is room.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import baseline, ipg, pairs, snamd, store
from muscjax.ablate.tables import Pooling
from muscjax.backbones import descriptors
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.extract import (
    CLOUD_BATCH,
    GROUP_FIELDS,
    Bound,
    batches_by_size,
    extract_images,
    extract_points,
    patch_grid,
    stack,
)
from muscjax.identity import backbone_identity, content_digest, digest
from muscjax.inputs import Inputs, Plan
from muscjax.outputs import plain
from muscjax.store import Field, Store, column
from muscjax.types import Array, Cloud, PointGroups

T = TypeVar("T")
_IMAGE_BATCH = 8


class Memory:
    """Results by key, the least recently used dropped beyond a number of bytes; never the newest."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gave for this key, made now where it is not held."""
        if key not in self._held:
            self._held[key] = make()
        self._held.move_to_end(key)
        while len(self._held) > 1 and sum(_nbytes(v) for v in self._held.values()) > self._budget:
            self._held.popitem(last=False)
        return self._held[key]


def _nbytes(value: Any) -> int:
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(value))


@dataclasses.dataclass(frozen=True)
class Bench:
    """One category; made by ``open_bench``."""

    inputs: Inputs
    plan: Plan
    config: Config  # what the variants change
    folder: Path  # of the stores
    memory: Memory
    observe: Observer
    image_samples: tuple[str, ...]  # content of each image, empty without images
    cloud_samples: tuple[str, ...]
    image_identity: Any  # of the backbones, None where they are not used
    point_identity: Any
    truth: str  # content of labels, masks and foregrounds

    @property
    def map_hw(self) -> tuple[int, int]:
        side = self.config.input.map_size
        assert side is not None
        return side, side

    @property
    def grid_hw(self) -> tuple[int, int] | None:
        """Of the image patches; None without images."""
        if self.inputs.images is None:
            return None
        shape = np.shape(self.inputs.images[0:1])[1:3]
        tokens = image_tokens(self, "MuSc-V2").fields["tokens"]
        return patch_grid(self.plan.image_backbone, tokens.shape[1], (shape[0], shape[1]))


def open_bench(inputs: Inputs, plan: Plan, folder: Path, observe: Observer) -> Bench:
    """The bench of one loaded category; ``folder`` is where stores are kept."""
    config = dataclasses.replace(inputs.config, run=dataclasses.replace(inputs.config.run, subsets=1))
    images, clouds = inputs.images, inputs.clouds
    return Bench(
        inputs=inputs,
        plan=plan,
        config=config,
        folder=folder,
        memory=Memory(config.run.memory_budget // 2),
        observe=observe,
        image_samples=()
        if images is None
        else tuple(content_digest(*np.asarray(images[i : i + 1])) for i in range(len(images))),
        cloud_samples=()
        if clouds is None
        else tuple(content_digest(*jax.tree.leaves(cloud)) for cloud in clouds),
        image_identity=None if images is None else backbone_identity(plan.image_backbone),
        point_identity=None if clouds is None else backbone_identity(plan.point_backbone),
        truth=content_digest(
            np.asarray([str(scan.label) for scan in inputs.dataset.scans]),
            *(item.mask for item in inputs.prepared),
            *(item.foreground for item in inputs.prepared),
        ),
    )


# -- images --------------------------------------------------------------------------------------------------


def image_backbone(bench: Bench, method: str) -> Any:
    """The backbone; for MuSc with its own taps, the last block of each quarter."""
    backbone = bench.plan.image_backbone
    spec = getattr(backbone, "spec", None)
    if method == "MuSc" and spec is not None:
        return dataclasses.replace(backbone, taps=baseline.quarters(spec.depth))  # pyright: ignore[reportArgumentType]
    return backbone


def image_tokens(bench: Bench, method: str) -> Store:
    """``tokens`` (S, M, C) of each image and, of a network, its class feature ``class`` (D,)."""
    return bench.memory.get(("image tokens", method), lambda: _fill_images(bench, method))


def _fill_images(bench: Bench, method: str) -> Store:
    images, backbone = bench.inputs.images, image_backbone(bench, method)
    assert images is not None
    classed = hasattr(backbone, "with_class_token")

    def run(batch: Array) -> tuple[Array, Array | None]:
        return tuple(backbone.with_class_token(batch)) if classed else (backbone(batch), None)

    first = np.asarray(images[0:1])
    tokens, token = jax.eval_shape(run, jax.ShapeDtypeStruct(first.shape, first.dtype))
    fields = {"tokens": Field((tokens.shape[0], *tokens.shape[2:]))}
    if token is not None:
        fields["class"] = Field(token.shape[1:])
    identity = ["image tokens", backbone_identity(backbone), store.package_version()]
    opened = _open(bench, identity, bench.image_samples, fields)
    compiled = jax.jit(run)
    for ids in store.missing(opened):
        found = []
        for start in range(ids.start, ids.stop, _IMAGE_BATCH):
            chunk = np.asarray(images[start : min(start + _IMAGE_BATCH, ids.stop)])
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], _IMAGE_BATCH - len(chunk), axis=0)])
            tokens, token = jax.device_get(compiled(padded))
            arrays = {"tokens": np.moveaxis(tokens, 0, 1), **({} if token is None else {"class": token})}
            found.append({name: values[: len(chunk)] for name, values in arrays.items()})
            bench.observe("image tokens", start + len(chunk), len(images))
        store.write(opened, ids, {name: np.concatenate([f[name] for f in found]) for name in fields})
    return opened


def _open(bench: Bench, identity: Any, samples: tuple[str, ...], fields: dict[str, Field]) -> Store:
    name = digest([identity, samples])[:32]
    return store.open_store(bench.folder / name, {"of": identity}, samples, fields)


def class_features(bench: Bench) -> np.ndarray | None:
    """(N, D) for RsCIN: the class token, of unit norm where the network projects it; None of a descriptor."""
    opened = image_tokens(bench, "MuSc")
    if "class" not in opened.fields:
        return None
    found = column(opened, "class")[:]
    if getattr(getattr(bench.plan.image_backbone, "spec", None), "projection", 0):
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found


def stored_tokens(rows: Array) -> Array:
    """(B, S, M, C) as a store holds them to (S, B, M, C) as a backbone gives them."""
    return jnp.moveaxis(rows, 1, 0)


# A distance of 0 must weigh something: the centre of a window of one would be divided by 0.
_LEAST = 1e-6
_WEIGHTS: dict[str, snamd.Weight] = {
    "exp": snamd.exp_similarity,
    "uniform": snamd.uniform_weight,
    "distance": lambda distance: distance + jnp.float32(_LEAST),
}


@functools.cache  # so that the same pooling is the same function to jit
def pool_functions(pooling: Pooling) -> tuple[Callable, Callable]:
    """``snamd.pool_grid`` and ``snamd.pool_groups`` as the row has them."""
    settings: dict[str, Any] = {"weight": _WEIGHTS[pooling.weight]}
    if pooling.apart:
        settings["combine"] = snamd.separate_degrees
    return functools.partial(snamd.pool_grid, **settings), functools.partial(snamd.pool_groups, **settings)


class Part(NamedTuple):
    """Pooled features of one modality."""

    key: str  # of everything that they depend on
    features: np.ndarray  # (S, N, M, C)
    levels: int
    groups: PointGroups | None = None


def image_part(bench: Bench, config: Config, pooling: Pooling, method: str) -> Part:
    """Pooled image features of all scans."""
    opened = image_tokens(bench, method)
    key = digest([opened.folder.name, plain(config.snamd), plain(pooling), method])

    def make() -> Part:
        pool = baseline.pool_grid if method == "MuSc" else pool_functions(pooling)[0]
        found, levels = extract_images(
            column(opened, "tokens"),  # pyright: ignore[reportArgumentType] (sliced like a sequence)
            stored_tokens,
            config,
            grid_hw=bench.grid_hw,
            pool=pool,
            progress=bench.observe,
        )
        return Part(key, found, levels)

    return bench.memory.get(("image part", key), make)


# -- points --------------------------------------------------------------------------------------------------


def point_tokens(bench: Bench, config: Config) -> Store:
    """``tokens`` (S, G, C) of each cloud with its groups, which are stored without their members."""
    key = ("point tokens", config.ipg)
    return bench.memory.get(key, lambda: _fill_points(bench, config))


def _fill_points(bench: Bench, config: Config) -> Store:
    clouds, backbone = bench.inputs.clouds, bench.plan.point_backbone
    assert clouds is not None
    assert backbone is not None
    groups = jax.eval_shape(functools.partial(ipg.group, config=config.ipg), clouds[0])
    tokens = jax.eval_shape(backbone, clouds[0], groups)
    fields = {"tokens": Field(tokens.shape)}
    for name in GROUP_FIELDS:
        leaf = getattr(groups, name)
        fields[name] = Field(leaf.shape, str(leaf.dtype))  # pyright: ignore[reportArgumentType]
    identity = ["point tokens", backbone_identity(backbone), plain(config.ipg), store.package_version()]
    opened = _open(bench, identity, bench.cloud_samples, fields)
    missing = store.missing(opened)
    if not missing:
        return opened
    items: Sequence[Any] = clouds
    describe: Any = backbone
    group: Callable = ipg.group
    if isinstance(backbone, Bound) and backbone.function is descriptors.fpfh:
        # The descriptor of a point does not depend on the grouping; only its average over a group does.
        fpfh = backbone.config
        per_point = bench.memory.get("per point", lambda: _per_point(bench, clouds, fpfh))
        items, describe, group = list(zip(per_point, clouds, strict=True)), _group_means, _group_second
    for ids in missing:
        found, _, groups = extract_points(
            [items[i] for i in ids], describe, config, group=group, pool=_as_they_are, progress=bench.observe
        )
        arrays = {name: getattr(groups, name) for name in GROUP_FIELDS}
        store.write(opened, ids, {"tokens": np.moveaxis(found, 0, 1), **arrays})
    return opened


def _per_point(bench: Bench, clouds: Sequence[Cloud], config: Any) -> list[np.ndarray]:
    @jax.jit
    def describe(batch: Cloud) -> Array:
        return jax.lax.map(lambda cloud: descriptors.cloud_fpfh(cloud, config), batch)

    out: list[Any] = [None] * len(clouds)
    done = 0
    for ids in batches_by_size(clouds, CLOUD_BATCH):
        padded = ids + ids[-1:] * (CLOUD_BATCH - len(ids))
        for i, values in zip(ids, np.asarray(describe(stack([clouds[i] for i in padded]))), strict=False):
            out[i] = values
        done += len(ids)
        bench.observe("point descriptors", done, len(clouds))
    return out


def _group_second(item: tuple[Array, Cloud], config: Any) -> PointGroups:
    return ipg.group(item[1], config)


def _group_means(item: tuple[Array, Cloud], groups: PointGroups) -> Array:
    return descriptors.group_means(item[0], groups.indices)


def _as_they_are(tokens: Array, groups: Any, config: Any, *, curvature_threshold: Any) -> Array:
    del groups, config, curvature_threshold
    return tokens[None]


def _first(item: tuple[Array, PointGroups], groups: PointGroups) -> Array:
    del groups
    return item[0]


def _second(item: tuple[Array, PointGroups], config: Any) -> PointGroups:
    del config
    return item[1]


def point_part(bench: Bench, config: Config, pooling: Pooling) -> Part:
    """Pooled point features of all scans with their groups."""
    opened = point_tokens(bench, config)
    key = digest([opened.folder.name, plain(config.snamd), plain(pooling), config.ipg.curvature_threshold])

    def make() -> Part:
        tokens = column(opened, "tokens")
        kept: dict[str, Any] = {name: column(opened, name)[:] for name in GROUP_FIELDS}
        members: Any = np.zeros((*kept["valid"].shape, 0), np.int32)
        groups = PointGroups(indices=members, **kept)
        items: list[Any] = [
            (tokens[i], jax.tree.map(lambda leaf, i=i: leaf[i], groups)) for i in range(len(tokens))
        ]
        pool = pool_functions(pooling)[1]
        stored: Any = _first
        found, levels, _ = extract_points(
            items, stored, config, group=_second, pool=pool, progress=bench.observe
        )
        return Part(key, found, levels, groups)

    return bench.memory.get(("point part", key), make)


def distances(bench: Bench, part: Part, config: Config) -> np.ndarray:
    """(S, N, M, N) of one modality's features."""
    kernel = (config.scoring.precision, config.scoring.implementation, config.scoring.refine)
    valid = None if part.groups is None else part.groups.valid
    return bench.memory.get(
        ("distances", part.key, kernel),
        lambda: pairs.measure(part.features, config, valid=valid, progress=bench.observe),  # pyright: ignore[reportArgumentType]
    )
