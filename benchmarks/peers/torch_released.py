"""The released procedure as a plain PyTorch expression, stage by stage, written from the method's equations.

Each function takes and returns what the stage of the same workload takes and returns (torch tensors), on the
device where its arguments lie. torch is imported in this folder only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def average(distances: Tensor, fraction: float = 0.3) -> Tensor:
    """(..., R) to the mean of the k smallest (...)."""
    k = max(1, int(fraction * distances.shape[-1]))
    return torch.topk(distances, k, dim=-1, largest=False).values.mean(-1)


def image_distances(features: Tensor, i: int) -> Tensor:
    """Sample i's patches to the nearest patch of every other sample: (M, N - 1)."""
    others = [j for j in range(len(features)) if j != i]
    return torch.stack([torch.cdist(features[i], features[j]).min(dim=1).values for j in others], dim=1)


def scoring(features: Tensor) -> Tensor:
    """(N, M, C) to (N, M)."""
    return torch.stack([average(image_distances(features, i)) for i in range(len(features))])


def rank_match(target: Tensor, source: Tensor) -> Tensor:
    """Values of ``target`` replaced by those of ``source`` of equal rank, both flat."""
    rank = torch.argsort(torch.argsort(target, stable=True), stable=True)
    return torch.sort(source).values[rank]


def enhance(image: Tensor, points: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """One sample's (M, R), (G, R) through Python loops over patches and centres."""
    to_image = torch.zeros_like(image)
    for m in range(len(image)):
        inside = (patch == m).nonzero()[:, 0]
        if len(inside):
            to_image[m] = points[inside].mean(0)
    to_points = torch.zeros_like(points)
    for g in range(len(points)):
        to_points[g] = image[patch[g]]
    return fuse(image, to_image), fuse(points, to_points)


def fuse(own: Tensor, cross: Tensor) -> Tensor:
    confidence = 1 - rank_match(cross.std(dim=1), own.std(dim=1))
    reached = cross.sum(dim=1) != 0
    rescaled = cross.clone()
    ours = own[reached]
    rescaled[reached] = rank_match(cross[reached].flatten(), ours.flatten()).reshape(ours.shape)
    strong = confidence[:, None] * torch.maximum(own, rescaled)
    return (own + rank_match(strong.flatten(), own.flatten()).reshape(own.shape)) / 2


def cae(image: Tensor, points: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """(N, M, C), (N, G, C'), (N, G) to (N, M), (N, G)."""
    found = []
    for i in range(len(image)):
        rows = enhance(image_distances(image, i), image_distances(points, i), patch[i])
        found.append([average(r) for r in rows])
    return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])


def farthest_points(points: Tensor, count: int, *, skip_origin: bool) -> Tensor:
    """(P, 3) to (G,)."""
    nearest = torch.full((len(points),), math.inf, device=points.device)
    if skip_origin:
        nearest[(points * points).sum(1) <= 1e-3] = -1
    picks = torch.zeros(count, dtype=torch.long, device=points.device)
    for g in range(1, count):
        nearest = torch.minimum(nearest, ((points - points[picks[g - 1]]) ** 2).sum(1))
        picks[g] = torch.argmax(nearest)
    return picks


def grouping(points: Tensor, config: Any, *, rows: int = 4096) -> tuple[Tensor, Tensor]:
    """(P, 3) to centres' indices (G,) and members (G, K).

    The 2K neighbours are looked up for every point of the cloud and all but the centres' rows are thrown
    away, as in the released code. ``rows`` points at a time: the whole table would take 1.6 GB at 20,000.
    ``cdist`` expands the square, its default and its fastest form; near-ties at the edge of a group may go
    the other way.
    """
    k, first = config.group_size, config.initial_size
    picks = farthest_points(points, config.groups, skip_origin=config.skip_origin)
    found = [torch.topk(torch.cdist(part, points), 2 * k, largest=False) for part in points.split(rows)]
    index = torch.cat([part.indices for part in found])[picks]
    centers = points[picks]
    offsets = points[index[:, 1:k]] - centers[:, None]
    offsets = offsets / offsets.norm(dim=2).amax(dim=1)[:, None, None]
    offsets = offsets - offsets.mean(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(offsets.transpose(1, 2) @ offsets / (k - 2))
    curvature = values[:, 0] / (values.sum(dim=1) + 1e-8)
    groups = []
    for near, bend in zip(index, curvature, strict=True):
        if bend < config.curvature_threshold or first >= k:
            groups.append(near[:k])
            continue
        members = near[:first]
        while len(members) < k:
            support = near[~torch.isin(near, members)]
            apart = torch.cdist(points[members], points[support], compute_mode="donot_use_mm_for_euclid_dist")
            add = min(first, k - len(members))
            picked = torch.topk(apart.flatten(), add, largest=False).indices
            members = torch.cat([support[picked % len(support)], members])
        groups.append(members)
    return picks, torch.stack(groups)


def pool_grid(tokens: Tensor, degrees: tuple[int, ...] = (1, 3, 5)) -> Tensor:
    """(S, h, w, C) to (S, h·w, C): every r × r neighbourhood unfolded."""
    stages = []
    for grid in tokens:
        h, w, c = grid.shape
        image = grid.permute(2, 0, 1)[None]
        center = grid.reshape(h * w, 1, c)
        found = []
        for r in degrees:
            window = F.unfold(image, r, padding=r // 2)[0].reshape(c, r * r, h * w).permute(2, 1, 0)
            weight = torch.exp(-(window - center).norm(dim=2))
            found.append((weight[..., None] * window).sum(1) / weight.sum(1, keepdim=True))
        stages.append(F.normalize(torch.stack(found).mean(0), dim=-1))
    return torch.stack(stages)


def pool_groups(
    tokens: Tensor, centers: Tensor, curved: Tensor, degrees: tuple[int, ...] = (1, 3, 5)
) -> Tensor:
    """(S, G, C) to (S, G, C)."""
    order = torch.argsort(torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist"), dim=1)
    stages = []
    for stage in tokens:
        unit = F.normalize(stage, dim=-1)
        found = []
        for r in degrees:
            window = unit[order[:, :r]]
            weight = torch.exp(-(window - unit[:, None]).norm(dim=2))
            found.append((weight[..., None] * window).sum(1) / weight.sum(1, keepdim=True))
        pooled = F.adaptive_avg_pool1d(torch.cat(found, dim=-1)[:, None], unit.shape[-1])[:, 0]
        stages.append(torch.where(curved[:, None], unit, pooled))
    return torch.stack(stages)


def interpolate(scores: Tensor, centers: Tensor, points: Tensor) -> Tensor:
    """(P,): all distances to all centres sorted, the three nearest used."""
    squared = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    values, order = torch.sort(squared, dim=1)
    weight = 1 / (values[:, :3] + 1e-8)
    return (weight * scores[order[:, :3]]).sum(1) / weight.sum(1)
