"""How much the result hangs on two numbers of the method: a sweep in one compiled call.

X of the interval average and the scale of λ are traced, so the distances are computed once, every setting
runs the same program, and nothing is compiled again. ``ipg.group`` and ``snamd.pool_groups`` take a traced
C_thr in the same way.

    python -m benchmarks.sensitivity PATH [--image-backbone FILE] [--set ...]
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax import cae, inputs, metrics, pipeline, rows, runtime, scoring
from muscjax.config import CaeConfig, override, released
from muscjax.console import watch
from muscjax.extract import pad_samples
from muscjax.requests import Request
from muscjax.types import Array, PointGroups

FRACTIONS = (0.1, 0.2, 0.3, 0.5, 1.0)
SCALES = (0.0, 1.0, 2.0)


@functools.partial(jax.jit, static_argnames=("plan", "config", "grid_hw", "map_hw"))
def sweep(
    image: Array,
    points: Array,
    groups: PointGroups,
    count: Array,
    fractions: Array,
    scales: Array,
    *,
    plan: scoring.Plan,
    config: CaeConfig,
    grid_hw: tuple[int, int],
    map_hw: tuple[int, int],
) -> tuple[Array, Array]:
    """Patch scores of one stage under every setting.

    Args:
        image: (N, M, C). points: (N, G, C). groups: leading axis N. count: scans that are not padding.
        fractions, scales: (F,) X and scale of each setting.

    Returns:
        (F, N, M) and (F, N, G) float32.
    """
    kernel: dict[str, Any] = {"count": count, "tile": plan.tile}
    image_distances = scoring.mutual_min_distances(image, **kernel)
    point_distances = scoring.mutual_min_distances(points, valid=groups.valid, **kernel)

    def one(setting: tuple[Array, Array]) -> tuple[Array, Array]:
        fraction, scale = setting

        def statistics(image_rows, point_rows, ref_valid, ids):
            fuse = functools.partial(cae.enhance, scale=scale)
            shape: dict[str, Any] = {"config": config, "grid_hw": grid_hw, "map_hw": map_hw, "fuse": fuse}
            fused = rows.fuse_rows(image_rows, point_rows, groups, ref_valid, ids, **shape)
            average = scoring.interval_average
            return rows.average_rows(*fused, groups, ref_valid, ids, fraction=fraction, average=average)

        return scoring.map_distances(
            image_distances, point_distances, statistics, block=plan.block, count=count
        )

    return lax.map(one, (fractions, scales))


def settings() -> tuple[np.ndarray, np.ndarray]:
    """(F,) fractions and scales: every combination."""
    grid = np.asarray([(x, scale) for scale in SCALES for x in FRACTIONS], np.float32)
    return grid[:, 0], grid[:, 1]


def main() -> None:
    """Print pixel AP and hit rate of every setting on a labelled category with images and points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--image-backbone", default="texture")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    options = parser.parse_args()
    runtime.prepare()
    from rich.console import Console

    with watch(Console(stderr=True), quiet=False) as observe:
        request = Request(options.path, Path(), modality="both", image_backbone=options.image_backbone)
        plan = inputs.plan(request, override(released(), *options.set))
        loaded = inputs.load(plan.datasets[0], "both", request, plan.config, observe, observe.say)
        extracted = pipeline.extract(
            loaded.images, loaded.clouds, **plan.backbones("both"), config=loaded.config, progress=observe
        )
        features, groups = extracted.features, extracted.groups
        assert groups is not None
        size, walk = pipeline.plan_of(features, loaded.config)
        padded = pipeline.pad_groups(groups, size)
        fractions, scales = settings()
        n, entries = len(loaded.prepared), rows.paired_entries(features)
        totals: Any = [0.0, 0.0]
        for done, pair in enumerate(entries, start=1):
            sides = (features.image, features.points)
            given = [pad_samples(x[e], size) for x, e in zip(sides, pair, strict=True) if x is not None]
            found = sweep(
                *given,
                padded,
                jnp.asarray(n, jnp.int32),
                fractions,
                scales,
                plan=walk,
                config=loaded.config.cae,
                grid_hw=extracted.grid_hw,
                map_hw=extracted.map_hw,
            )
            totals = [a + np.asarray(b)[:, :n] / len(entries) for a, b in zip(totals, found, strict=True)]
            observe("sweep", done, len(entries))
    masks = [item.mask for item in loaded.prepared]
    print("X     λ scale  pixel AP  hit rate")
    for i, (fraction, scale) in enumerate(zip(fractions, scales, strict=True)):
        scores = pipeline.patch_scores(features, [totals[0][i], totals[1][i]])
        shape: dict[str, Any] = {"grid_hw": extracted.grid_hw, "map_hw": extracted.map_hw}
        maps = list(
            np.asarray(pipeline.finish(scores, extracted.clouds, groups, loaded.config, **shape).anomaly_map)
        )
        ap, hit = metrics.pixel_metrics(masks, maps)["ap"], metrics.hit_rate(masks, maps)  # pyright: ignore[reportArgumentType]
        print(f"{fraction:<5.2g} {scale:<8.2g} {100 * (ap or 0):8.1f}  {100 * (hit or 0):8.1f}")


if __name__ == "__main__":
    main()
