"""One scan of the line: part, pose, light, a defect or none, sensors, and the mask of what it changed."""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Literal

import numpy as np

from muscjax.datasets.synthetic import camera as cam
from muscjax.datasets.synthetic.defects import DEFECTS, damage
from muscjax.datasets.synthetic.light import draw_lighting, key_shadow
from muscjax.datasets.synthetic.shapes import PARTS, Plane, Surface
from muscjax.errors import InputError

# About three standard deviations of the sensors' noise: below it nobody could tell the defect.
RGB_THRESHOLD = 6.0  # grey levels, any channel
DEPTH_THRESHOLD = 0.2  # mm along the optical axis
SIZES = (64, 1024)


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One scan; ``kind`` says who can see the defect ("good": there is none)."""

    rgb: np.ndarray  # (H, W, 3) uint8
    xyz: np.ndarray  # (H, W, 3) float32, metres, camera frame, 0 where the depth is lost
    mask: np.ndarray  # (H, W) bool
    kind: Literal["good", "image", "depth", "both"]


def parts() -> tuple[str, ...]:
    """Names of the products that can be rendered."""
    return tuple(PARTS)


def check_part(part: str) -> None:
    """InputError that names the choices where ``part`` is none of them."""
    if part not in PARTS:
        raise InputError(f"part: found {part!r}, expected one of {', '.join(PARTS)}")


def check_count(name: str, value: int, low: int, high: int) -> None:
    """InputError where an option is not a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InputError(f"{name}: found {value!r}, expected a whole number from {low} to {high}")


def _streams(part: str, seed: int, count: int) -> list[np.random.Generator]:
    children = np.random.SeedSequence([zlib.crc32(part.encode()), seed]).spawn(count)
    return [np.random.default_rng(child) for child in children]


def _pose(part: str, camera: cam.Rays, shape_stream, pose_stream) -> tuple[Plane, Surface]:
    """The part on the bench in a pose of its own."""
    product = PARTS[part]
    turn = math.radians(product.turn * float(pose_stream.uniform(-1.0, 1.0)))
    shift = (float(pose_stream.uniform(-4.0, 4.0)), float(pose_stream.uniform(-4.0, 4.0)))
    plane = cam.plane_at(camera, turn, shift)
    surface = product.build(plane, shape_stream)
    # The part rocks a little; it never dips below the bench.
    lean = [math.tan(math.radians(0.4 * float(pose_stream.standard_normal()))) for _ in range(2)]
    ramp = lean[0] * plane.u + lean[1] * plane.v
    height = np.where(surface.inside, surface.height + ramp - ramp[surface.inside].min(), 0.0)
    bench = np.asarray(cam.BENCH, np.float32)
    return plane, dataclasses.replace(
        surface,
        height=height.astype(np.float32),
        bump=np.where(surface.inside, surface.bump, 0.0).astype(np.float32),
        albedo=np.where(surface.inside[..., None], surface.albedo, bench),
    )


def render(
    part: str, seed: int, *, defect: str | None = None, size: int = 256, noise: bool = True
) -> Rendered:
    """Render one scan of a synthetic product line.

    ``part`` is one of ``parts()``, ``defect`` one of ``DEFECTS`` or None. Everything follows from the
    arguments; scans with and without a defect at one seed share pose, light, texture and noise. Without
    ``noise`` both sensors are perfect and no depth is lost.

    The mask is where the noise-free scan changes by more than ``RGB_THRESHOLD`` grey levels in a channel,
    by more than ``DEPTH_THRESHOLD`` mm, or in its chance to lose the depth. Image defects leave the
    geometry as it is; depth defects leave the picture exactly as it is, as under perfectly diffuse light.
    Around the part, bench shadows (the lamp's and the projector's) stay those of the undamaged part.

    Raises InputError for an unknown part or defect, a negative seed, and a size outside 64..1024.
    """
    check_part(part)
    if defect is not None and defect not in DEFECTS:
        raise InputError(f"defect: found {defect!r}, expected one of {', '.join(DEFECTS)}")
    check_count("seed", seed, 0, 2**63 - 1)
    check_count("size", size, *SIZES)

    camera = cam.rays(size)
    shapes, poses, lamps, benches, grain, depths = _streams(part, seed, 6)
    plane, surface = _pose(part, camera, shapes, poses)
    light = draw_lighting(lamps)
    bench = cam.mat(size, benches)
    # One ceiling for both versions of a scan: the ray march must not depend on the defect.
    ceiling = float(surface.height.max()) + 4.0
    lit = key_shadow(surface.height, light, camera.cell, ceiling)
    reached = cam.projector_light(surface, camera, ceiling)
    seen = cam.project(surface, camera, ceiling)
    hidden = cam.hidden_from(reached, seen, camera)
    levels = cam.develop(cam.photograph(surface, light, lit, seen, camera), seen, light, bench)
    mask = np.zeros((size, size), bool)
    kind = "good"
    if defect is not None:
        kind = DEFECTS[defect]
        stream = np.random.default_rng([zlib.crc32(f"{part} {defect}".encode()), seed])
        surface = dataclasses.replace(surface, clear=surface.inside & (reached > 0.5))
        damaged = damage(defect, surface, plane, stream)
        if kind != "image":
            before, seen = seen, cam.project(damaged, camera, ceiling)
            mask |= (np.abs(seen.z - before.z) > DEPTH_THRESHOLD) | (seen.lost != before.lost)
        if kind != "depth":
            if kind == "both":
                lit = np.where(surface.inside, key_shadow(damaged.height, light, camera.cell, ceiling), lit)
            before = levels
            levels = cam.develop(cam.photograph(damaged, light, lit, seen, camera), seen, light, bench)
            mask |= np.abs(levels - before).max(-1) > RGB_THRESHOLD
    return Rendered(
        rgb=cam.expose(levels, grain if noise else None),
        xyz=cam.measure(seen, hidden, camera, depths if noise else None),
        mask=mask,
        kind=kind,
    )
