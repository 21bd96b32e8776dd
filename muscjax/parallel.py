"""Mutual scoring over a device mesh: each device keeps its samples, the others' blocks come round a ring.

Tiles of samples are dealt like cards: device d of D has the tiles d, d + D, d + 2D, ..., so that the padding
at the end of a set is spread over all devices and the work is even whatever the count. The tiles are those of
one device, and so is the rounding.

``symmetric``: every unordered pair of samples is computed once over the whole mesh. Device d meets the blocks
of d + 1, ..., d + D // 2; the column minima go back to the block's owner. Where D is even, the block at the
distance of D / 2 is met by both partners, and each computes half of it. ``rows``: a device needs all D - 1
blocks for every ``plan.block`` of its own samples, computes twice the products, and keeps no more rows
than it hands on.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from muscjax import ring, scoring
from muscjax.distances import Plan, Samples

AXIS = "devices"


def mesh_of(devices: Sequence[Any]) -> Mesh | None:
    """A ring of these devices; None for a single one, which needs no mesh."""
    return Mesh(np.asarray(devices), (AXIS,)) if len(devices) > 1 else None


def plan(
    n: int,
    patches: tuple[int, ...],
    *,
    devices: int,
    memory_budget: int,
    tile_bytes: int = scoring.TILE_BYTES,
) -> Plan:
    """``scoring.plan`` for a mesh: ``memory_budget`` is that of one device, which keeps n / D samples' rows.

    Raises:
        ValueError: not even the rows of one sample fit.
    """
    limits = {"memory_budget": memory_budget, "tile_bytes": tile_bytes}
    own = -(-n // devices)
    whole = scoring.plan(n, patches, **limits)
    # Two tiles at least: where D is even, the last block is shared. A set of one tile is walked pair by pair.
    half = -(-own // 2) if whole.tile < n else 1
    if 4 * n * own * sum(patches) <= memory_budget // 2:
        tile = min(half, scoring.plan(own, patches, **limits).tile)
        return Plan("symmetric", min(whole.block, own), tile)
    tile = min(half, whole.tile)
    return Plan("rows", max(whole.block // tile, 1) * tile, tile)


def padded_size(n: int, devices: int, plan: Plan) -> int:
    """The number of samples that ``deal`` takes: whole tiles, as many on every device."""
    return -(-n // (devices * plan.tile)) * devices * plan.tile


def plan_over(
    mesh: Mesh, n: int, shapes: Sequence[tuple[int, int]], *, memory_budget: int
) -> tuple[int, Plan] | None:
    """``padded_size`` and ``plan`` for features of (M, C) per modality; None where a device is too small."""
    budget = device_budget(memory_budget, mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    patches, channels = zip(*shapes, strict=True)
    try:
        chosen = plan(
            n,
            patches,
            devices=mesh.size,
            memory_budget=budget,
            tile_bytes=scoring.TILE_BYTES if on_cpu else budget // 16,
        )
    except ValueError:
        return None
    size = padded_size(n, mesh.size, chosen)
    fits = cost(size, patches, channels, mesh.size, chosen).feature_bytes <= budget
    return (size, chosen) if fits else None


def device_budget(memory_budget: int, mesh: Mesh) -> int:
    """What one device may use: all of it, but CPU devices of one process share its memory."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return memory_budget // len(local) if local[0].platform == "cpu" else memory_budget


def sharding(mesh: Mesh) -> NamedSharding:
    """Of dealt arrays."""
    return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))


def deal(array: Any, mesh: Mesh, plan: Plan) -> Array:
    """(N, ...) on the host to (T, D, tile, ...) on the mesh, each device with its own samples only.

    N must be a ``padded_size``; T is the number of tiles of a device.
    """
    dealt = np.reshape(array, (-1, mesh.size, plan.tile, *array.shape[1:]))
    return jax.make_array_from_callback(dealt.shape, sharding(mesh), lambda index: dealt[index])


