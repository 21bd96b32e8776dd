"""Resampling of organised maps in NumPy; apart from ``geometry`` for processes without JAX."""

from __future__ import annotations

import numpy as np


def resample_index(source: int, target: int) -> np.ndarray:
    """Source index of each target position, nearest rule floor(i · source / target): (target,) int64."""
    return np.arange(target) * source // target


def resample_nearest(grid: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """(h, w, ...) to (H, W, ...) by the rule of ``resample_index``; values are copied, never mixed."""
    rows, columns = resample_index(grid.shape[0], hw[0]), resample_index(grid.shape[1], hw[1])
    return grid[rows[:, None], columns[None, :]]


def nearest_sample(pixels: int, samples: int) -> np.ndarray:
    """For each pixel of a line the nearest of ``samples`` taken at floor(i · pixels / samples)."""
    return np.minimum((2 * np.arange(pixels) * samples + pixels) // (2 * pixels), samples - 1)
