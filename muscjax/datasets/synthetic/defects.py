"""Defects as local changes of a surface: of its colour, of its geometry, or of both.

Every defect is placed and sized by its own random stream, so the same scan can be drawn without it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from muscjax.datasets.synthetic.shapes import Plane, Surface
from muscjax.datasets.synthetic.texture import DIGITS, Field, box_blur, mix, smoothstep, text_distance

Kind = Literal["image", "depth", "both"]

DEFECTS: dict[str, Kind] = {
    "colour_stain": "image",
    "colour_fade": "image",
    "colour_scratch": "image",
    "colour_print": "image",
    "depth_dent": "depth",
    "depth_bulge": "depth",
    "depth_warp": "depth",
    "both_hole": "both",
    "both_cut": "both",
    "both_chip": "both",
    "both_blob": "both",
}

FLOOR = 6.4  # mm; no defect cuts deeper, so that plane removal (5 mm) leaves the damaged place in the scan


@dataclasses.dataclass(frozen=True)
class _Site:
    """A place on the part; ``a, b`` are coordinates about it along a random direction, mm."""

    a: Field
    b: Field

    @property
    def distance(self) -> Field:
        return np.hypot(self.a, self.b)


def _site(
    surface: Surface, plane: Plane, rng, *, margin: float, steepest: float = 0.6, rim: bool = False
) -> _Site:
    """A random place whose surroundings (``margin`` mm) are on the part, not steep and seen by both sensors.

    ``rim``: a place at the part's outline.
    """
    reach = max(1, round(margin / plane.cell))
    gy, gx = np.gradient(surface.height, np.float32(plane.cell))
    share = box_blur(surface.inside.astype(np.float32), reach)
    if rim:
        miss = np.where(surface.clear, np.abs(share - 0.55), 2.0)
        good = miss <= max(0.05, float(miss.min()))
    else:
        flat = box_blur((surface.clear & (gx * gx + gy * gy < steepest**2)).astype(np.float32), reach)
        # Some parts are steep everywhere: then the flattest tenth of the interior has to do.
        interior = surface.inside & (share > 0.995)
        bound = min(0.9, float(np.quantile(flat[interior], 0.9)))
        good = interior & (flat >= bound)
    places = np.flatnonzero(good)
    place = int(places[int(rng.integers(0, places.size))])
    turn = float(rng.uniform(0.0, 2 * math.pi))
    du, dv = plane.u - plane.u.flat[place], plane.v - plane.v.flat[place]
    c, s = math.cos(turn), math.sin(turn)
    return _Site(a=c * du + s * dv, b=c * dv - s * du)


def _blob(site: _Site, rng, area: float, ragged: float = 0.16) -> Field:
    """Level of an irregular patch of about ``area`` mm²: 1 in its middle, 0 on its outline, less outside."""
    stretch = float(rng.uniform(1.0, 1.45))
    angle = np.arctan2(site.b * stretch, site.a / stretch)
    outline = np.full(site.a.shape, math.sqrt(area / math.pi), np.float32)
    base = outline.copy()
    for k in (2, 3, 4, 5):
        wave = np.cos(k * angle + float(rng.uniform(0.0, 2 * math.pi)))
        outline += base * (ragged / k * 1.5 * float(rng.standard_normal())) * wave
    return 1.0 - np.hypot(site.a / stretch, site.b * stretch) / np.maximum(outline, 0.3 * base)


def _tone(surface: Surface, where: Field) -> float:
    """Mean luminance of the albedo under a patch."""
    weight = np.clip(where, 0.0, 1.0) * surface.inside
    return float((surface.albedo.mean(-1) * weight).sum() / max(float(weight.sum()), 1e-6))


def _painted(surface: Surface, colour, alpha: Field) -> Surface:
    return dataclasses.replace(surface, albedo=mix(surface.albedo, colour, alpha * surface.inside))


def _area(surface: Surface, plane: Plane, rng, low: float, high: float) -> float:
    """An area in mm² between two shares of the part's own."""
    whole = float(surface.inside.sum()) * plane.cell**2
    return whole * math.exp(float(rng.uniform(math.log(low), math.log(high))))


# ---------------------------------------------------------------- only the image shows


def _stain(surface: Surface, plane: Plane, rng) -> Surface:
    """Oil, ink or rust that soaked in, darker at its border; on dark material a pale residue."""
    site = _site(surface, plane, rng, margin=3.0, steepest=1.2)
    level = _blob(site, rng, _area(surface, plane, rng, 0.007, 0.020))
    alpha = smoothstep(-0.05, 0.12, level) * (0.75 + 0.25 * smoothstep(0.45, 0.08, level))
    alpha *= np.clip(1.0 + 0.12 * plane.noise(rng, scale=1.5), 0.0, 1.0)
    if _tone(surface, level) > 0.12:
        tint = ((0.42, 0.32, 0.20), (0.36, 0.45, 0.75), (0.75, 0.40, 0.22))[int(rng.integers(0, 3))]
        return _painted(surface, surface.albedo * np.asarray(tint, np.float32), 0.85 * alpha)
    return _painted(surface, (0.33, 0.29, 0.22), 0.55 * alpha)


