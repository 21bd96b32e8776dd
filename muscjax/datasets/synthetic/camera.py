"""A pin-hole camera and a depth sensor that look down on a surface, with their noise and lost points.

World frame: millimetres, the bench at z = 0, x right and y down in the picture, z up. Camera frame: metres,
X right, Y down, Z away from the camera, as in MVTec 3D-AD.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import numpy as np

from muscjax.datasets.synthetic.light import Lighting, bench_light, shade, shadow
from muscjax.datasets.synthetic.shapes import Plane, Surface
from muscjax.datasets.synthetic.texture import Field, noise, smoothstep

DISTANCE = 600.0  # mm from the camera to the bench along the optical axis
VIEW = 120.0  # mm of the bench across the picture
TILT = (math.radians(3.0), math.radians(-2.0))  # of the bench against the sensor, about x and about y
REACH = 43.0  # mm; half the side of the grid that carries the part and its shadow
DEPTH_NOISE = 0.07  # mm, standard deviation
IMAGE_NOISE = 2.0  # grey levels, standard deviation at mid grey
BENCH = (0.022, 0.023, 0.026)  # linear albedo of the mat
LAYERS = 14  # of the ray march; a layer moves a ray by little more than a cell


@dataclasses.dataclass(frozen=True)
class Rays:
    """Everything about the camera that does not depend on the scene; ``S`` sub-pixels in the part's box.

    Pixel p of the box is sub-pixel 2p + 1, so that a [1 2 1] filter is centred on it.
    """

    ray_x: Field  # (size, size), X/Z of each pixel
    ray_y: Field  # (size, size)
    bench_z: Field  # (size, size) mm, Z of the bare bench
    box: tuple[int, int, int, int]  # rows from, to, columns from, to, of pixels that can see the grid
    column: Field  # (S, S'), grid column where the ray meets the bench
    row: Field  # (S, S')
    column_per_mm: Field  # (S, S'), grid columns per mm of height
    row_per_mm: Field
    z_per_mm: Field  # (S, S') mm of Z lost per mm of height
    x: Field  # (n, n) mm, world coordinates of the grid
    y: Field
    cell: float  # mm


@lru_cache(maxsize=4)
def rays(size: int) -> Rays:
    """The camera for pictures of ``size``² pixels; float32 arrays that callers must not write to."""
    focal = size * DISTANCE / VIEW
    # Off the lattice, so that no pixel has an X or Y of exactly 0: readers take that for "no depth".
    centre = size / 2 - 0.5 + 0.27
    (cx, sx), (cy, sy) = ((math.cos(t), math.sin(t)) for t in TILT)
    rotation = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array(
        [[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]
    )
    origin = -rotation.T @ np.array([0.0, 0.0, DISTANCE])

    def cast(rows, columns):
        a, b = np.meshgrid((columns - centre) / focal, (rows - centre) / focal)
        direction = np.stack([a, b, np.ones_like(a)], -1) @ rotation  # rows times R is R^T times columns
        depth = -origin[2] / direction[..., 2]
        return a, b, direction, depth

    pixels = np.arange(size, dtype=np.float64)
    ray_x, ray_y, direction, bench_z = cast(pixels, pixels)
    ground = origin[:2] + bench_z[..., None] * direction[..., :2]
    cell = VIEW / size / 2
    # One margin cell for the bilinear reads, and room for the parallax of the tallest part.
    usable = np.all(np.abs(ground) < REACH - 3.0, axis=-1)
    rows, columns = np.flatnonzero(usable.any(1)), np.flatnonzero(usable.any(0))
    box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
    sub_rows = (np.arange(2 * box[0], 2 * box[1] + 1) - 1) / 2
    sub_columns = (np.arange(2 * box[2], 2 * box[3] + 1) - 1) / 2
    _, _, direction, depth = cast(sub_rows, sub_columns)
    ground = origin[:2] + depth[..., None] * direction[..., :2]
    per_mm = -direction[..., :2] / direction[..., 2:]
    half = math.ceil(REACH / cell)
    axis = (np.arange(2 * half + 1) - half) * cell
    x, y = np.meshgrid(axis, axis)
    f = np.float32
    result = Rays(
        ray_x=ray_x.astype(f),
        ray_y=ray_y.astype(f),
        bench_z=bench_z.astype(f),
        box=box,
        column=(ground[..., 0] / cell + half).astype(f),
        row=(ground[..., 1] / cell + half).astype(f),
        column_per_mm=(per_mm[..., 0] / cell).astype(f),
        row_per_mm=(per_mm[..., 1] / cell).astype(f),
        z_per_mm=(1.0 / direction[..., 2]).astype(f),
        x=x.astype(f),
        y=y.astype(f),
        cell=cell,
    )
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return result


def plane_at(camera: Rays, turn: float, shift: tuple[float, float]) -> Plane:
    """The grid in the axes of a part that lies at ``shift`` (mm), turned by ``turn`` (radians)."""
    c, s = math.cos(turn), math.sin(turn)
    x, y = camera.x - shift[0], camera.y - shift[1]
    return Plane(u=c * x + s * y, v=c * y - s * x, cell=camera.cell)


def _bilinear(fields: list[Field], row: Field, column: Field) -> list[Field]:
    """Values at fractional grid places (which must lie inside), one shared set of weights."""
    width = fields[0].shape[1]
    r, c = row.astype(np.int32), column.astype(np.int32)
    fr, fc = row - r, column - c
    start = r * width + c
    w11 = fr * fc
    w10, w01 = fr - w11, fc - w11
    w00 = 1.0 - fr - w01
    values = []
    for field in fields:
        flat = field.ravel()
        values.append(
            flat.take(start) * w00
            + flat.take(start + 1) * w01
            + flat.take(start + width) * w10
            + flat.take(start + width + 1) * w11
        )
    return values


def trace(height: Field, camera: Rays, ceiling: float) -> tuple[Field, Field, Field]:
    """First hit of every sub-pixel's ray: height (mm) and grid row and column of the hit.

    Layers of equal height, ``ceiling`` above all of the surface, find the uppermost crossing; halvings and a
    secant place it in its layer.
    """
    step = ceiling / LAYERS
    width = height.shape[1]
    flat = height.ravel()
    low = np.zeros(camera.row.shape, np.float32)
    for layer in range(1, LAYERS):
        z = np.float32(layer * step)
        index = (camera.row + z * camera.row_per_mm + 0.5).astype(np.int32) * width
        index += (camera.column + z * camera.column_per_mm + 0.5).astype(np.int32)
        low[flat.take(index) >= z] = z
    high = low + np.float32(step)

    def gap(z):
        (ground,) = _bilinear(
            [height], camera.row + z * camera.row_per_mm, camera.column + z * camera.column_per_mm
        )
        return ground - z

    for _ in range(3):
        middle = 0.5 * (low + high)
        below = gap(middle) >= 0
        low = np.where(below, middle, low)
        high = np.where(below, high, middle)
    at_low, at_high = np.maximum(gap(low), 0.0), np.minimum(gap(high), 0.0)
    z = low + (high - low) * at_low / np.maximum(at_low - at_high, 1e-6)
    return z, camera.row + z * camera.row_per_mm, camera.column + z * camera.column_per_mm


@dataclasses.dataclass(frozen=True)
class Projection:
    """What the camera sees of a geometry, before light and noise."""

    z: Field  # (size, size) mm along the optical axis
    lost: Field  # (size, size) chance that the depth sensor finds nothing here, because of steepness
    bench: Field  # (size, size) 0..1, share of the pixel that shows the bench
    row: Field  # (S, S'), where each sub-pixel's ray ends on the grid
    column: Field


def _tent(sub: np.ndarray) -> np.ndarray:
    """Sub-pixels to pixels: [1 2 1]/4 in both directions."""
    sub = 0.25 * sub[0:-2:2] + 0.5 * sub[1:-1:2] + 0.25 * sub[2::2]
    return 0.25 * sub[:, 0:-2:2] + 0.5 * sub[:, 1:-1:2] + 0.25 * sub[:, 2::2]


def _box(camera: Rays) -> tuple[slice, slice]:
    top, bottom, left, right = camera.box
    return slice(top, bottom), slice(left, right)


def project(surface: Surface, camera: Rays, ceiling: float) -> Projection:
    """Depth of every pixel, and how likely the depth sensor loses it."""
    z, row, column = trace(surface.height, camera, ceiling)
    box = _box(camera)
    gy, gx = np.gradient(surface.height, np.float32(camera.cell))
    (covered,) = _bilinear([surface.inside.astype(np.float32)], row, column)
    (steep,) = _bilinear([np.hypot(gx, gy)], row[1::2, 1::2], column[1::2, 1::2])
    bench = np.ones(camera.bench_z.shape, np.float32)
    bench[box] = 1.0 - _tent(covered)
    depth = camera.bench_z.copy()
    depth[box] -= (z * camera.z_per_mm)[1::2, 1::2]
    # Structured light fails on steep walls and where the depth jumps between neighbours.
    jump = np.zeros_like(depth)
    down, across = np.abs(np.diff(depth, axis=0)), np.abs(np.diff(depth, axis=1))
    for part, step in ((jump[:-1], down), (jump[1:], down), (jump[:, :-1], across), (jump[:, 1:], across)):
        np.maximum(part, step, out=part)
    lost = 0.6 * smoothstep(1.5, 4.0, jump)
    lost[box] = np.maximum(lost[box], 0.85 * smoothstep(1.6, 5.0, steep))
    return Projection(depth, lost, bench, row, column)


def photograph(surface: Surface, light: Lighting, lit: Field, seen: Projection, camera: Rays) -> np.ndarray:
    """Linear light (size, size, 3) float32, 1 is white; the bench beyond the grid is plain."""
    radiance = np.minimum(shade(surface, light, lit, camera.cell), 1.3)
    channels = [np.ascontiguousarray(radiance[..., k]) for k in range(3)]
    rgb = np.empty((*seen.z.shape, 3), np.float32)
    rgb[:] = np.asarray(BENCH, np.float32) * np.float32(bench_light(light))
    rgb[_box(camera)] = np.stack([_tent(c) for c in _bilinear(channels, seen.row, seen.column)], -1)
    return rgb


# ---------------------------------------------------------------- sensors


def _encode(linear: np.ndarray) -> np.ndarray:
    """Linear light to grey levels 0..255: a soft shoulder above 0.6, then the display curve."""
    knee = np.float32(0.6)
    over = np.maximum(linear - knee, 0.0)
    bent = np.minimum(linear, knee) + over / (1.0 + over / (1.0 - knee))
    return 255.0 * np.maximum(bent, 0.0) ** np.float32(1.0 / 2.2)


def mat(size: int, rng) -> Field:
    """The bench's own texture (size, size), mean 1."""
    shape, pitch = (size, size), VIEW / size
    return 1.0 + 0.10 * noise(shape, pitch, rng, scale=1.2) + 0.10 * noise(shape, pitch, rng, scale=30.0)