def deal_own(rows: Any, ids: np.ndarray, size: int, mesh: Mesh, plan: Plan) -> Array:
    """``deal`` where each process has the rows of its devices' samples only: (L, ...), which ``ids`` names.

    Args:
        size: of the whole set, a ``padded_size``. What no process has is 0.
    """
    shape = (size // (mesh.size * plan.tile), mesh.size, plan.tile, *rows.shape[1:])
    at = np.full(size, -1)
    at[ids] = np.arange(len(ids))

    def part(index: Any) -> np.ndarray:
        place = at[_numbers(shape, index)]
        there = np.zeros((*place.shape, *rows.shape[1:]), rows.dtype)
        there[place >= 0] = rows[place[place >= 0]]
        return there

    return jax.make_array_from_callback(shape, sharding(mesh), part)


def collect_own(dealt: Array, ids: np.ndarray) -> np.ndarray:
    """(T, D, tile, ...) to the rows (L, ...) of the samples ``ids``, which are this process's own."""
    size = int(np.prod(dealt.shape[:3]))
    at = np.full(size, -1)
    at[ids] = np.arange(len(ids))
    rows = np.zeros((len(ids), *dealt.shape[3:]), dealt.dtype)
    for shard in dealt.addressable_shards:
        place = at[_numbers(dealt.shape, shard.index)]
        rows[place[place >= 0]] = np.asarray(shard.data)[place >= 0]
    return rows


def _numbers(shape: tuple[int, ...], index: Any) -> np.ndarray:
    """The numbers within the set of the samples of a part of a dealt array."""
    return np.arange(int(np.prod(shape[:3]))).reshape(shape[:3])[index[:3]]


@jax.named_scope("parallel.map_rows")
def map_rows(
    image: Array | None,
    points: Array | None,
    fn: Callable[[Array | None, Array | None, Array, Array], Any],
    *,
    mesh: Mesh,
    plan: Plan,
    points_valid: Array | None = None,
    image_cells: Array | None = None,
    point_cells: Array | None = None,
    count: int | Array | None = None,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
    window: int | None = None,
) -> Any:
    """``scoring.map_rows`` over a mesh of one axis; ``fn`` runs on the device that holds the samples.

    ``fn`` is given whole rows in the order of the set, and numbers of samples within the set. What it closes
    over is on every device. The result differs from one device's by rounding, if at all.

    Args:
        image, points: (N, M, C), (N, G, C) float32 or None. As ``deal`` places them, (T, D, tile, M, C),
            they stay where they are; otherwise they are dealt here.
        points_valid, image_cells, point_cells: as there, dealt or not.
        mesh: one axis; the ring is in the order of its devices.
        fn, plan, count, precision, implementation, refine, window: as there.

    Returns:
        What ``fn`` returned, joined: leading axis N, or dealt (T, D, tile, ...) where the features were.
    """
    (axis,), size, tile = mesh.axis_names, mesh.size, plan.tile
    first = next(x for x in (image, points) if x is not None)
    dealt = first.ndim == 5
    n = first.shape[0] * size * tile if dealt else first.shape[0]
    count = jnp.asarray(n if count is None else count, jnp.int32)
    sides = tuple(
        None
        if x is None
        else Samples(*(_dealt(y, size, tile, ndim) for y, ndim in ((x, 5), (valid, 4), (cells, 5))))
        for x, valid, cells in ((image, None, image_cells), (points, points_valid, point_cells))
    )
    kernel: dict[str, Any] = {
        "precision": precision, "implementation": implementation, "refine": refine, "window": window
    }  # fmt: skip

    def device(sides: tuple[Samples | None, ...], count: Array) -> Any:
        own = jax.tree.map(lambda x: x[:, 0].reshape(-1, *x.shape[3:]), sides)
        place = ring.Place(axis, size, tile, lax.axis_index(axis))
        walk = ring.symmetric if plan.kind == "symmetric" else ring.in_blocks
        found = walk(own, fn, place=place, plan=plan, n=n, count=count, kernel=kernel)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, 1, tile, *leaf.shape[1:]), found)

    spec = PartitionSpec(None, axis)
    over_mesh = jax.shard_map(
        device, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False
    )
    joined = over_mesh(sides, count)
    return joined if dealt else jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:])[:n], joined)


