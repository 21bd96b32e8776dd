"""What a workload's result is checked against, how its operations count, and the products beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plain
from muscjax import maps, workloads
from muscjax.backbones import vit
from muscjax.profile import counting, rates
from muscjax.profile.stages import Stage, settings

# Largest difference from the plain expression that float32 explains (METHOD's tolerances); near-ties of
# CAE's ranks flip. A network's is relative to its largest token.
TOLERANCES: dict[type, float] = {
    workloads.Scoring: 2e-5,
    workloads.Averaging: 1e-6,
    workloads.Fusing: 1.5e-3,
    workloads.Grouping: 0.0,
    workloads.Pooling: 2e-6,
    workloads.GroupPooling: 2e-6,
    workloads.Interpolating: 1e-5,
    workloads.ImageNetwork: 1e-5,
    workloads.PointNetwork: 1e-5,
}
_AGAINST = {
    workloads.Scoring: "one jnp product and minimum for every ordered pair, float32",
    workloads.Averaging: "a full sort, float32",
    workloads.Fusing: "the steps of section III-C one sample at a time, float32",
    workloads.Grouping: "brute force in NumPy; the share of groups that differ",
    workloads.Pooling: "the whole neighbourhood gathered, float32",
    workloads.GroupPooling: "the whole neighbourhood gathered, float32",
    workloads.Interpolating: "all distances sorted, float32",
    workloads.ImageNetwork: "the transformer in plain jnp, float32; relative to the largest token",
    workloads.PointNetwork: "encoder and transformer in plain jnp, float32; relative to the largest token",
}


def cores() -> int:
    """Processors that this process may use; XLA's pool has as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def patches_of(workload: workloads.Fusing, stage: Stage) -> np.ndarray:
    """(N, G) int32, the patch of each group's centre."""
    side = workload.map_side
    pixel = np.asarray(stage.arguments[2].pixel)[: workload.n]
    return np.asarray(maps.patch_of_pixel(jnp.asarray(pixel), (side, side), workload.grid))


def arrays_of(workload: workloads.Workload, found: Any) -> list[np.ndarray]:
    """What is compared of a result: ours, the plain one's or a peer's."""
    if isinstance(workload, workloads.Pipeline):
        return [np.asarray(found.anomaly_map), np.asarray(found.pred_score)]
    if isinstance(workload, workloads.Grouping) and not isinstance(found, tuple):
        found = found.center_index, found.indices
    parts = [_numpy(part) for part in (found if isinstance(found, tuple) else (found,))]
    if isinstance(workload, workloads.Grouping):
        return [parts[0], np.sort(parts[1], axis=1)]
    if isinstance(workload, workloads.Fusing):
        return [part[: workload.n] for part in parts]
    return parts


def _numpy(part: Any) -> np.ndarray:
    if hasattr(part, "detach"):  # a torch tensor, wherever it lies
        part = part.detach().cpu()
        part = part.float() if part.is_floating_point() else part
    return np.asarray(part)


def difference(
    workload: workloads.Workload, one: list[np.ndarray], other: list[np.ndarray]
) -> dict[str, float]:
    """Largest and median absolute difference; of groups the share that are not the same."""
    if isinstance(workload, workloads.Grouping):
        same = (one[0] == other[0]) & (one[1] == other[1]).all(axis=1)
        return {"max": float(1 - same.mean()), "median": 0.0}
    scale = 1.0
    if isinstance(workload, workloads.ImageNetwork | workloads.PointNetwork):
        scale = float(np.abs(other[0]).max())
    apart = np.concatenate([np.abs(a - b).ravel() for a, b in zip(one, other, strict=True)]) / scale
    return {"max": float(apart.max()), "median": float(np.median(apart))}


