"""The ground plane of an organised scan, by RANSAC on its border."""

from __future__ import annotations

import dataclasses

import numpy as np

BORDER = 10 / 400  # width of the border that is taken for ground, as a share of the shorter side


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """Numbers of the MVTec 3D-AD preprocessing; metres. ``version`` changes when the algorithm does."""

    inlier_m: float = 0.004
    sample: int = 50
    iterations: int = 1000
    plane_m: float = 0.005
    eps_m: float = 0.006
    min_points: int = 30
    min_support: float = 0.3  # share of the border that must lie in the plane; ours
    seed: int = 0
    version: int = 1


MVTEC3D = CleanConfig()


def valid_points(xyz: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W) bool: pixels with a depth, all three raw coordinates non-zero."""
    return (xyz != 0).all(axis=-1)


def plane(xyz: np.ndarray, *, config: CleanConfig = MVTEC3D) -> tuple[np.ndarray | None, str]:
    """The ground plane by RANSAC on the border of an organised scan.

    Args:
      xyz: (H, W, 3) metres, 0 where there is no depth.
      config: inlier distance, points per hypothesis, hypotheses, seed.

    Returns:
      ``(equation, "")`` with equation (4,) float64, unit normal n and offset d of n·p + d = 0; or
      ``(None, reason)`` where the border holds no plane, as in a scan that is clean already.

    Hypotheses are total least squares planes through ``config.sample`` border points, drawn with
    replacement; the one with the most inliers wins, the smaller squared residual among equals, and is
    fitted once more to its inliers, as Open3D's ``segment_plane`` does.
    """
    height, width = xyz.shape[:2]
    band = max(1, round(BORDER * min(height, width)))
    border = valid_points(xyz)
    border[band : height - band, band : width - band] = False
    points = xyz[border].astype(np.float64)
    if len(points) < config.sample:
        return None, f"border of {band} pixels holds {len(points)} points, a plane needs {config.sample}"
    origin = points.mean(axis=0)
    points -= origin
    rng = np.random.default_rng(config.seed)
    drawn = points[rng.integers(len(points), size=(config.iterations, config.sample))]
    center = drawn.mean(axis=1)
    offset = drawn - center[:, None]
    spread, axes = np.linalg.eigh(np.swapaxes(offset, 1, 2) @ offset)
    normal = axes[:, :, 0]
    # a line of points leaves the plane around it undetermined
    usable = spread[:, 1] > 1e-12 * spread[:, 2]
    if not usable.any():
        return None, "border points lie on one line"
    normal = normal[usable]
    shift = -(normal * center[usable]).sum(axis=1)
    x, y, z = np.ascontiguousarray(points.T, np.float32)

    def distances(a: np.float32, b: np.float32, c: np.float32, d: np.float32) -> np.ndarray:
        distance = a * x
        distance += b * y
        distance += c * z
        distance += d
        return np.abs(distance, out=distance)

    # one hypothesis at a time: its distances stay in the processor's cache, and no BLAS thread is woken
    hypotheses = np.column_stack([normal, shift]).astype(np.float32)
    count = np.array([np.count_nonzero(distances(*row) < config.inlier_m) for row in hypotheses])
    tied = hypotheses[count == count.max()]
    residual = [np.square(d[d < config.inlier_m]).sum() for d in (distances(*row) for row in tied)]
    inlier = distances(*tied[np.argmin(residual)]) < config.inlier_m
    support = count.max() / len(points)
    if support < config.min_support:
        return None, f"no plane on the border: the best one holds {100 * support:.0f} % of its points"
    member = points[inlier]
    center = member.mean(axis=0)
    normal = np.linalg.eigh((member - center).T @ (member - center))[1][:, 0]
    normal = normal * (np.sign(normal[np.argmax(np.abs(normal))]))
    return np.append(normal, -normal @ (center + origin)), ""
