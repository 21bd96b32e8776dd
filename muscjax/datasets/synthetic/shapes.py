"""Parametric parts as height fields: outline, relief, albedo, gloss and print, in millimetres.

A part is a function of coordinates in its own frame. Everything that differs between two good samples of
one product (size, texture window, tone, print offset) is drawn from the generator it is given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from muscjax.datasets.synthetic.texture import (
    Field,
    mix,
    noise,
    paint,
    plateau,
    smooth_max,
    smoothstep,
    text_distance,
)


@dataclasses.dataclass(frozen=True)
class Plane:
    """The grid on the bench that a part is drawn on; ``u, v`` are the part's own axes."""

    u: Field  # (n, n) float32, mm
    v: Field  # (n, n) float32, mm
    cell: float  # mm

    @property
    def shape(self) -> tuple[int, int]:
        return (self.u.shape[0], self.u.shape[1])

    def noise(self, rng, *, scale: float, beta: float = 4.0) -> Field:
        return noise(self.shape, self.cell, rng, scale=scale, beta=beta)


@dataclasses.dataclass(frozen=True)
class Surface:
    """What the light falls on, one value per grid cell."""

    height: Field  # (n, n) float32, mm above the bench; 0 off the part
    bump: Field  # (n, n) float32, mm; relief too fine for the depth sensor, seen by the light only
    albedo: np.ndarray  # (n, n, 3) float32, linear
    gloss: Field  # (n, n) float32, strength of the mirror-like reflection
    inside: np.ndarray  # (n, n) bool, the part
    clear: np.ndarray  # (n, n) bool, the part where the depth sensor's projector reaches it
    metal: float  # 0 plastic (white highlights) .. 1 metal (highlights take the albedo's colour)
    shininess: float  # Blinn exponent


@dataclasses.dataclass(frozen=True)
class Part:
    """A product: how to draw it and how it lies on the bench."""

    build: Callable[[Plane, np.random.Generator], Surface]
    turn: float  # degrees; the pose turns by up to this much either way, 180 is any pose
    about: str


def _polar(plane: Plane) -> tuple[Field, Field]:
    return np.hypot(plane.u, plane.v), np.arctan2(plane.v, plane.u)


def _box(u: Field, v: Field, half_u: float, half_v: float, corner: float) -> Field:
    """Distance into a rounded rectangle (negative outside)."""
    qu, qv = np.abs(u) - (half_u - corner), np.abs(v) - (half_v - corner)
    outside = np.hypot(np.maximum(qu, 0.0), np.maximum(qv, 0.0))
    return corner - outside - np.minimum(np.maximum(qu, qv), 0.0)


def _tint(colour: tuple[float, float, float], rng, spread: float = 0.02) -> tuple[float, float, float]:
    """The batch tone of one sample: brightness and, less, hue."""
    gain = 1.0 + spread * rng.standard_normal() + 0.4 * spread * rng.standard_normal(3)
    return tuple(float(c * g) for c, g in zip(colour, gain, strict=True))  # type: ignore[return-value]


def _brushed(coordinate: Field, rng, pitch: float) -> Field:
    """Streaks that depend on one coordinate only, as a tool leaves them."""
    profile = rng.standard_normal(512).astype(np.float32)
    position = (coordinate / pitch) % 511.0
    index = position.astype(np.int32)
    fraction = position - index
    return profile[index] * (1.0 - fraction) + profile[index + 1] * fraction


