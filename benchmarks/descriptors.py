"""The study behind the weight-free image descriptor: candidates on real scans, image only, in one table.

    python -m benchmarks.descriptors DATASET --out DIR [--only NAME ...] [--both]

writes ``descriptors.csv`` and ``descriptors.json`` and prints the table. Every scan is scored by all others;
the metrics are taken over the even-numbered and the odd-numbered scans apart. Choose on the even ones.

A candidate maps one image to values (h, w, C). All of them get the same constant channel, as long as their
mean vector over the even scans, so that a patch without structure is not all noise once it is normalised; it
is what ``TextureConfig.floor`` is to the descriptor of the package. SNAMD is kept out by a large gain, save
where the name says so. Foreground average precision needs XYZ maps.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax import config as configs
from muscjax import datasets, extract, metrics, outputs, pipeline, runtime
from muscjax.backbones import descriptors, texture
from muscjax.types import Array, Features

STRIDE = 8
POOL = 4.0  # standard deviation of the window that gathers statistics of pixels, pixels
OWN = configs.TextureConfig()
FIGURES = ("pixel_ap", "foreground_ap", "hit_rate", "aupro")

Describe = Callable[[Array], Array]  # (H, W, 3) in [0, 1] to (h, w, C)


def moments(image: Array, sigma: float, ny: int, nx: int, stride: int = 1) -> Array:
    """(..., H, W) under u^nx · v^ny times a Gaussian, at every ``stride``-th place."""
    rows, columns = (
        jnp.asarray(texture.gaussian_moment(side, max(1, round(side / stride)), sigma, n))
        for side, n in zip(image.shape[-2:], (ny, nx), strict=True)
    )
    return jnp.einsum("iy,...yx,jx->...ij", rows, image, columns, precision=lax.Precision.HIGHEST)


def gathered(maps: list[Array] | Array, *, root: bool = False) -> Array:
    """F maps (H, W) to their Gaussian means (h, w, F); ``root`` for shares and energies (Hellinger)."""
    means = jnp.moveaxis(moments(jnp.stack(list(maps)), POOL, 0, 0, STRIDE), 0, -1)
    return jnp.sqrt(jnp.maximum(means, 0)) if root else means


def brightness(image: Array) -> Array:
    return jnp.sqrt(jnp.mean(image, axis=-1))


def length(x: Array, y: Array) -> Array:
    return jnp.sqrt(x * x + y * y + jnp.float32(1e-12))


def jet(light: Array, sigma: float) -> tuple[Array, Array, Array]:
    """Gradient length and both eigenvalues of the Hessian, times σ and σ²; the larger eigenvalue first."""
    whole = moments(light, sigma, 0, 0)
    gradient = length(moments(light, sigma, 0, 1), moments(light, sigma, 1, 0))
    xx, yy = moments(light, sigma, 0, 2) - whole, moments(light, sigma, 2, 0) - whole
    mean, spread = (xx + yy) / 2, length((xx - yy) / 2, moments(light, sigma, 1, 1))
    return gradient, mean + spread, mean - spread


def soft_bins(values: Array, low: float, high: float, count: int) -> list[Array]:
    """Memberships of triangular bins; they sum to 1."""
    place = (jnp.clip(values, low, high) - low) * ((count - 1) / (high - low))
    return [jnp.maximum(0, 1 - jnp.abs(place - i)) for i in range(count)]


def upright_hog(image: Array) -> Array:
    """Dalal and Triggs, CVPR 2005: eight directions in 2 × 2 cells, not invariant; a control."""
    light = brightness(image)
    gx, gy = moments(light, 1.0, 0, 1), moments(light, 1.0, 1, 0)
    angles = [math.pi * b / 4 for b in range(8)]
    lobes = jnp.stack([jnp.maximum(0, gx * math.cos(a) + gy * math.sin(a)) for a in angles])
    shifts = [(dy, dx) for dy in (-4, 4) for dx in (-4, 4)]
    return gathered([lobe for s in shifts for lobe in jnp.roll(lobes, s, axis=(1, 2))], root=True)


def colour_dct(image: Array) -> Array:
    """The 4 × 4 lowest cosine coefficients of each colour in cells of 8 × 8; a control."""
    h, w = image.shape[0] // STRIDE, image.shape[1] // STRIDE
    cells = image[: h * STRIDE, : w * STRIDE].reshape(h, STRIDE, w, STRIDE, 3)
    basis = np.cos(np.pi * (np.arange(STRIDE) + 0.5)[None] * np.arange(4)[:, None] / STRIDE)
    basis = jnp.asarray(basis / STRIDE, jnp.float32)
    found = jnp.einsum("hywxc,iy,jx->hwijc", cells, basis, basis, precision=lax.Precision.HIGHEST)
    return found.reshape(h, w, -1)


def local_jets(image: Array) -> Array:
    """Means of rotation-invariant differential jets at three scales (Koenderink and van Doorn, 1987)."""
    light = brightness(image)
    return gathered([0.3 * light] + [x for sigma in (1.0, 2.0, 4.0) for x in jet(light, sigma)])


def shape_and_colour(image: Array) -> Array:
    """Shape-index histograms weighted by curvedness (Larsen et al., 2014), and opponent-colour histograms."""
    light, found = brightness(image), []
    for sigma in (1.0, 2.0, 4.0):
        _, high, low = jet(light, sigma)
        index = jnp.arctan2(high + low, high - low) * (2 / math.pi)
        curved = length(high, low)
        found += [curved / (curved + 0.05) * share for share in soft_bins(index, -1, 1, 9)]
    red, green, blue = (jnp.sqrt(image[..., c]) for c in range(3))
    for value, (least, most) in (
        (light, (0, 1)), (red - green, (-0.3, 0.3)), (blue - (red + green) / 2, (-0.3, 0.3))
    ):  # fmt: skip
        found += soft_bins(value, least, most, 8)
    return gathered(found, root=True)


def largest_responses(image: Array) -> Array:
    """MR8 (Varma and Zisserman, IJCV 2005): edges and bars at three scales, best of six directions; roots."""
    light, found = brightness(image)[None, None], []
    reach = np.arange(-18, 19)
    y, x = np.meshgrid(reach, reach, indexing="ij")
    for sigma in (1.0, 2.0, 4.0):
        bank = []
        for angle in np.arange(6) * np.pi / 6:
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            window = np.exp(-(u**2 + (v / 3) ** 2) / (2 * sigma**2))
            for kernel in (u * window, (u**2 / sigma**2 - 1) * window):
                kernel = kernel - kernel.mean()
                bank.append(kernel / np.abs(kernel).sum())
        kernels = jnp.asarray(np.stack(bank)[:, None], jnp.float32)
        padded = jnp.pad(light, ((0, 0), (0, 0), (18, 18), (18, 18)), mode="symmetric")
        responses = lax.conv(padded, kernels, (1, 1), "VALID", precision=lax.Precision.HIGHEST)[0]
        found += list(jnp.max(jnp.abs(responses).reshape(6, 2, *light.shape[2:]), axis=0))
    smooth, (_, high, low) = moments(light[0, 0], 4.0, 0, 0), jet(light[0, 0], 4.0)
    return gathered([*found, 0.1 * smooth, jnp.abs(high + low)], root=True)


def binary_patterns(image: Array) -> Array:
    """LBP riu2 (Ojala et al., PAMI 2002): uniform patterns of 8 neighbours at 1, 2 and 4 pixels."""
    light, found = moments(brightness(image), 0.7, 0, 0), []
    h, w = light.shape
    for radius in (1.0, 2.0, 4.0):
        padded, bits = jnp.pad(light, 5, mode="symmetric"), []
        for k in range(8):
            dy, dx = radius * math.sin(k * math.pi / 4), radius * math.cos(k * math.pi / 4)
            y, x = math.floor(dy), math.floor(dx)
            fy, fx = dy - y, dx - x
            corners = [
                ((1 - fy if a == 0 else fy) * (1 - fx if b == 0 else fx))
                * padded[5 + y + a : 5 + y + a + h, 5 + x + b : 5 + x + b + w]
                for a in (0, 1) for b in (0, 1)
            ]  # fmt: skip
            bits.append((sum(corners) - light >= 0.01).astype(jnp.int32))
        changes = sum(jnp.abs(bits[k] - bits[k - 1]) for k in range(8))
        pattern = jnp.where(changes <= 2, sum(bits), 9)
        found += [(pattern == value).astype(jnp.float32) for value in range(10)]
    return gathered(found, root=True)


def scattering(image: Array) -> Array:
    """Scattering of two orders (Bruna and Mallat, PAMI 2013): DFT magnitudes over eight directions.

    The second order keeps the angle between both wavelets and averages over their common turn.
    """
    light = brightness(image)
    h, w = light.shape
    margin = 32
    padded = jnp.pad(light, margin, mode="symmetric")
    wy, wx = (2 * np.pi * np.fft.fftfreq(n) for n in padded.shape)

    def wavelet(scale: int, turn: int) -> Array:
        angle = np.pi * turn / 8
        centre, sigma = 0.75 * np.pi / 2**scale, 0.8 * 2**scale
        u = wx[None] * np.cos(angle) + wy[:, None] * np.sin(angle)
        v = wy[:, None] * np.cos(angle) - wx[None] * np.sin(angle)
        envelope = np.exp(-(sigma**2) * ((u - centre) ** 2 + (v * 2) ** 2) / 2)
        zero = np.exp(-(sigma**2) * (u**2 + (v * 2) ** 2) / 2)  # makes the mean of the wavelet vanish
        return jnp.asarray(envelope - zero * np.exp(-(sigma**2) * centre**2 / 2), jnp.float32)

    def modulus(spectrum: Array, scale: int) -> Array:
        return jnp.stack([jnp.abs(jnp.fft.ifft2(spectrum * wavelet(scale, turn))) for turn in range(8)])

    def inner(maps: Array) -> Array:
        return maps[..., margin : margin + h, margin : margin + w]

    def turned(maps: Array) -> Array:
        """Magnitudes of the DFT over directions of the pooled maps (8, H, W): (h, w, 5)."""
        return jnp.abs(jnp.fft.rfft(gathered(inner(maps)), axis=-1))

    spectrum, found = jnp.fft.fft2(padded), []
    for scale in range(3):
        first = modulus(spectrum, scale)
        found.append(turned(first))
        for deeper in range(scale + 1, 3):
            second = jnp.stack(
                [jnp.roll(modulus(jnp.fft.fft2(f), deeper), -t, 0) for t, f in enumerate(first)]
            )
            found.append(turned(jnp.mean(second, axis=0)))
    return jnp.sqrt(jnp.concatenate(found, axis=-1))


def brightness_harmonics(image: Array) -> Array:
    """Magnitudes of circular harmonics of the brightness itself, orders 0 to 4, three windows."""
    light, found = brightness(image), []
    for sigma in (2.0, 4.0, 8.0):
        for k in range(5):
            terms = [math.comb(k, j) * moments(light, sigma, j, k - j, STRIDE) for j in range(k + 1)]
            real = sum((1, 0, -1, 0)[j % 4] * t for j, t in enumerate(terms))
            imaginary = sum((0, 1, 0, -1)[j % 4] * t for j, t in enumerate(terms))
            found.append(
                length(jnp.asarray(real), jnp.asarray(imaginary)) / math.sqrt(2**k * math.factorial(k))
            )
    return jnp.stack(found, axis=-1)


CONTROLS: dict[str, Describe] = {
    "upright HOG (control)": upright_hog,
    "colour DCT (control)": colour_dct,
    "local jets": local_jets,
    "shape index + colour": shape_and_colour,
    "MR8 energies": largest_responses,
    "LBP riu2": binary_patterns,
    "scattering, 2 orders": scattering,
    "brightness harmonics": brightness_harmonics,
}
FOURIER: dict[str, configs.TextureConfig] = {
    "Fourier HOG (default)": OWN,
    "Fourier HOG, stride 8": dataclasses.replace(OWN, stride=8.0),
    "Fourier HOG, stride 8, no colour": dataclasses.replace(OWN, stride=8.0, colour=0.0),
    "Fourier HOG, stride 8, orders 2": dataclasses.replace(OWN, stride=8.0, orders=2),
    "Fourier HOG, stride 8, windows 3, 6": dataclasses.replace(OWN, stride=8.0, windows=(3.0, 6.0)),
    "Fourier HOG, stride 8, floor 0.5": dataclasses.replace(OWN, stride=8.0, floor=0.5),
    "Fourier HOG, stride 8, SNAMD": dataclasses.replace(OWN, stride=8.0, gain=1.0),
}


def control_backbone(describe: Describe, images: np.ndarray, even: np.ndarray) -> Callable[[Array], Array]:
    """A candidate as an ``ImageBackbone``, its constant channel set from the even scans."""

    def values(batch: Array) -> Array:
        return jax.vmap(describe)(batch.astype(jnp.float32) * jnp.float32(1 / 255))

    chosen = np.flatnonzero(even)[:16]
    found = np.asarray(jax.jit(values)(images[chosen]))
    floor = float(np.linalg.norm(found, axis=-1).mean())

    def backbone(batch: Array) -> Array:
        found = values(batch)
        constant = jnp.full((*found.shape[:3], 1), floor, jnp.float32)
        joined = jnp.concatenate([found, constant], axis=-1) * jnp.float32(100 / floor)
        return joined.reshape(1, len(batch), -1, joined.shape[-1])

    return backbone


@dataclasses.dataclass(frozen=True)
class Material:
    """All scans of a category at working size."""

    raw: np.ndarray  # (N, s, s, 3) uint8
    cut: np.ndarray  # the same with the ground plane removed, for runs with points
    masks: list[np.ndarray]
    foreground: list[np.ndarray] | None
    clouds: list[Any]
    even: np.ndarray  # (N,) bool


def load(dataset: Path, config: configs.Config) -> Material:
    scans = datasets.open_dataset(dataset)[0].scans
    photographs = datasets.open_working(scans, config, modality="image").images
    assert photographs is not None
    raw = photographs[:]
    with_xyz = all(scan.xyz is not None for scan in scans)
    prepared = [
        datasets.prepare(
            scan, config, modality="both" if with_xyz else "image", map_size=config.input.map_size
        )
        for scan in scans
    ]
    return Material(
        raw=raw,
        cut=np.stack([p.image for p in prepared if p.image is not None]),
        masks=[p.mask for p in prepared if p.mask is not None],
        foreground=[p.foreground for p in prepared if p.foreground is not None] if with_xyz else None,
        clouds=[p.cloud for p in prepared if p.cloud is not None],
        even=np.array([int(scan.stem) % 2 == 0 for scan in scans]),
    )


def figures(maps: np.ndarray, material: Material) -> dict[str, float | None]:
    """The four figures over the even scans, then over the odd ones."""
    out = {}
    for side, chosen in (("even", material.even), ("odd", ~material.even)):
        ids = np.flatnonzero(chosen)
        masks, seen = [material.masks[i] for i in ids], [maps[i] for i in ids]
        out[f"{side}_pixel_ap"] = metrics.pixel_metrics(masks, seen)["ap"]
        inside = material.foreground
        out[f"{side}_foreground_ap"] = (
            None if inside is None else metrics.foreground_ap(masks, seen, [inside[i] for i in ids])
        )
        out[f"{side}_hit_rate"] = metrics.hit_rate(masks, seen)
        out[f"{side}_aupro"] = metrics.aupro(masks, seen, form="mvtec")
    return out


def candidate(
    backbone: Callable[[Array], Array], material: Material, config: configs.Config, points: Any = None
) -> dict[str, Any]:
    """One row: sizes, seconds per image (one at a time, compiled), and the figures of the whole pipeline."""
    images = material.raw if points is None else material.cut
    one = jax.jit(backbone)
    shape = jax.block_until_ready(one(images[:1])).shape
    begun = time.perf_counter()
    for k in range(1, 7):
        jax.block_until_ready(one(images[k : k + 1]))
    seconds = (time.perf_counter() - begun) / 6
    found, _ = extract.extract_images(jnp.asarray(images), backbone, config)
    keywords: dict[str, Any] = {
        "grid_hw": extract.grid_of(shape[2], images.shape[1:3]),
        "map_hw": (config.input.map_size,) * 2,
    }
    features, groups = (None, None) if points is None else points
    scored = pipeline.score(Features(jnp.asarray(found), features), groups, config, **keywords)
    clouds = None if points is None else material.clouds
    detection = pipeline.finish(scored, clouds, groups, config, **keywords)
    sizes = {"patches": shape[2], "channels": shape[3], "seconds_per_image": seconds}
    return sizes | figures(np.asarray(detection.anomaly_map), material)


def line(row: dict[str, Any]) -> str:
    def percent(name: str) -> str:
        return "    -" if row.get(name) is None else f"{100 * row[name]:5.1f}"

    cells = [" ".join(percent(f"{side}_{name}") for name in FIGURES) for side in ("even", "odd")]
    size = f"{row.get('patches', ''):>5} {row.get('channels', ''):>4} {row.get('seconds_per_image', 0):7.4f}"
    return f"{row['name']:34s} {size} | {cells[0]} | {cells[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", nargs="+", default=None, help="parts of names")
    parser.add_argument("--both", action="store_true", help="also FPFH alone, and the default with it")
    options = parser.parse_args()
    runtime.prepare()
    config = configs.override(configs.released(), "input.image_size=224", "input.map_size=224")
    material = load(options.dataset, config)
    print(f"{'':34s} patch chan s/image | even: pixel AP, foreground AP, hit rate, AUPRO | odd: the same (%)")
    rows: list[dict[str, Any]] = []

    def add(name: str, row: dict[str, Any]) -> None:
        rows.append({"name": name} | row)
        print(line(rows[-1]), flush=True)

    def wanted(name: str) -> bool:
        return options.only is None or any(part in name for part in options.only)

    if material.foreground is not None:
        trivial = np.stack(metrics.blurred_mask(material.foreground))
        add("blurred mask (yardstick)", figures(trivial, material))
    for name, describe in CONTROLS.items():
        if wanted(name):
            add(name, candidate(control_backbone(describe, material.raw, material.even), material, config))
    for name, own in FOURIER.items():
        if wanted(name):
            add(name, candidate(extract.Bound(texture.describe, own), material, config))
    if options.both and material.clouds:
        fpfh = extract.Bound(descriptors.fpfh, config.fpfh)
        found, _, groups = extract.extract_points(material.clouds, fpfh, config)
        points = (found, groups)
        shape: dict[str, Any] = {"grid_hw": None, "map_hw": (config.input.map_size,) * 2}
        scored = pipeline.score(Features(None, points[0]), points[1], config, **shape)
        alone = pipeline.finish(scored, material.clouds, points[1], config, **shape)
        add("FPFH alone", figures(np.asarray(alone.anomaly_map), material))
        own = extract.Bound(texture.describe, OWN)
        add("default + FPFH", candidate(own, material, config, points))
    options.out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    (options.out / "descriptors.csv").write_text(text.getvalue())
    seconds = {row["name"]: row["seconds_per_image"] for row in rows if "seconds_per_image" in row}
    record = outputs.run_record(config, seconds=seconds, dataset=options.dataset.name, figures={"rows": rows})
    outputs.write_json(options.out / "descriptors.json", record)


if __name__ == "__main__":
    main()