def develop(rgb: np.ndarray, seen: Projection, light: Lighting, bench: Field) -> np.ndarray:
    """Grey levels (size, size, 3) float32 without noise: bench texture, lens fall-off, exposure."""
    size = rgb.shape[0]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    fall_off = 1.0 - 0.45 * (axis[:, None] ** 2 + axis[None, :] ** 2)
    gain = fall_off * np.float32(light.exposure) * (1.0 + seen.bench * (bench - 1.0))
    return _encode(rgb * gain[..., None] * np.asarray(light.balance, np.float32))


def expose(levels: np.ndarray, rng) -> np.ndarray:
    """Read and shot noise (none where ``rng`` is None), then 8 bits."""
    if rng is not None:
        sigma = IMAGE_NOISE * (0.6 + 0.4 * levels / 128.0)
        levels = levels + sigma * rng.standard_normal(levels.shape, dtype=np.float32)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def projector_light(surface: Surface, camera: Rays, ceiling: float) -> Field:
    """Share of the pattern projector's light, from the left of the camera, that reaches each grid cell."""
    return shadow(
        surface.height,
        camera.cell,
        azimuth=math.pi,
        elevation=math.radians(66.0),
        softness=0.2,
        ceiling=ceiling,
    )


def hidden_from(reached: Field, seen: Projection, camera: Rays) -> np.ndarray:
    """Pixels (size, size) bool that see a place which the projector's light does not reach."""
    (value,) = _bilinear([reached], seen.row[1::2, 1::2], seen.column[1::2, 1::2])
    hidden = np.zeros(seen.z.shape, bool)
    hidden[_box(camera)] = value < 0.5
    return hidden