def housing(plane: Plane, rng) -> Surface:
    """A cast housing: flange with four bolt bosses, bored dome, ribs, raised type and an ink-jet code."""
    size = 1.0 + 0.004 * rng.standard_normal()
    u, v = plane.u / size, plane.v / size
    r, _ = _polar(Plane(u, v, plane.cell))
    flange = _box(u, v, 32.0, 24.0, 7.0)
    height = plateau(flange, 9.0, 1.2)
    boss = np.hypot(np.abs(u) - 25.0, np.abs(v) - 17.0)
    height = smooth_max(height, np.where(flange > 0, plateau(6.0 - boss, 12.0, 0.8), 0.0), 1.5)
    # Ribs run from the dome to the bosses and fall off outwards.
    along = (np.abs(u) * 25.0 + np.abs(v) * 17.0) / 30.23
    across = np.abs(np.abs(u) * 17.0 - np.abs(v) * 25.0) / 30.23
    rib = np.where(along < 27.0, 17.2 - 0.20 * along, 0.0) - 6.0 * smoothstep(0.9, 2.1, across)
    height = smooth_max(height, np.where(across < 2.2, rib, 0.0), 2.0)
    height = smooth_max(height, plateau(18.0 - r, 17.6, 1.8), 2.5)
    bore = 10.5
    height = np.where(r < bore + 1.0, np.minimum(height, 16.6 + (r - bore)), height)
    height = np.where(r < bore, 12.6 + 1.4 * smoothstep(4.2, 4.0, r), height)
    bolt = 2.7
    height = np.where(boss < bolt, 6.6, height)
    raised = text_distance("A-356", u, v - 20.0, 4.2)
    height = height + 0.6 * smoothstep(0.55, 0.25, raised) * (boss > 6.5)
    inside = flange > 0
    machined = ((r > bore) & (r < 16.6)) | ((boss > bolt) & (boss < 5.3))

    shape = plane.shape
    cast = plane.noise(rng, scale=0.9) + 0.5 * plane.noise(rng, scale=2.6)
    turned = _brushed(np.where(r < 17.5, r, boss), rng, 0.22)
    albedo = paint(shape, _tint((0.40, 0.41, 0.42), rng))
    albedo *= (1.0 + 0.05 * plane.noise(rng, scale=5.0) + 0.05 * cast)[..., None]
    albedo = np.where(machined[..., None], paint(shape, _tint((0.58, 0.585, 0.59), rng, 0.01)), albedo)
    albedo *= (1.0 - 0.45 * ((boss < bolt) | (r < 4.0)))[..., None]
    shift = rng.normal(0.0, 0.3, 2)
    code = text_distance("LOT 4172", u - float(shift[0]), v + 20.0 - float(shift[1]), 2.6)
    ink = smoothstep(0.42, 0.18, code) * (0.85 + 0.1 * plane.noise(rng, scale=0.6))
    albedo = mix(albedo, (0.03, 0.03, 0.035), np.clip(ink, 0.0, 1.0) * inside)
    bump = np.where(machined, 0.006 * turned, 0.030 * cast).astype(np.float32)
    gloss = np.where(machined, 0.55, 0.22).astype(np.float32)
    return Surface(height * inside, bump, albedo, gloss, inside, inside, metal=0.8, shininess=22.0)


def knob(plane: Plane, rng) -> Surface:
    """A turned knob: fluted grip, dished and brushed top with a painted pointer, scale on the skirt."""
    size = 1.0 + 0.003 * rng.standard_normal()
    u, v = plane.u / size, plane.v / size
    r, theta = _polar(Plane(u, v, plane.cell))
    skirt = 30.5 - r
    height = plateau(skirt, 10.0, 0.8)
    flutes = 18
    grip = 22.4 + 0.85 * np.cos(flutes * theta)
    body = grip - r
    height = np.maximum(height, np.where(body > 0, plateau(body, 17.0, 4.2), 0.0))
    top = r < 18.0
    height = np.where(top, 16.0 - 1.2 * (1.0 - (r / 18.0) ** 2), height)
    height = np.where((r >= 18.0) & (r < 19.2), np.minimum(16.0 + (r - 18.0) / 1.2, height), height)
    line = (np.abs(v) < 1.0) & (u > 6.0) & (u < 16.6)
    height = height - 0.5 * line
    inside = skirt > 0

    shape = plane.shape
    ring = _brushed(r, rng, 0.16) + 0.6 * _brushed(r, rng, 0.45)
    black = plane.noise(rng, scale=0.7)
    albedo = paint(shape, _tint((0.055, 0.057, 0.062), rng, 0.03)) * (1.0 + 0.10 * black)[..., None]
    albedo = np.where(
        top[..., None], paint(shape, _tint((0.50, 0.49, 0.47), rng)) * (1.0 + 0.05 * ring)[..., None], albedo
    )
    shift = float(rng.normal(0.0, 0.15))
    step = 2 * math.pi / 30
    offset = np.abs((theta + step / 2) % step - step / 2) * r
    long_step = 2 * math.pi / 10
    is_long = np.abs((theta + long_step / 2) % long_step - long_step / 2) * r < 1.0
    start = np.where(is_long, 24.6, 26.6)
    tick = (
        smoothstep(0.42, 0.22, offset)
        * (r > start + shift)
        * (r < 29.3 + shift)
        * (theta < 2.3)
        * (theta > -2.3)
    )
    albedo = mix(albedo, (0.62, 0.62, 0.60), 0.92 * tick)
    albedo = mix(albedo, (0.70, 0.68, 0.64), 0.95 * line)
    name = text_distance("VOL", u + 7.0, v, 3.4)
    albedo = mix(albedo, (0.05, 0.05, 0.05), 0.9 * smoothstep(0.5, 0.25, name))
    bump = np.where(top, 0.010 * ring, 0.014 * black).astype(np.float32)
    gloss = np.where(top, 0.55, 0.12).astype(np.float32) * (1.0 - 0.7 * tick)
    return Surface(
        (height * inside).astype(np.float32), bump, albedo, gloss, inside, inside, metal=0.6, shininess=26.0
    )


