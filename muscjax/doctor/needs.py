"""What a run will need: bytes at its peak and arithmetic, estimated from sizes; nothing is measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from muscjax.doctor.files import Category

if TYPE_CHECKING:
    from muscjax.config import Config

# Python, JAX, compiled programs and the working sets of the descriptors: what runs over 108 scans on a CPU
# took beyond the arrays that are counted here.
_BASE_GIB = {"image": 0.5, "points": 0.8, "both": 1.3}
_CLOUD_POINT = 29  # bytes of a point in a Cloud


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a backbone makes of one scan."""

    name: str
    kind: str  # "image" or "points"
    stages: int
    patches: int  # M or G
    channels: int
    side: int | None = None  # of the image it sees, pixels
    flop: float | None = None  # of its forward pass, multiplications and additions; None: not known
    weights: int = 0  # bytes


@dataclasses.dataclass(frozen=True)
class Need:
    """One way to run one category; bytes and floating-point operations."""

    modality: str
    backbones: tuple[str, ...]
    map_size: int
    plan: str | None  # of mutual scoring; None where the memory budget is too small
    features: int  # of all scans, on the host
    distances: int  # at the peak of one stage, on the device
    peak: int  # of host and device together
    scoring_flop: float
    backbone_flop: float | None
    note: str = ""


def default_tokens(config: Config, cached: Sequence[str]) -> tuple[Tokens, ...]:
    """The weight-free backbones, and every backbone with cached weights.

    A ViT has three taps and needs 2·parameters·tokens + 4·tokens²·width·depth operations.
    """
    from muscjax.backbones import WEIGHT_FREE, registry, texture
    from muscjax.backbones.descriptors import BINS
    from muscjax.config import DEFAULT_IMAGE_SIZE

    groups = config.ipg.groups
    made = [Tokens(WEIGHT_FREE["points"], "points", 1, groups, 3 * BINS)]
    side = config.input.image_size or DEFAULT_IMAGE_SIZE
    h, w = texture.grid_shape((side, side), config.texture)
    made.append(Tokens(WEIGHT_FREE["image"], "image", 1, h * w, texture.channels(config.texture), side))
    entries = [entry for entry in registry.ENTRIES if entry.name in cached]
    for entry in entries:
        weights = round(4e6 * entry.millions)
        if entry.kind == "points":
            made.append(Tokens(entry.name, "points", 3, groups, entry.width, weights=weights))
            continue
        side = config.input.image_size or entry.image_size
        if side is None or entry.patch_size is None or side % entry.patch_size:
            continue
        patches = (side // entry.patch_size) ** 2
        tokens = patches + 1 + entry.registers
        flop = 2e6 * entry.millions * tokens + 4.0 * tokens**2 * entry.width * entry.depth
        made.append(Tokens(entry.name, "image", 3, patches, entry.width, side, flop, weights))
    return tuple(made)


def run_needs(
    category: Category, tokens: Sequence[Tokens], config: Config, *, available: int | None
) -> tuple[Need, ...]:
    """Needs of points only, of images only, and of both with the weight-free points.

    Args:
      available: bytes that the run may take, or None; a need beyond it gets a note.

    Returns:
      Nothing for fewer than two scans or without any readable size.
    """
    if category.scans < 2:
        return ()
    images = [item for item in tokens if item.kind == "image" and category.images]
    points = [item for item in tokens if item.kind == "points" and category.xyz_side is not None]
    chosen = [(item,) for item in (*points, *images)]
    chosen += [(image, points[0]) for image in images if points]
    return tuple(_need(category, item, config, available) for item in chosen)


def _need(category: Category, tokens: tuple[Tokens, ...], config: Config, available: int | None) -> Need:
    from muscjax import scoring
    from muscjax.config import DEFAULT_IMAGE_SIZE
    from muscjax.geometry import bucket_size

    n = category.scans
    image = next((item for item in tokens if item.kind == "image"), None)
    with_points = any(item.kind == "points" for item in tokens)
    side = (image and image.side) or config.input.image_size or DEFAULT_IMAGE_SIZE
    map_size = config.input.map_size or side
    if with_points and category.xyz_side is not None:
        map_size = min(map_size, category.xyz_side)

    part = -(-n // config.run.subsets)
    padded = bucket_size(part, minimum=8)
    stages = max(item.stages for item in tokens)
    patches = tuple(item.patches for item in tokens)
    features = 4 * n * sum(item.stages * item.patches * item.channels for item in tokens)
    stage = 2 * 4 * padded * sum(item.patches * item.channels for item in tokens)  # padded, and on the device
    inputs = 0 if image is None else 3 * n * side**2
    if with_points:
        groups = 4 * n * config.ipg.groups * (config.ipg.group_size + 7)
        inputs += groups + n * _CLOUD_POINT * map_size**2
    maps = 4 * n * map_size**2
    # as ``extract.extract_images`` bounds a batch
    largest = 0 if image is None else 64 * image.stages * image.patches * image.channels
    batch = 0 if image is None else max(1, min(8, n, config.run.memory_budget // largest))

    name, distances, note = None, 0, ""
    try:
        plan = scoring.plan(padded, patches, memory_budget=config.run.memory_budget)
    except ValueError as error:
        note = f"{error}; give --memory-budget more, or --subsets"
    else:
        row = 4 * padded * sum(patches)  # of one scan
        name = plan.kind
        # a whole matrix is masked into a second one, one modality after the other
        whole = padded * (row + 4 * padded * max(patches))
        distances = whole if name == "symmetric" else 12 * plan.block * row
    pairs = config.run.subsets * part * (part - 1) / (2 if name == "symmetric" else 1)
    scoring_flop = stages * pairs * sum(2.0 * item.patches**2 * item.channels for item in tokens)
    flops = [item.flop for item in tokens if item.flop is not None]
    modality = "both" if image and with_points else "points" if with_points else "image"
    held = round(_BASE_GIB[modality] * 2**30) + sum(item.weights for item in tokens) + inputs + features
    peak = held + max(largest * batch, stage + distances + maps)
    if not note and available is not None and peak > available:
        note = "more memory than is available; a smaller --image-size or --subsets needs less"
    return Need(
        modality=modality,
        backbones=tuple(item.name for item in tokens),
        map_size=map_size,
        plan=name,
        features=features,
        distances=distances,
        peak=peak,
        scoring_flop=scoring_flop,
        backbone_flop=n * sum(flops) if flops else None,
        note=note,
    )