def measure(seen: Projection, hidden: np.ndarray, camera: Rays, rng) -> np.ndarray:
    """Organised XYZ (size, size, 3) float32 metres with depth noise; lost points are all zero.

    The random fields do not depend on the scene, so two versions of one scene get the same noise. Without
    ``rng`` there is no noise and every pixel has its depth.
    """
    if rng is None:
        return _organise(seen.z, camera)
    shape = seen.z.shape
    white = rng.standard_normal(shape, dtype=np.float32)
    waves = noise(shape, 1.0, rng, scale=24.0)
    chance, speckle = rng.random((2, *shape), dtype=np.float32)
    clumps = noise(shape, 1.0, rng, scale=3.0)
    keep = (chance >= seen.lost) & (speckle > 0.002) & (clumps < 3.1) & ~hidden
    z = seen.z + np.float32(DEPTH_NOISE) * (0.93 * white + 0.37 * waves)
    return _organise(z, camera) * keep[..., None]


def _organise(z: Field, camera: Rays) -> np.ndarray:
    """XYZ (size, size, 3) float32 metres from Z in mm, to the sensor's step of 2^-20 m (about 1 µm)."""
    depth = z * np.float32(1e-3)
    xyz = np.stack([camera.ray_x * depth, camera.ray_y * depth, depth], -1)
    # Steps of a power of two are exact in float32 and let the TIFF compress.
    return np.rint(xyz * np.float32(2**20)) * np.float32(2**-20)