def _fade(surface: Surface, plane: Plane, rng) -> Surface:
    """Discolouration with a soft border: yellowed by heat, or bleached."""
    site = _site(surface, plane, rng, margin=3.5, steepest=1.2)
    level = _blob(site, rng, _area(surface, plane, rng, 0.014, 0.030), ragged=0.10)
    alpha = smoothstep(-0.12, 0.45, level)
    if _tone(surface, level) > 0.12 and rng.random() < 0.6:
        return _painted(surface, surface.albedo * np.asarray((0.78, 0.58, 0.30), np.float32), 0.85 * alpha)
    grey = surface.albedo.mean(-1, keepdims=True)
    return _painted(surface, 0.55 * grey + 0.45 * surface.albedo + np.float32(0.14), 0.8 * alpha)


def _scratch(surface: Surface, plane: Plane, rng) -> Surface:
    """A thin scuff line without depth, slightly bent and broken."""
    site = _site(surface, plane, rng, margin=5.0, steepest=1.2)
    half = float(rng.uniform(7.0, 11.0))
    bend = float(rng.normal(0.0, 0.012))
    wander = float(rng.uniform(0.2, 0.4)) * np.sin(site.a * float(rng.uniform(0.3, 0.6)))
    off = np.abs(site.b - bend * site.a**2 - wander)
    width = float(rng.uniform(0.38, 0.58))
    alpha = smoothstep(width + 0.25, width - 0.15, off) * smoothstep(half, half - 2.0, np.abs(site.a))
    alpha *= np.clip(0.85 + 0.25 * plane.noise(rng, scale=1.2), 0.0, 1.0)
    if _tone(surface, alpha) > 0.22:
        return _painted(surface, surface.albedo * np.float32(0.30), 0.9 * alpha)
    return _painted(surface, surface.albedo * np.float32(0.4) + np.float32(0.38), 0.85 * alpha)


def _print(surface: Surface, plane: Plane, rng) -> Surface:
    """A print where none belongs: a doubled or misplaced code."""
    site = _site(surface, plane, rng, margin=4.0, steepest=1.2)
    word = "".join(DIGITS[int(i)] for i in rng.integers(0, len(DIGITS), int(rng.integers(3, 5))))
    height = float(rng.uniform(3.4, 4.2))
    ink = smoothstep(0.72, 0.38, text_distance(word, site.a, site.b, height))
    ink *= np.clip(0.85 + 0.2 * plane.noise(rng, scale=1.0), 0.0, 1.0)
    colour = (0.035, 0.035, 0.045) if _tone(surface, ink) > 0.22 else (0.60, 0.60, 0.58)
    return _painted(surface, colour, 0.85 * ink)


# ---------------------------------------------------------------- only the depth shows


def _bowl(surface: Surface, plane: Plane, rng, sign: float) -> Surface:
    site = _site(surface, plane, rng, margin=3.5)
    # Beyond 0.8 of the radius the change is below the mask's threshold.
    area = _area(surface, plane, rng, 0.010, 0.025) / 0.64
    level = np.clip(_blob(site, rng, area, ragged=0.08), 0.0, 1.0)
    depth = float(rng.uniform(1.2, 2.0))
    moved = surface.height + np.float32(sign * depth) * (1.0 - (1.0 - level) ** 2) ** 2
    moved = np.maximum(moved, np.minimum(surface.height, FLOOR))
    return dataclasses.replace(surface, height=np.where(surface.inside, moved, surface.height))


def _dent(surface: Surface, plane: Plane, rng) -> Surface:
    """A shallow hollow."""
    return _bowl(surface, plane, rng, -1.0)


def _bulge(surface: Surface, plane: Plane, rng) -> Surface:
    """A swelling."""
    return _bowl(surface, plane, rng, 1.0)


def _warp(surface: Surface, plane: Plane, rng) -> Surface:
    """A lifted piece of the rim."""
    site = _site(surface, plane, rng, margin=2.0, rim=True)
    area = _area(surface, plane, rng, 0.014, 0.026) / 0.64
    # About half of the patch hangs over the outline.
    level = np.clip(_blob(site, rng, 2.0 * area, ragged=0.05), 0.0, 1.0)
    lift = float(rng.uniform(1.6, 2.6)) * (1.0 - (1.0 - level) ** 2) ** 2
    return dataclasses.replace(
        surface, height=surface.height + np.where(surface.inside, lift, 0.0).astype(np.float32)
    )


# ---------------------------------------------------------------- both show


