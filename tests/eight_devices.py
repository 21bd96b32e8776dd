"""What ``test_parallel`` asks of eight devices: run as a program, as XLA must be told before JAX starts.

Prints one JSON object.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from tests.budget import QUICK_XLA, largest_intermediate

os.environ["XLA_FLAGS"] = f"{QUICK_XLA} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import hlo
from muscjax import cae, config, parallel, pipeline, scoring
from muscjax.types import Features, PointGroups

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

N, COUNT, GRID, SIDE = 14, 13, (3, 4), 24
TILE = 2


def ring_of(devices: int) -> Mesh:
    return Mesh(np.asarray(jax.devices()[:devices]), (parallel.AXIS,))


def unit(seed: int, *shape: int) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def groups_of(n: int, g: int) -> PointGroups:
    rng = np.random.default_rng(5)
    valid = rng.random((n, g)) < 0.8
    valid[3] = False  # a scan without points
    pixel = rng.integers(0, SIDE * SIDE, (n, g)).astype(np.int32)
    empty = np.zeros((n, 0, 0), np.float32)
    return PointGroups(empty, empty, empty, empty, pixel, valid)


IMAGE, POINTS, GROUPS = unit(0, N, 12, 8), unit(1, N, 10, 6), groups_of(N, 10)


def stage(image, points, kind: str, mesh: Mesh | None):
    settings = config.released()
    found = pipeline.score_stage(
        image,
        points,
        None if points is None else GROUPS,
        np.asarray(COUNT, np.int32),
        plan=scoring.Plan(kind, TILE, TILE),
        scoring_config=settings.scoring,
        cae_config=settings.cae,
        grid_hw=GRID,
        map_hw=(SIDE, SIDE),
        fuse=cae.enhance,
        average=scoring.interval_average,
        mesh=mesh,
    )
    return [np.asarray(x)[:COUNT] for x in found if x is not None]


def compared(found, expected) -> dict[str, float | bool]:
    off = [
        float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-6)))
        for a, b in zip(found, expected, strict=True)
    ]
    return {
        "relative": max(off),
        "identical": all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)),
    }


def equality() -> dict[str, dict]:
    """Everything at once where it matters; elsewhere a statistic that compiles in a moment."""
    expected = stage(IMAGE, POINTS, "symmetric", None)
    found = {
        f"both {kind} {devices}": compared(stage(IMAGE, POINTS, kind, ring_of(devices)), expected)
        for kind, devices in (("symmetric", 8), ("rows", 3))
    }
    plain = sums(None, "symmetric", IMAGE, POINTS)
    for kind, devices in (("symmetric", 1), ("symmetric", 2), ("symmetric", 3), ("rows", 2), ("rows", 8)):
        found[f"sums {kind} {devices}"] = compared(sums(ring_of(devices), kind, IMAGE, POINTS), plain)
    found["image symmetric 2"] = compared(sums(ring_of(2), "symmetric", IMAGE, None), plain[:1])
    found["points rows 8"] = compared(sums(ring_of(8), "rows", None, POINTS), plain[1:])
    return found


def sums(mesh: Mesh | None, kind: str, image, points) -> list[np.ndarray]:
    map_rows = scoring.map_rows if mesh is None else functools.partial(parallel.map_rows, mesh=mesh)

    def fn(image_rows, point_rows, ref_valid, ids):
        both = [None if x is None else rows_sum(x, None, ref_valid, ids)[0] for x in (image_rows, point_rows)]
        return [x for x in both if x is not None], ids

    run = jax.jit(
        functools.partial(
            map_rows, fn=fn, plan=scoring.Plan(kind, TILE, TILE), count=COUNT, points_valid=GROUPS.valid
        )
    )
    found, ids = run(image, points)
    np.testing.assert_array_equal(ids, np.arange(N))
    return [np.asarray(x)[:COUNT] for x in found]


def rows_sum(image_rows, point_rows, ref_valid, ids):
    """A statistic that is cheap to compile, of everything that ``fn`` is given."""
    del point_rows
    there = ref_valid[:, None] & jnp.isfinite(image_rows)
    return jnp.sum(jnp.where(there, image_rows, 0), axis=2), ids


def windowed() -> dict[str, float | bool]:
    cells = np.broadcast_to(np.stack(np.indices(GRID), -1).reshape(1, 12, 2), (N, 12, 2)).astype(np.int32)
    walk = {"plan": scoring.Plan("symmetric", TILE, TILE), "window": 1}
    expected = jax.jit(functools.partial(scoring.map_rows, points=None, fn=rows_sum, **walk))(
        IMAGE, image_cells=cells
    )
    found = jax.jit(functools.partial(parallel.map_rows, points=None, fn=rows_sum, mesh=ring_of(2), **walk))(
        IMAGE, image_cells=cells
    )
    return compared([np.asarray(x) for x in found], [np.asarray(x) for x in expected])


def whole_score() -> dict[str, float | bool]:
    """``pipeline.score`` with and without a mesh: the plan, the padding and the way back are its own."""
    features = Features(unit(2, 2, 11, 12, 8), unit(3, 1, 11, 10, 6))
    groups = groups_of(11, 10)
    shape = {"grid_hw": GRID, "map_hw": (SIDE, SIDE)}
    expected = pipeline.score(features, groups, config.released(), **shape)
    found = pipeline.score(features, groups, config.released(), mesh=ring_of(3), **shape)
    return compared(
        [np.asarray(x) for x in jax.tree.leaves(found)], [np.asarray(x) for x in jax.tree.leaves(expected)]
    )


def programs() -> dict[str, dict]:
    """Compiled programs beside what ``parallel.cost`` says of them."""
    found = {}
    m, c = 24, 40
    for devices, own, kind in ((8, 4, "symmetric"), (3, 4, "symmetric"), (2, 6, "symmetric"), (8, 4, "rows")):
        n, plan = devices * own, scoring.Plan(kind, 2, 2)
        mesh = ring_of(devices)
        run = jax.jit(
            lambda x, valid, mesh=mesh, plan=plan: parallel.map_rows(
                None, x, lambda _, rows, *rest: rows_sum(rows, None, *rest), mesh=mesh, plan=plan,
                points_valid=valid,
            )
        )  # fmt: skip
        shape = (own // plan.tile, devices, plan.tile, m)
        placed = functools.partial(jax.ShapeDtypeStruct, sharding=parallel.sharding(mesh))
        compiled = run.lower(placed((*shape, c), jnp.float32), placed(shape, jnp.bool_)).compile()
        text = compiled.as_text()
        counted, cost = hlo.read(text), parallel.cost(n, m, c, devices, plan, masked=True)
        parts = hlo.parts(text) if kind == "symmetric" else []
        loops = {part.name for part in parts if part.product_flops}
        memory = compiled.memory_analysis()
        found[f"{kind} {devices}×{own}"] = {
            "flops": [counted.product_flops, cost.flops],
            "bytes": [counted.bytes_sent, cost.bytes_sent],
            "transfers": [counted.permutes, cost.transfers],
            "held": [memory.temp_size_in_bytes + memory.argument_size_in_bytes, cost.held_bytes],
            "waits": [len(p.after & loops) for p in parts if p.bytes_sent == own * m * c * 4],
            "once": devices * counted.product_flops / (n * (n - 1) // 2 * 2 * m * m * c),
        }
    return found


def largest() -> dict[str, list]:
    """The largest array of a big program, by plan, beside the budget of a device; nothing is run."""
    found = {}
    for n, budget in ((600, 1 << 30), (600, 64 << 20)):
        plan = parallel.plan(n, (784,), devices=8, memory_budget=budget)
        run = functools.partial(parallel.map_rows, points=None, fn=rows_sum, mesh=ring_of(8), plan=plan)
        size = parallel.padded_size(n, 8, plan)
        program = jax.make_jaxpr(run)(
            jax.ShapeDtypeStruct((size // 8 // plan.tile, 8, plan.tile, 784, 16), jnp.float32)
        )
        (inner,) = [e.params["jaxpr"] for e in program.jaxpr.eqns if e.primitive.name == "shard_map"]
        found[plan.kind] = [largest_intermediate(inner), budget]
    return found


if __name__ == "__main__":
    asked = {f.__name__: f for f in (equality, windowed, whole_score, programs, largest)}
    found = {}
    for name, f in asked.items():
        begun = time.process_time()
        found[name] = f()
        print(f"{name}: {time.process_time() - begun:.1f} s", file=sys.stderr)
    json.dump(found, sys.stdout)
