"""From scans to pooled features: the backbones and SNAMD over batches, on the host in between."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import ipg, snamd
from muscjax.batching import each
from muscjax.config import Config
from muscjax.errors import InputError
from muscjax.types import Array, Cloud, PointGroups

Progress = Callable[[str, int, int], None]  # stage, done, total

CLOUD_BATCH = 4
GROUP_FIELDS = ("centers", "center_index", "curvature", "pixel", "valid")  # what is kept: not the members
SAMPLE_BUCKET = 8  # the smallest padded number of samples
_NORMALISED = 16.0  # no picture that was normalised for a network reaches it; one of 8 or 16 bits does


@dataclasses.dataclass(frozen=True)
class Bound:
    """A descriptor and its configuration as one callable.

    Two of them are equal where function and configuration are, so a second set of scans finds the programs
    of the first; a ``functools.partial`` made anew would compile anew.
    """

    function: Callable[..., Array]
    config: Any

    def __call__(self, *data: Any) -> Array:
        return self.function(*data, config=self.config)


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that says nothing."""
    del stage, done, total


class Sink(Protocol):
    """Where features of one modality go as they come off the device."""

    @property
    def missing(self) -> Sequence[Sequence[int]]:
        """Samples that are to be computed, in parts of whole batches."""
        ...

    def put(self, ids: Sequence[int], features: np.ndarray, groups: dict[str, np.ndarray]) -> None:
        """(S, B, M, C) of the samples ``ids``, and their groups' fields (B, ...)."""
        ...

    def close(self) -> tuple[Any, dict[str, Any]]:
        """The features of all samples, (S, N, M, C), and their groups' fields (N, ...)."""
        ...


# (kind, (S, M, C), shapes and types of the groups' fields by name, samples by batches, size of a batch)
Keep = Callable[[str, tuple[int, ...], dict[str, Any], Sequence[int], int], Sink]


class Held:
    """The ``Sink`` in memory: everything is missing, and nothing of it outlives the process."""

    def __init__(
        self, kind: str, shape: tuple[int, ...], groups: dict[str, Any], order: Sequence[int], batch: int
    ) -> None:
        del kind, batch
        self.missing: Sequence[Sequence[int]] = [order]
        self._features = np.empty((shape[0], len(order), *shape[1:]), np.float32)
        self._groups = {name: np.empty((len(order), *f.shape), f.dtype) for name, f in groups.items()}

    def put(self, ids: Sequence[int], features: np.ndarray, groups: dict[str, np.ndarray]) -> None:
        self._features[:, ids] = features
        for name, values in groups.items():
            self._groups[name][ids] = values

    def close(self) -> tuple[Any, dict[str, Any]]:
        return self._features, self._groups


def _traceable(backbone: Any) -> Any:
    """A callable that jit takes as an argument: parameters stay arguments, a plain function is static."""
    leaves = jax.tree.leaves(backbone)
    if leaves and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
        return backbone
    return jax.tree_util.Partial(backbone)


@functools.partial(jax.jit, static_argnames=("config", "grid_hw", "pool"))
def _image_batch(
    backbone: Any, images: Array, *, config: Any, grid_hw: tuple[int, int], pool: Callable
) -> Array:
    tokens = backbone(images)  # (S, B, M, C)
    batch, m, c = tokens.shape[1:]
    pooled = each(lambda grid: pool(grid, config), tokens.reshape(-1, *grid_hw, c))
    pooled = pooled.reshape(-1, batch, *pooled.shape[1:])
    return jnp.moveaxis(pooled, 2, 1).reshape(-1, batch, m, c)  # levels of a stage become stages


@functools.partial(jax.jit, static_argnames=("config", "group", "pool"))
def _cloud_batch(backbone: Any, clouds: Cloud, *, config: Any, group: Callable, pool: Callable):
    def one(cloud: Cloud) -> tuple[Array, PointGroups]:
        groups = group(cloud, config[0])
        tokens = backbone(cloud, groups)  # (S, G, C)
        pooled = [pool(stage, groups, config[1], curvature_threshold=config[2]) for stage in tokens]
        return jnp.stack(pooled), groups  # (S, levels, G, C)

    return each(one, clouds)