def _hole(surface: Surface, plane: Plane, rng) -> Surface:
    """A blow hole: ragged, dark, a few millimetres deep."""
    site = _site(surface, plane, rng, margin=2.5)
    level = _blob(site, rng, _area(surface, plane, rng, 0.004, 0.010), ragged=0.2)
    sunk = smoothstep(-0.05, 0.35, level)
    floor = np.maximum(surface.height - float(rng.uniform(2.5, 4.5)), FLOOR)
    floor = np.minimum(floor + 0.2 * plane.noise(rng, scale=1.2), surface.height)
    damaged = dataclasses.replace(
        surface,
        height=mix(surface.height, floor, sunk * surface.inside),
        gloss=surface.gloss * (1.0 - 0.9 * sunk),
    )
    return _painted(damaged, surface.albedo * np.float32(0.45), smoothstep(0.0, 0.4, level))


def _cut(surface: Surface, plane: Plane, rng) -> Surface:
    """A gouge with a V-shaped groove, fresh material and a small burr."""
    site = _site(surface, plane, rng, margin=4.0)
    half = float(rng.uniform(4.5, 7.5))
    width = float(rng.uniform(0.9, 1.4))
    off = np.abs(site.b - float(rng.normal(0.0, 0.012)) * site.a**2 + 0.12 * plane.noise(rng, scale=2.0))
    ends = smoothstep(half, half - 2.0, np.abs(site.a))
    depth = float(rng.uniform(1.6, 2.6)) * ends * np.clip(1.0 - off / width, 0.0, 1.0) ** 0.8
    burr = 0.35 * ends * np.exp(-(((off - width - 0.3) / 0.35) ** 2))
    deepest = np.minimum(surface.height, FLOOR)
    height = np.maximum(surface.height - depth + burr, deepest)
    damaged = dataclasses.replace(
        surface, height=np.where(surface.inside, height, surface.height).astype(np.float32)
    )
    fresh = surface.albedo * np.float32(0.7) + np.float32(0.12)
    return _painted(damaged, fresh, 0.7 * ends * smoothstep(width, 0.6 * width, off))


def _chip(surface: Surface, plane: Plane, rng) -> Surface:
    """A piece broken off the rim, with a rough and paler fracture."""
    site = _site(surface, plane, rng, margin=2.0, rim=True)
    area = _area(surface, plane, rng, 0.006, 0.016)
    level = _blob(site, rng, 2.0 * area, ragged=0.22)
    broken = smoothstep(0.0, 0.12, level)
    rough = plane.noise(rng, scale=2.0)
    fracture = FLOOR + 1.0 + 0.5 * rough + 2.5 * (1.0 - np.clip(level, 0.0, 1.0))
    fracture = np.clip(fracture, FLOOR, np.maximum(surface.height - 1.2, FLOOR))
    height = np.where(surface.inside, np.minimum(surface.height, mix(surface.height, fracture, broken)), 0.0)
    damaged = dataclasses.replace(
        surface,
        height=height.astype(np.float32),
        bump=surface.bump + 0.08 * rough * broken,
        gloss=surface.gloss * (1.0 - 0.8 * broken),
    )
    fresh = (
        surface.albedo.mean(-1, keepdims=True) * np.float32(0.5)
        + surface.albedo * np.float32(0.5)
        + np.float32(0.06)
    )
    return _painted(damaged, fresh, 0.8 * broken)


def _contamination(surface: Surface, plane: Plane, rng) -> Surface:
    """A lump of something else that stuck: glue, swarf, dough."""
    site = _site(surface, plane, rng, margin=3.0, steepest=1.2)
    level = _blob(site, rng, _area(surface, plane, rng, 0.006, 0.016), ragged=0.2)
    dome = np.sqrt(np.clip(1.0 - (1.0 - np.clip(level, 0.0, 1.0)) ** 2, 0.0, 1.0))
    lump = float(rng.uniform(1.2, 2.2)) * dome * np.clip(1.0 + 0.12 * plane.noise(rng, scale=1.6), 0.5, 1.5)
    cover = smoothstep(0.0, 0.12, level)
    colours = ((0.16, 0.09, 0.045), (0.09, 0.10, 0.10), (0.55, 0.50, 0.34))
    dark = _tone(surface, level) < 0.12
    colour = colours[2 if dark else int(rng.integers(0, 3))]
    damaged = dataclasses.replace(
        surface,
        height=(surface.height + lump * surface.inside).astype(np.float32),
        gloss=mix(surface.gloss, np.float32(0.22), cover),
        bump=surface.bump * (1.0 - cover),
    )
    return _painted(damaged, colour, 0.92 * cover)


_APPLY = {
    "colour_stain": _stain,
    "colour_fade": _fade,
    "colour_scratch": _scratch,
    "colour_print": _print,
    "depth_dent": _dent,
    "depth_bulge": _bulge,
    "depth_warp": _warp,
    "both_hole": _hole,
    "both_cut": _cut,
    "both_chip": _chip,
    "both_blob": _contamination,
}


def damage(name: str, surface: Surface, plane: Plane, rng) -> Surface:
    """``surface`` with one defect of ``DEFECTS``; place, size and look come from ``rng``."""
    return _APPLY[name](surface, plane, rng)
