"""The whole method in float64, composed from the references of its stages, for both presets.

What a preset means is written down here once more, from METHOD.md's table, and not read from the package.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.reference import cae, geometry, ipg, maps, rscon, scoring, snamd

DEGREES, THRESHOLD, FRACTION = (1, 3, 5), 0.01, 0.3
GRID = {
    "released": {"divide_by": "weights", "zero_padding": True, "combine": "mean"},
    "paper": {"divide_by": "count", "zero_padding": False, "combine": "pool"},
}
GROUPS = {"released": {"divide_by": "weights"}, "paper": {"divide_by": "count"}}


@dataclasses.dataclass
class Scan:
    """One cloud and its groups; only rows that exist."""

    points: np.ndarray  # (P, 3)
    pixel: np.ndarray  # (P,)
    members: np.ndarray  # (G, K)
    center_index: np.ndarray  # (G,)
    curvature: np.ndarray  # (G,)
    valid: np.ndarray  # (G,)

    @property
    def centers(self):
        return self.points[self.center_index]


@dataclasses.dataclass
class Outcome:
    """What ``scored`` and ``finished`` say about N samples."""

    image: np.ndarray | None  # (N, M), stage means
    points: np.ndarray | None  # (N, G)
    salient: np.ndarray  # (N, D)
    maps: np.ndarray  # (N, H, W)
    highest: np.ndarray  # (N,)
    scores: np.ndarray  # (N,)


def grouped(xyz, preset, *, groups, group_size, initial_size):
    """An organised (H, W, 3) map to its cloud and groups."""
    flat = np.asarray(xyz, np.float64).reshape(-1, 3)
    pixel = np.flatnonzero((flat != 0).all(axis=1))
    offsets = flat[pixel] - flat[pixel].mean(axis=0)
    points = offsets / np.sqrt((offsets**2).sum(axis=1)).max()
    there = np.ones(len(points), bool)
    index, valid = geometry.farthest_points(points, there, groups, skip_origin=preset == "released")
    near, distance = geometry.nearest(points[index], points, there, 2 * group_size)
    members, bends = [], []
    for center, rows, to in zip(index, near, distance, strict=True):
        rows = rows[np.isfinite(to)]
        bend = ipg.curvature(points[center], points[rows[1:group_size]])
        chosen = [*rows[:group_size], *[rows[0]] * (group_size - len(rows))]
        if np.float32(bend) >= np.float32(THRESHOLD):
            sizes = {"group_size": group_size, "initial_size": initial_size}
            if preset == "released":
                chosen = ipg.expand_released(points, list(rows), **sizes)
            else:
                chosen = ipg.expand_paper(points, list(rows), range(len(points)), **sizes)
        members.append(chosen)
        bends.append(bend)
    return Scan(points, pixel, np.array(members), index, np.where(valid, bends, 0), valid)


def image_features(tokens, preset, grid_hw):
    """(S, N, M, C) -> the same, pooled."""
    stages, n, _, c = tokens.shape
    return np.array(
        [
            [snamd.pool_grid(tokens[s, i].reshape(*grid_hw, c), DEGREES, **GRID[preset])[0] for i in range(n)]
            for s in range(stages)
        ]
    )


def point_features(tokens, scans, preset):
    """(S, N, G, C) -> the same, pooled."""
    return np.array(
        [
            [
                snamd.pool_groups(
                    of_scan,
                    scan.centers,
                    scan.curvature,
                    scan.valid,
                    DEGREES,
                    THRESHOLD,
                    **GROUPS[preset],
                )
                for of_scan, scan in zip(stage, scans, strict=True)
            ]
            for stage in tokens
        ]
    )


def stage_scores(image, points, scans, preset, *, grid_hw, map_hw):
    """One stage: (N, M, C) and (N, G, C), either None, -> (N, M) and (N, G)."""
    given = image if image is not None else points
    n = len(given)
    image_scores = None if image is None else np.zeros(image.shape[:2])
    point_scores = None if points is None else np.zeros(points.shape[:2])
    image_all = None if image is None else scoring.min_distances(image, image)
    valid = None if points is None else np.array([scan.valid for scan in scans])
    points_all = None if points is None else scoring.min_distances(points, points, valid)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        image_rows = None if image_all is None else image_all[i][:, others]
        kept = None if valid is None else np.flatnonzero(valid[i])
        point_rows = None if points_all is None else points_all[i][kept][:, others]
        if image_rows is not None and point_rows is not None:
            pixels = scans[i].pixel[scans[i].center_index[kept]]
            patch = np.array([maps.patch_of_pixel(pixel, map_hw, grid_hw) for pixel in pixels])
            fuse = {"released": cae.released, "paper": cae.paper}[preset]
            image_rows, point_rows = fuse(image_rows, point_rows, patch)
        if image_rows is not None:
            image_scores[i] = [scoring.interval_average(row, FRACTION) for row in image_rows]
        if point_rows is not None:
            point_scores[i, kept] = [scoring.interval_average(row, FRACTION) for row in point_rows]
    return image_scores, point_scores


def scored(image, points, scans, preset, *, grid_hw, map_hw):
    """All stages, (S, N, M, C) and (S or 1, N, G, C): stage means and the salient features."""
    stages = max(len(x) for x in (image, points) if x is not None)
    found = [
        stage_scores(
            *(None if x is None else x[min(s, len(x) - 1)] for x in (image, points)),
            scans,
            preset,
            grid_hw=grid_hw,
            map_hw=map_hw,
        )
        for s in range(stages)
    ]
    means, salient = [], []
    for features, per_stage in zip((image, points), zip(*found, strict=True), strict=True):
        if features is None:
            means.append(None)
            continue
        mean = np.mean(per_stage, axis=0)
        second_last = features[-2] if len(features) > 1 else features[0]
        means.append(mean)
        salient.append([rows[np.argmax(row)] for rows, row in zip(second_last, mean, strict=True)])
    return means[0], means[1], np.concatenate(salient, axis=1)


def anomaly_map(image_scores, point_scores, scan, preset, *, grid_hw, map_hw):
    """One sample's map: the image's, plus the blurred one of the points."""
    total = np.zeros(map_hw)
    if image_scores is not None:
        total += maps.upsample_grid(image_scores.reshape(grid_hw), map_hw)
    if point_scores is not None:
        there = np.ones(len(scan.points), bool)
        values = maps.interpolate_points(point_scores, scan.centers, scan.valid, scan.points, there)
        spread = maps.scatter_to_grid(values, scan.pixel, there, map_hw)
        highest = spread.max()
        if preset == "paper":
            total += maps.blur(spread, maps.box_line_float)
        elif highest > 0:
            levels = (spread / highest * 255).astype(np.int64)
            total += maps.blur(levels, maps.box_line_uint8) / 255 * highest
    return total


def run(image, points, scans, preset, *, grid_hw, map_hw):
    """Pooled features to everything that is said about the samples."""
    means = scored(image, points, scans, preset, grid_hw=grid_hw, map_hw=map_hw)
    image_mean, point_mean, salient = means
    out = np.array(
        [
            anomaly_map(
                None if image_mean is None else image_mean[i],
                None if point_mean is None else point_mean[i],
                None if scans is None else scans[i],
                preset,
                grid_hw=grid_hw,
                map_hw=map_hw,
            )
            for i in range(len(salient))
        ]
    )
    highest = out.reshape(len(out), -1).max(axis=1)
    rescore = {"released": rscon.released, "paper": rscon.paper}[preset]
    return Outcome(image_mean, point_mean, salient, out, highest, rescore(highest, salient))