def grid_of(m: int, image_hw: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) patch grid of ``m`` patches over an image of that shape.

    Raises:
        InputError: no grid of that many roughly square patches covers the image.
    """
    pairs = [(h, m // h) for h in range(1, m + 1) if m % h == 0]
    # How oblong a patch would be: the logarithm of its sides' ratio.
    oblong = [abs(math.log(image_hw[0] * w / (image_hw[1] * h))) for h, w in pairs]
    if min(oblong) > math.log(1.5):
        raise InputError(f"{m} patches form no grid over an image of {image_hw[0]}×{image_hw[1]}")
    return pairs[int(np.argmin(oblong))]


def patch_grid(backbone: Any, m: int, image_hw: tuple[int, int]) -> tuple[int, int]:
    """What the backbone itself calls its grid over such an image, where it does; else ``grid_of``."""
    own = getattr(backbone, "patch_grid", None)
    return grid_of(m, image_hw) if own is None else own(image_hw)


def extract_images(
    images: Sequence[Any] | Array,
    backbone: Callable[[Array], Array],
    config: Config,
    *,
    grid_hw: tuple[int, int] | None = None,
    pool: Callable = snamd.pool_grid,
    keep: Keep = Held,
    progress: Progress = silent,
) -> tuple[Any, int]:
    """Pooled image features of all samples.

    Args:
        images: (N, H, W, 3) uint8 or float32 in [0, 1]; or anything with a length whose slices are such
            arrays, read one batch at a time.
        backbone: (B, H, W, 3) -> (S, B, M, C); a function, or a pytree that is callable.
        grid_hw: the grid of the M patches; None: ``patch_grid`` of the image's shape.
        pool: the stage that ``snamd.pool_grid`` is.
        keep: makes the ``Sink`` that the features go to; only what it misses is computed.

    Returns:
        (S, N, M, C) float32 on the host, or what the sink gives for it, and the levels per stage: every level
        is a stage of its own.
    """
    total, first = len(images), np.asarray(images[0:1])
    _check_picture("images[0]", first[0])
    one = jax.ShapeDtypeStruct((1, *first.shape[1:]), first.dtype)
    stages, _, m, _ = jax.eval_shape(backbone, one).shape
    grid_hw = grid_hw or patch_grid(backbone, m, (first.shape[1], first.shape[2]))
    backbone = _traceable(backbone)
    run = functools.partial(_image_batch, backbone, config=config.snamd, grid_hw=grid_hw, pool=pool)
    shape = jax.eval_shape(run, one).shape
    levels = shape[0] // stages
    # A transformer block holds about four token-sized activations and the attention matrix; sixteen times
    # the tapped output bounds it from above for the networks of the paper.
    batch = int(np.clip(config.run.memory_budget // (64 * int(np.prod(shape))), 1, min(8, total)))
    sink = keep("image", (shape[0], *shape[2:]), {}, range(total), batch)
    done = total - sum(map(len, sink.missing))
    pending: tuple[list[int], Array] | None = None

    def store() -> None:
        nonlocal done
        if pending is None:
            return
        ids, result = pending
        part = np.asarray(result)[:, : len(ids)]
        _check_finite("image", part, ids)
        sink.put(ids, part, {})
        done += len(ids)
        progress("image features", done, total)

    for samples in sink.missing:
        for ids in (list(samples[k : k + batch]) for k in range(0, len(samples), batch)):
            chunk = np.asarray(images[ids[0] : ids[-1] + 1])
            for i, image in zip(ids, chunk, strict=True):
                _check_picture(f"images[{i}]", image)
            result = run(np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)]))
            store()  # the device works on this batch while the previous one is stored
            pending = (ids, result)
    store()
    return sink.close()[0], levels


def _check_numbers(name: str, *arrays: Any) -> None:
    """A backbone may turn a NaN into a number, which would be believed."""
    for array in map(np.asarray, arrays):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{name}: found NaN or infinity, expected numbers")


def _check_picture(name: str, image: Any) -> None:
    """A picture of another range would be believed too: 16 bits, or floats up to 255.

    Floats may be normalised already, and have other channels, for a backbone that wants that.
    """
    image = np.asarray(image)
    kind, shape = image.dtype, image.shape
    if len(shape) != 3 or not (kind == np.uint8 or kind.kind == "f"):
        raise InputError(f"{name}: found {shape} {kind}, expected (H, W, 3) uint8, or floats in [0, 1]")
    _check_numbers(name, image)
    highest = np.abs(image).max(initial=0)
    if kind.kind == "f" and highest > _NORMALISED:
        raise InputError(f"{name}: found floats up to {highest:g}, expected [0, 1], or uint8")


def _check_finite(kind: str, features: np.ndarray, ids: Sequence[int]) -> None:
    """(S, B, M, C) of the samples ``ids``: a NaN would be nobody's neighbour and look normal."""
    finite = np.isfinite(features).all(axis=(0, 2, 3))
    if not finite.all():
        raise InputError(f"{kind} features of scan {ids[int(np.argmin(finite))]} are not finite")


