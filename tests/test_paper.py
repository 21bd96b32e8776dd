"""Both presets from tokens to scan scores against the float64 reference of the whole method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscjax import config, extract, geometry, pipeline
from muscjax.types import Features
from tests.reference import pipeline as reference


SIZES = {"groups": 9, "group_size": 8, "initial_size": 3}  # the last group of expansions adds fewer points
C_IMAGE, C_POINTS = 6, 7


@dataclasses.dataclass(frozen=True)
class Shape:
    """Few, since each compiles; oblong, so that rows and columns cannot be exchanged unnoticed."""

    n: int
    grid_hw: tuple[int, int]
    patch: int  # pixels
    stages: int
    point_stages: int

    @property
    def map_hw(self):
        return self.grid_hw[0] * self.patch, self.grid_hw[1] * self.patch


SHAPES = Shape(7, (3, 4), 5, stages=3, point_stages=3), Shape(5, (4, 2), 7, stages=2, point_stages=1)


def mixed(moments, stages, channels):
    """(N, L, 6) -> (S, N, L, C) by positive matrices: tokens that all point one way, as real networks' do."""
    xp = np if isinstance(moments, np.ndarray) else jnp
    mix = np.random.default_rng(channels).random((stages, 1, 1, 6, channels)).astype(np.float32) ** 4
    return xp.sum(moments[None, ..., None] * mix.astype(moments.dtype), axis=-2)


def image_tokens(shape, images):
    """(N, H, W, 3) -> (S, N, M, C), in the precision of the images."""
    (h, w), p = shape.grid_hw, shape.patch
    xp = np if isinstance(images, np.ndarray) else jnp
    cut = images.reshape(-1, h, p, w, p, 3)
    moments = xp.concatenate([cut.mean(axis=(2, 4)), (cut * cut).mean(axis=(2, 4))], axis=-1)
    return mixed(moments.reshape(-1, h * w, 6), shape.stages, C_IMAGE)


def point_tokens(points, indices, centers):
    """(P, 3), (G, K), (G, 3) -> (3, G, C): moments of each group, which count a repeated member twice."""
    xp = np if isinstance(points, np.ndarray) else jnp
    around = points[indices] - centers[:, None]
    moments = xp.concatenate([xp.abs(around).mean(axis=1), xp.abs(around).max(axis=1)], axis=-1)
    return mixed(moments[None], 3, C_POINTS)[:, 0]


def scans(shape, seed):
    """Images, and organised maps: one half a plane, one half rough, background around; scan 1 has 5 points."""
    rng = np.random.default_rng(seed)
    h, w = shape.map_hw
    colours = rng.random((shape.n, *shape.grid_hw, 3)).repeat(shape.patch, axis=1).repeat(shape.patch, axis=2)
    images = (0.7 * colours + 0.3 * rng.random(colours.shape)).astype(np.float32)
    row, column = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    grid = np.stack([column + 1, row + 1], axis=-1) + rng.uniform(-0.3, 0.3, (shape.n, h, w, 2))
    rough = np.where(column < w // 2, 2e-5, 1e-3) * rng.normal(size=(shape.n, h, w))
    xyz = np.concatenate([grid * 1e-3, (0.5 + rough)[..., None]], axis=-1)
    xyz[rng.random((shape.n, h, w)) < 0.7] = 0
    few = np.cumsum((xyz[1] != 0).all(axis=-1).reshape(h, w)) > 5
    xyz[1][few.reshape(h, w)] = 0
    return images, xyz.astype(np.float32)


def settings_of(preset):
    base = config.preset(preset)
    return dataclasses.replace(
        base,
        ipg=dataclasses.replace(base.ipg, **SIZES),
        scoring=dataclasses.replace(base.scoring, refine=True),
    )


def point_backbone(cloud, groups):
    return point_tokens(cloud.points, groups.indices, groups.centers)


@functools.cache
def image_backbone(shape):
    """One object per shape, so that every example runs the programs of the first."""
    return functools.partial(image_tokens, shape)


@functools.cache
def both_features(shape, seed, preset):
    """Ours and the reference's: image features, point features, and the groups of both."""
    images, xyz = scans(shape, seed)
    clouds = [geometry.cloud_from_xyz(scan) for scan in xyz]
    image = extract.extract_images(images, image_backbone(shape), settings_of(preset))
    points, groups = extract.extract_points(clouds, point_backbone, settings_of(preset))
    sides = [reference.grouped(scan, preset, **SIZES) for scan in xyz]
    tokens = image_tokens(shape, images.astype(np.float64))
    exact_image = reference.image_features(tokens, preset, shape.grid_hw)
    tokens = np.stack([point_tokens(side.points, side.members, side.centers) for side in sides], axis=1)
    exact_points = reference.point_features(tokens, sides, preset)
    stages = slice(shape.point_stages)
    return (image, points[stages], clouds, groups), (exact_image, exact_points[stages], sides)


def check(x, y):
    return float(np.abs(np.asarray(x) - y).max())


if __name__ == "__main__":
    import time

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    for shape in SHAPES:
        for preset in ("paper", "released"):
            for seed in range(int(__import__('sys').argv[1])):
                t = time.time()
                (image, points, clouds, groups), (ei, ep, sides) = both_features(shape, seed, preset)
                t1 = time.time()
                print(shape.n, preset, seed, "feat", check(image, ei), check(points, ep), f"{t1 - t:.1f}s")
                for i, s in enumerate(sides):
                    v = s.valid
                    assert (groups.valid[i] == v).all(), (groups.valid[i], v)
                    assert (groups.center_index[i][v] == s.center_index[v]).all()
                    assert (np.sort(groups.indices[i][v]) == np.sort(s.members[v])).all()
                print(
                    "  curved",
                    [int((s.curvature >= 0.01).sum()) for s in sides],
                    [int(s.valid.sum()) for s in sides],
                    [len(s.points) for s in sides],
                )
                for modality in ("image", "points", "both"):
                    t = time.time()
                    a = None if modality == "points" else image, None if modality == "image" else points
                    b = None if modality == "points" else ei, None if modality == "image" else ep
                    kw = {"grid_hw": shape.grid_hw, "map_hw": shape.map_hw}
                    c = settings_of(preset)
                    g = None if modality == "image" else groups
                    found = pipeline.score(Features(*a), g, c, **kw)
                    det = pipeline.finish(found, clouds if g is not None else None, g, c, **kw)
                    jax.block_until_ready(det)
                    t1 = time.time()
                    want = reference.run(*b, sides if g is not None else None, preset, **kw)
                    t2 = time.time()
                    print(
                        "   ",
                        modality,
                        *(
                            f"{check(x, y):.1e}"
                            for x, y in (
                                (found.image, want.image),
                                (found.points, want.points),
                                (found.salient, want.salient),
                                (det.anomaly_map, want.maps),
                                (det.map_max, want.highest),
                                (det.pred_score, want.scores),
                            )
                            if y is not None
                        ),
                        f"{t1 - t:.1f}s {t2 - t1:.1f}s",
                        f"{want.highest.max():.2f}",
                    )
