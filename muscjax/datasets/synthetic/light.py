"""Light on a height field: a soft key lamp with shadows, a dome with approximate occlusion, soft boxes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from muscjax.datasets.synthetic.shapes import Surface
from muscjax.datasets.synthetic.texture import Field, box_blur, smoothstep


@dataclasses.dataclass(frozen=True)
class Lighting:
    """The lamp and the exposure of one scan."""

    azimuth: float  # radians, direction towards the lamp in the picture plane
    elevation: float  # radians
    exposure: float
    balance: tuple[float, float, float]

    @property
    def direction(self) -> tuple[float, float, float]:
        flat = math.cos(self.elevation)
        return flat * math.cos(self.azimuth), flat * math.sin(self.azimuth), math.sin(self.elevation)


def draw_lighting(rng) -> Lighting:
    balance = 1.0 + 0.012 * rng.standard_normal(3)
    return Lighting(
        azimuth=math.radians(-128.0 + 6.0 * float(rng.standard_normal())),
        elevation=math.radians(44.0 + 2.0 * float(rng.standard_normal())),
        exposure=1.0 + 0.035 * float(rng.standard_normal()),
        balance=(float(balance[0]), float(balance[1]), float(balance[2])),
    )


def _moved(field: Field, rows: int, columns: int) -> Field:
    """``field`` read at (row + rows, column + columns), border repeated."""
    n, m = field.shape
    r = np.clip(np.arange(n) + rows, 0, n - 1)
    c = np.clip(np.arange(m) + columns, 0, m - 1)
    return field[r][:, c]


def shadow(
    height: Field, cell: float, *, azimuth: float, elevation: float, softness: float, ceiling: float
) -> Field:
    """1 in the light, 0 in the shade of a lamp; the edge is ``softness`` mm wide in height.

    Nothing is taller than ``ceiling`` mm.
    """
    rise = math.tan(elevation)
    reach = ceiling / rise / cell
    excess = np.full(height.shape, -1e3, np.float32)
    step, distance = 1.0, 1.5
    while distance < reach + 1:
        dr, dc = round(distance * math.sin(azimuth)), round(distance * math.cos(azimuth))
        travelled = math.hypot(dr, dc) * cell * rise
        np.maximum(excess, _moved(height, dr, dc) - np.float32(travelled), out=excess)
        distance += step
        step *= 1.06
    return 1.0 - smoothstep(-0.5 * softness, softness, excess - height)


def key_shadow(height: Field, light: Lighting, cell: float, ceiling: float) -> Field:
    """The key lamp's ``shadow``."""
    return shadow(
        height, cell, azimuth=light.azimuth, elevation=light.elevation, softness=1.6, ceiling=ceiling
    )


def shade(surface: Surface, light: Lighting, lit: Field, cell: float) -> np.ndarray:
    """Linear radiance (n, n, 3) of a surface on which ``lit`` is the key lamp's shadow."""
    relief = surface.height + surface.bump
    gy, gx = np.gradient(relief, np.float32(cell))
    nz = 1.0 / np.sqrt(1.0 + gx * gx + gy * gy)
    nx, ny = -gx * nz, -gy * nz
    lx, ly, lz = light.direction
    key = np.maximum(nx * lx + ny * ly + nz * lz, 0.0) * lit
    fill = np.maximum(-0.55 * nx * lx - 0.55 * ny * ly + 0.8 * nz, 0.0)
    open_sky = np.ones_like(relief)
    for radius_mm, strength in ((0.9, 0.38), (3.0, 0.16)):
        around = box_blur(surface.height, max(1, round(radius_mm / cell)), 2)
        open_sky = open_sky / (1.0 + strength * np.maximum(around - surface.height, 0.0) / (0.45 * radius_mm))
    diffuse = open_sky * (0.22 * (0.5 + 0.5 * nz) + 0.10 * fill) + 0.95 * key

    # The eye is straight above: the half vector of a lamp needs no per-pixel view direction.
    norm = math.sqrt(lx * lx + ly * ly + (lz + 1.0) ** 2)
    half = np.maximum((nx * lx + ny * ly + nz * (lz + 1.0)) / norm, 0.0)
    mirror = half**surface.shininess * (0.35 + 0.65 * lit) * 1.3
    # A strip light beside the camera and a broad one opposite, seen in the reflected direction 2 nz n - z.
    rx, ry = 2.0 * nz * nx, 2.0 * nz * ny
    strip = np.exp(-(((rx - 0.38) / 0.16) ** 2) - ((ry - 0.10) / 0.75) ** 2)
    broad = np.exp(-(((rx + 0.30) / 0.55) ** 2) - ((ry + 0.45) / 0.30) ** 2)
    overhead = 0.32 * np.exp(-((rx * rx + ry * ry) / 0.35))
    mirror = (mirror + open_sky * (0.55 * strip + 0.5 * broad + surface.metal * overhead)) * surface.gloss
    mirror = np.where(surface.inside, mirror, 0.0)
    colour = surface.albedo * (diffuse * (1.0 - 0.5 * surface.metal * surface.inside))[..., None]
    tint = 1.0 + surface.metal * (1.6 * surface.albedo - 1.0)
    return colour + mirror[..., None] * tint


def bench_light(light: Lighting) -> float:
    """What ``shade`` multiplies the albedo of the open bench with."""
    return 0.22 + 0.10 * 0.8 + 0.95 * light.direction[2]