def extract_points(
    clouds: Sequence[Cloud],
    backbone: Callable[[Cloud, PointGroups], Array],
    config: Config,
    *,
    group: Callable = ipg.group,
    pool: Callable = snamd.pool_groups,
    keep: Keep = Held,
    progress: Progress = silent,
) -> tuple[Any, int, PointGroups]:
    """Groups and pooled point features of all samples.

    Args:
        clouds: N clouds, each padded to its own bucket.
        backbone: (cloud, groups) -> (S, G, C) for one cloud.
        group, pool: the stages that ``ipg.group`` and ``snamd.pool_groups`` are.
        keep: as in ``extract_images``; of the groups all but their members is kept.

    Returns:
        (S, N, G, C) float32 on the host, or what the sink gives for it, the levels per stage, and the groups
        with a leading axis N. Their members come along where everything is computed and held in memory.
    """
    backbone, total = _traceable(backbone), len(clouds)
    settings = (config.ipg, config.snamd, config.ipg.curvature_threshold)
    run = functools.partial(_cloud_batch, backbone, config=settings, group=group, pool=pool)
    batches = batches_by_size(clouds, CLOUD_BATCH)

    def padded(ids: Sequence[int]) -> Any:
        return stack([clouds[i] for i in (*ids, *[ids[-1]] * (CLOUD_BATCH - len(ids)))])

    features, found = jax.eval_shape(run, padded(batches[0]))
    levels = features.shape[2]
    names = [f.name for f in dataclasses.fields(PointGroups)] if keep is Held else GROUP_FIELDS
    about = {
        name: jax.ShapeDtypeStruct(getattr(found, name).shape[1:], getattr(found, name).dtype)
        for name in names
    }
    shape = (features.shape[1] * levels, *features.shape[3:])
    sink = keep("points", shape, about, [i for ids in batches for i in ids], CLOUD_BATCH)
    done = total - sum(map(len, sink.missing))
    for samples in sink.missing:
        # A cloud is described alone: how clouds are put into batches changes nothing.
        for places in batches_by_size([clouds[i] for i in samples], CLOUD_BATCH):
            ids = [samples[p] for p in places]
            made, groups = jax.device_get(run(padded(ids)))
            made = np.moveaxis(made.reshape(CLOUD_BATCH, -1, *made.shape[3:]), 0, 1)[:, : len(ids)]
            _check_finite("point", made, ids)
            sink.put(ids, made, {name: getattr(groups, name)[: len(ids)] for name in names})
            done += len(ids)
            progress("point features", done, total)
    kept, fields = sink.close()
    fields.setdefault("indices", np.zeros((total, *about["valid"].shape, 0), np.int32))
    return kept, levels, PointGroups(**fields)


def stack(items: Sequence[Any]) -> Any:
    """Pytrees of equal shape joined along a new leading axis, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def batches_by_size(clouds: Sequence[Cloud], batch: int) -> list[list[int]]:
    """Sample numbers in batches whose clouds have the same padded shapes."""
    shapes: dict[Any, list[int]] = {}
    for i, cloud in enumerate(clouds):
        shapes.setdefault(tuple(leaf.shape for leaf in jax.tree.leaves(cloud)), []).append(i)
    return [ids[k : k + batch] for ids in shapes.values() for k in range(0, len(ids), batch)]


def pad_samples(array: Any, size: int) -> Any:
    """Zeros (False) up to ``size`` samples along the first axis."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def check_scans(images: Any, clouds: Any, image_backbone: Any, point_backbone: Any, fewest: int) -> None:
    """InputError unless there are ``fewest`` scans or more, of each modality as many, with its backbone."""
    if images is None and clouds is None:
        raise InputError("detect: found neither images nor clouds")
    for name, data, backbone in (
        ("image", images, image_backbone), ("point", clouds, point_backbone)
    ):  # fmt: skip
        if data is not None and backbone is None:
            raise InputError(f"detect: {name} data needs {name}_backbone")
        if data is not None and len(data) < fewest:
            raise InputError(f"mutual scoring needs at least two scans, found {len(data)}")
    if images is not None and clouds is not None and len(images) != len(clouds):
        raise InputError(f"detect: found {len(images)} images and {len(clouds)} clouds, expected as many")


def map_size_of(images: Any, clouds: Any, config: Config) -> tuple[int, int]:
    """The working size that pixels of clouds count in; InputError where it is unknown or does not fit."""
    side = config.input.map_size
    if clouds is None:
        if side is not None:
            return side, side
        h, w = np.shape(images[0:1])[1:3]
        return h, w
    if not isinstance(clouds[0], Cloud):
        shapes = [np.shape(xyz) for xyz in clouds]
        for i, found in enumerate(shapes):
            if found != shapes[0] or len(found) != 3:
                raise InputError(
                    f"clouds[{i}]: found shape {found}, expected {shapes[0][:2]} × 3 as clouds[0]"
                )
            _check_numbers(f"clouds[{i}]", clouds[i])
        return shapes[0][0], shapes[0][1]
    if side is None:
        raise InputError("detect: Cloud objects need config.input.map_size, the side of their pixels' grid")
    for i, cloud in enumerate(clouds):
        highest = int(np.max(np.asarray(cloud.pixel), initial=0))
        if highest >= side * side:
            raise InputError(f"clouds[{i}]: found pixel {highest}, expected less than {side}·{side}")
        _check_numbers(f"clouds[{i}]", cloud.points_m, cloud.points)
    return side, side