def plain_result(workload: workloads.Workload, stage: Stage) -> Any:
    """The stage by ``benchmarks.plain``; None where there is no such expression."""
    given = stage.arguments
    if isinstance(workload, workloads.Scoring):
        return plain.scoring(jnp.asarray(given[0]))
    if isinstance(workload, workloads.Averaging):
        return plain.average(jnp.asarray(given[0]))
    if isinstance(workload, workloads.Fusing):
        image, points = (jnp.asarray(x[: workload.n]) for x in given[:2])
        return plain.cae(image, points, patches_of(workload, stage))
    if isinstance(workload, workloads.Grouping):
        points = np.asarray(given[0].points)[np.asarray(given[0].valid)]
        return plain.grouping(points, settings(workload).ipg)
    if isinstance(workload, workloads.Pooling):
        pool = jax.jit(plain.pool_grid)
        return jnp.stack([pool(jnp.asarray(grid)) for grid in given[0]])
    if isinstance(workload, workloads.GroupPooling):
        curved = given[1].curvature >= np.float32(settings(workload).ipg.curvature_threshold)
        return jnp.stack([plain.pool_groups(jnp.asarray(t), given[1].centers, curved) for t in given[0]])
    if isinstance(workload, workloads.Interpolating):
        return plain.interpolate(*(jnp.asarray(given[i]) for i in (0, 1, 3)))
    if isinstance(workload, workloads.ImageNetwork):
        backbone, spec = given[0], given[0].spec
        positions = vit.interpolate_positions(backbone.params["positions"][1:], workload.grid, spec=spec)
        taps = jax.jit(plain.vit, static_argnames="spec")
        return taps(backbone.params, jnp.asarray(given[1]), spec=_tapped(spec, backbone), positions=positions)
    if isinstance(workload, workloads.PointNetwork):
        backbone, cloud, groups = given
        local = np.asarray(cloud.points)[groups.indices] - np.asarray(groups.centers)[:, None]
        taps = jax.jit(plain.point_mae, static_argnames="spec")
        return taps(
            backbone.params, jnp.asarray(local), jnp.asarray(groups.centers),
            spec=_tapped(backbone.spec, backbone),
        )  # fmt: skip
    return None


def _tapped(spec: Any, backbone: Any) -> Any:
    return dataclasses.replace(spec, taps=backbone.taps, final_norm=backbone.final_norm)


def checked(workload: workloads.Workload, stage: Stage, found: Any, precision: str) -> dict[str, Any]:
    """The checksum of a result and its distance from the plain expression."""
    arrays = arrays_of(workload, found)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]
    values = np.concatenate([a.astype(np.float64).ravel() for a in arrays])
    record: dict[str, Any] = {
        "checksum": digest,  # bit for bit: another device or version rounds otherwise
        "sum": float(values.sum()),
        "finite": bool(np.isfinite(values).all()),
        "against": _AGAINST.get(type(workload)),
        "error": None,
        "tolerance": TOLERANCES.get(type(workload)) if precision == "float32" else None,
    }
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        reference = plain_result(workload, stage)
    if reference is not None:
        record["error"] = difference(workload, arrays, arrays_of(workload, reference))
    return record


def counted(workload: workloads.Workload, operations: counting.Operations | None) -> tuple[str, float] | None:
    """What a rate counts: of scoring the ordered pairs' products, else all operations made."""
    if isinstance(workload, workloads.Scoring):
        return "products of ordered pairs", float(workload.ordered_pair_flop)
    return None if operations is None else ("all operations", operations.total)


def product_shapes(workload: workloads.Workload, memory: int = 2 << 30) -> tuple[rates.Shape, ...]:
    """Products to compare with: of scoring from one pair to the whole set, within ``memory`` bytes."""
    if workload.name.endswith("-small"):
        return ((64, 64, 64),)
    if not isinstance(workload, workloads.Scoring):
        return rates.shapes()
    m, c = workload.patches, workload.channels
    n = workload.n
    sides = dict.fromkeys([(1, 1), (1, 4), (2, 2), (4, 4), (16, 16), (n, n)])
    return tuple((m * a, c, m * b) for a, b in sides if 4 * a * b * m * m <= memory and max(a, b) <= n)