def _dealt(x: Any, size: int, tile: int, ndim: int) -> Any:
    """(N, ...) as (T, D, tile, ...), padded with zeros; what has ``ndim`` axes is dealt already."""
    if x is None or x.ndim == ndim:
        return x
    missing = -len(x) % (size * tile)
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x
    return x.reshape(-1, size, tile, *x.shape[1:])


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of scoring one stage, for one device."""

    flops: int  # of the matrix products; a multiplication and an addition count two
    bytes_sent: int
    transfers: int  # ``ppermute``s
    feature_bytes: int  # samples of its own, at hand, on their way, and picked from them
    row_bytes: int  # rows of distances that live at once
    tile_bytes: int  # the product of one tile and its operands

    def __add__(self, more: Cost) -> Cost:
        """Of both modalities, one after the other."""
        sums = {f.name: getattr(self, f.name) + getattr(more, f.name) for f in dataclasses.fields(Cost)}
        return Cost(**sums | {"tile_bytes": max(self.tile_bytes, more.tile_bytes)})

    @property
    def held_bytes(self) -> int:
        """Memory at the fullest moment, without what ``fn`` needs."""
        return self.feature_bytes + self.row_bytes + self.tile_bytes


def cost(
    n: int,
    patches: int | Sequence[int],
    channels: int | Sequence[int],
    devices: int,
    plan: Plan,
    *,
    masked: bool | Sequence[bool] = False,
) -> Cost:
    """What ``map_rows`` computes, sends and keeps on each device; without the interval average and CAE.

    Args:
        n: samples, padding included.
        patches, channels: M and C, of each modality where there are two.
        masked: whether a modality has a ``points_valid``, which travels with its features.
    """
    each = [patches] if isinstance(patches, int) else list(patches)
    wide = [channels] * len(each) if isinstance(channels, int) else list(channels)
    with_mask = [masked] * len(each) if isinstance(masked, bool) else list(masked)
    walk = _cost_symmetric if plan.kind == "symmetric" else _cost_rows
    own = padded_size(n, devices, plan) // devices
    parts = [walk(own, devices, plan, *side) for side in zip(each, wide, with_mask, strict=True)]
    return functools.reduce(operator.add, parts)


def _cost_symmetric(own: int, devices: int, plan: Plan, m: int, c: int, masked: bool) -> Cost:
    tile, tiles, block = plan.tile, own // plan.tile, own * m * (4 * c + masked)
    half = -(-tiles // 2) if devices % 2 == 0 else 0
    steps, back = devices // 2, (devices - 1) // 2
    pairs = own * (own - 1) // 2 + back * own**2 + half * tile * own
    sent = steps * block + 4 * m * own * (back * own + half * tile)
    copies = 1 if devices == 1 else 5
    kept = 4 * m * own * (own * devices + 5 * own)  # the set's, and of the steps under way
    products = _tile_bytes(tile, m, c)
    return Cost(2 * m * m * c * pairs, sent, steps * (2 + masked), copies * block, kept, products)


def _cost_rows(own: int, devices: int, plan: Plan, m: int, c: int, masked: bool) -> Cost:
    tile, block = plan.tile, own * m * (4 * c + masked)
    several = max(plan.block // tile, 1)
    size, passes = several * tile, -(-own // (several * tile))
    pairs = passes * (size * own * devices + several * (tile * (tile - 1) // 2))
    moves = 0 if devices == 1 else 1 + passes * (devices - 2)  # the first block is the same in each round
    copies = 1 if devices == 1 else 4
    kept = 3 * 4 * m * size * own * devices  # by device, in the order of the set, and masked
    products = _tile_bytes(tile, m, c)
    return Cost(2 * m * m * c * pairs, moves * block, moves * (1 + masked), copies * block, kept, products)


def _tile_bytes(tile: int, m: int, c: int) -> int:
    return 4 * (tile * m) ** 2 + 16 * tile * m * c