def cap(plane: Plane, rng) -> Surface:
    """A moulded closure: side ridges, recessed panel with raised lettering, arrows and a printed code."""
    size = 1.0 + 0.003 * rng.standard_normal()
    u, v = plane.u / size, plane.v / size
    r, theta = _polar(Plane(u, v, plane.cell))
    rim = 30.0 + 0.35 * np.cos(72 * theta) - r
    height = plateau(rim, 15.0, 3.2)
    height = height - 1.3 * smoothstep(25.6, 24.8, r)
    height = height + 1.1 * smoothstep(11.2, 10.4, r)
    height = height - 0.5 * smoothstep(1.6, 0.9, r)
    for k, word in enumerate(("CLOSE", "TIGHT")):
        turned = (theta - math.pi * k + math.pi) % (2 * math.pi) - math.pi
        letters = text_distance(word, turned * 18.0, 18.0 - r, 5.2)
        height = height + 0.9 * smoothstep(0.85, 0.45, letters)
    for k in (0, 1):
        turned = (theta - math.pi * k - math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
        arc = (np.abs(turned) < 0.36) & (np.abs(r - 18.0) < 0.7)
        tip = turned * 18.0 - 6.0
        head = (tip > 0) & (tip < 3.4) & (np.abs(r - 18.0) < 0.62 * (3.4 - tip))
        height = height + 0.8 * (arc | head)
    inside = rim > 0

    shape = plane.shape
    grain = plane.noise(rng, scale=0.8)
    flow = plane.noise(rng, scale=14.0)
    albedo = (
        paint(shape, _tint((0.035, 0.145, 0.40), rng, 0.03)) * (1.0 + 0.03 * grain + 0.04 * flow)[..., None]
    )
    shift = rng.normal(0.0, 0.3, 2)
    for line, word in ((-3.1, "EXP"), (3.1, "0627")):
        code = text_distance(word, u - float(shift[0]), v - line - float(shift[1]), 4.2)
        ink = smoothstep(0.42, 0.2, code) * np.clip(0.88 + 0.08 * plane.noise(rng, scale=0.6), 0.0, 1.0)
        albedo = mix(albedo, (0.72, 0.72, 0.70), ink)
    bump = (0.010 * grain + 0.02 * flow).astype(np.float32)
    gloss = np.full(shape, 0.30, np.float32)
    return Surface(
        (height * inside).astype(np.float32), bump, albedo, gloss, inside, inside, metal=0.0, shininess=40.0
    )


def biscuit(plane: Plane, rng) -> Surface:
    """A baked biscuit: scalloped edge, docker holes, stamped ring and word, crumb relief, uneven browning."""
    size = 1.0 + 0.010 * rng.standard_normal()
    u, v = plane.u / size, plane.v / size
    r, theta = _polar(Plane(u, v, plane.cell))
    edge = 28.6 + 1.0 * np.abs(np.cos(10 * theta)) - r
    for k in (2, 3, 5):
        edge = edge + 0.22 * float(rng.standard_normal()) * np.cos(k * theta + float(rng.uniform(0, 6.28)))
    slow = plane.noise(rng, scale=18.0)
    crumb = plane.noise(rng, scale=1.6)
    fine = plane.noise(rng, scale=0.7)
    height = plateau(edge, 10.5, 3.0) + 0.9 * smoothstep(29.0, 4.0, r) + 0.20 * slow + 0.10 * crumb
    height = height - 0.7 * smoothstep(1.1, 0.5, np.abs(r - 22.5))
    # Docker holes on three rings.
    holes = np.zeros(plane.shape, np.float32)
    for radius, count in ((25.6, 20), (10.0, 8), (4.4, 4)):
        step = 2 * math.pi / count
        gap = np.hypot(((theta + step / 2) % step - step / 2) * r, r - radius)
        holes = np.maximum(holes, smoothstep(1.0, 0.55, gap))
    height = height - 1.8 * holes
    letters = np.full(plane.shape, 9.0, np.float32)
    for k, word in enumerate(("BUTTER", "CRISP")):
        turned = (theta - math.pi * k + math.pi) % (2 * math.pi) - math.pi
        letters = np.minimum(letters, text_distance(word, turned * 16.0, 16.0 - r, 4.6))
    stamp = smoothstep(0.75, 0.35, letters)
    height = height - 0.8 * stamp
    inside = edge > 0

    baked = float(np.clip(rng.normal(0.5, 0.10), 0.2, 0.8))
    brown = 0.55 * smoothstep(6.5, 0.5, edge) + 0.10 * slow + 0.05 * crumb + 0.25 * (baked - 0.5) + 0.12
    albedo = paint(plane.shape, _tint((0.62, 0.40, 0.175), rng))
    albedo = mix(albedo, (0.30, 0.125, 0.035), np.clip(brown, 0.0, 1.0))
    albedo *= (1.0 + 0.06 * fine + 0.05 * crumb - 0.25 * holes - 0.10 * stamp)[..., None]
    bump = (0.045 * fine + 0.05 * crumb).astype(np.float32)
    gloss = np.full(plane.shape, 0.05, np.float32)
    return Surface(
        (height * inside).astype(np.float32), bump, albedo, gloss, inside, inside, metal=0.0, shininess=12.0
    )


def rope(plane: Plane, rng) -> Surface:
    """A coil of laid rope: a spiral of three twisted strands, one of them a coloured tracer."""
    pitch, tube = 7.9, 4.35
    r, theta = _polar(plane)
    theta = theta % (2 * math.pi)
    turns, first = 3.7, 0.35
    lap = np.clip(np.round(r / pitch - theta / (2 * math.pi)), 0, 4)
    # The cord lies on the lap that is nearest among those that the spiral really has.
    wound = theta / (2 * math.pi) + lap
    wound = np.where(wound > turns, wound - 1, wound)
    wound = np.where(wound < first, wound + 1, wound)
    offset = r - pitch * wound
    angle = 2 * math.pi * wound
    length = pitch * angle**2 / (4 * math.pi)
    ends = smoothstep(turns, turns - 0.02, wound) * smoothstep(first, first + 0.05, wound)
    thick = tube * (0.9 + 0.1 * ends)
    inside = np.abs(offset) < thick
    round_off = np.sqrt(np.maximum(thick**2 - offset**2, 0.0))
    around = np.arcsin(np.clip(offset / thick, -1.0, 1.0))
    lay = 11.5 * (1.0 + 0.01 * rng.standard_normal())
    slack = 0.10 * plane.noise(rng, scale=9.0)
    phase = 2 * math.pi * length / lay - around + float(rng.uniform(0, 6.28)) + slack
    strands = 3
    within = phase * strands / (2 * math.pi)
    strand = np.abs((within % 1.0) - 0.5) * 2.0
    relief = 1.1 * np.sqrt(np.maximum(1.0 - strand**2, 0.0))
    height = np.where(inside, tube + 0.92 * round_off - 1.0 + relief, 0.0)

    shape = plane.shape
    fibre = np.sin(9.0 * 2 * math.pi * (within % 1.0) + 1.3 * plane.noise(rng, scale=2.0))
    fuzz = plane.noise(rng, scale=0.6)
    which = np.floor(within).astype(np.int32) % strands
    albedo = paint(shape, _tint((0.50, 0.40, 0.255), rng, 0.03))
    albedo = np.where((which == 1)[..., None], paint(shape, _tint((0.06, 0.16, 0.27), rng)), albedo)
    soil = plane.noise(rng, scale=7.0)
    albedo *= (1.0 + 0.10 * fibre + 0.09 * fuzz + 0.04 * soil - 0.35 * strand**6)[..., None]
    bump = (0.05 * fibre + 0.03 * fuzz).astype(np.float32)
    gloss = np.full(shape, 0.05, np.float32)
    return Surface(height.astype(np.float32), bump, albedo, gloss, inside, inside, metal=0.0, shininess=10.0)


def gear(plane: Plane, rng) -> Surface:
    """A moulded gear: 22 teeth, recessed web with five spokes, hub with a square drive, gate marks."""
    size = 1.0 + 0.003 * rng.standard_normal()
    u, v = plane.u / size, plane.v / size
    r, theta = _polar(Plane(u, v, plane.cell))
    step = 2 * math.pi / 22
    flank = np.abs((theta + step / 2) % step - step / 2) * 28.0
    outline = 25.6 + 4.8 * smoothstep(2.75, 1.15, flank) - r
    height = plateau(outline, 13.0, 0.7)
    web = smoothstep(22.3, 21.5, r) * smoothstep(10.2, 11.0, r)
    fifth = 2 * math.pi / 5
    spoke_gap = np.abs((theta + fifth / 2) % fifth - fifth / 2) * r
    web = web * smoothstep(1.7, 2.5, spoke_gap)
    height = height - 4.6 * web
    height = smooth_max(height, plateau(10.0 - r, 18.0, 0.9), 1.0)
    drive = _box(u, v, 4.2, 4.2, 0.8)
    height = np.where(drive > 0, 13.2, height)
    middle = (theta + fifth) % fifth - fifth / 2
    gate = smoothstep(1.5, 1.1, np.hypot(middle * r, r - 16.4))
    height = height + 0.7 * gate
    module = text_distance("M1.5".replace(".", "-"), u, v + 23.8, 2.2)
    height = height + 0.4 * smoothstep(0.45, 0.2, module)
    inside = outline > 0

    shape = plane.shape
    glass = plane.noise(rng, scale=0.8)
    flow = plane.noise(rng, scale=9.0)
    albedo = paint(shape, _tint((0.60, 0.575, 0.50), rng)) * (1.0 + 0.025 * glass + 0.035 * flow)[..., None]
    shift = float(rng.normal(0.0, 0.08))
    dot = smoothstep(1.7, 1.4, np.hypot((middle - shift) * r, r - 24.0)) * (theta > 0.0) * (theta < fifth)
    albedo = mix(albedo, (0.45, 0.04, 0.03), 0.9 * dot)
    bump = (0.012 * glass).astype(np.float32)
    gloss = np.full(shape, 0.16, np.float32)
    return Surface(
        (height * inside).astype(np.float32), bump, albedo, gloss, inside, inside, metal=0.0, shininess=30.0
    )


PARTS: dict[str, Part] = {
    "housing": Part(housing, 10.0, "cast aluminium housing with bolt bosses, bore and ribs"),
    "knob": Part(knob, 180.0, "turned knob with brushed top and printed scale"),
    "cap": Part(cap, 180.0, "moulded closure with raised lettering"),
    "biscuit": Part(biscuit, 180.0, "baked biscuit with docker holes"),
    "rope": Part(rope, 180.0, "coil of three-strand rope"),
    "gear": Part(gear, 180.0, "moulded gear with spokes and drive"),
}
