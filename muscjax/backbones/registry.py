"""Backbones by name or by file: where published weights come from, and loading them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from muscjax.backbones import WEIGHT_FREE, params, point_mae, vit
from muscjax.backbones.fetch import Source, download_path, fetch, record, recorded, verify
from muscjax.backbones.layers import HIGHEST, Implementation
from muscjax.backbones.network import ImageBackbone, PointBackbone, image_backbone, point_backbone
from muscjax.errors import InputError
from muscjax.files import cache_root, replacing


@dataclasses.dataclass(frozen=True)
class Entry:
    """A published backbone."""

    name: str
    kind: params.Kind
    family: str
    source: Source
    license: str
    millions: float  # parameters that are kept, 10^6
    # What the checkpoint must turn out to be; a download of something else is refused.
    patch_size: int | None = None
    width: int = 384
    depth: int = 12
    image_size: int | None = None
    registers: int = 0


def _vit(
    name, family, repository, license, millions, patch, width, depth, size, *, file=None, **more
) -> Entry:
    source = Source(f"timm/{repository}", file or "model.safetensors", more.pop("revision", "main"))
    return Entry(name, "image", family, source, license, millions, patch, width, depth, size, **more)


_APACHE, _MIT = "Apache-2.0", "MIT"
_OPEN_CLIP = "open_clip_model.safetensors"  # OpenAI's weights under their original names

# timm's repositories hold the authors' tensors under the authors' names as safetensors, so no torch is
# needed, and DINO's own layer norm constant and position scale apply (see weights_convert.dino).
ENTRIES: tuple[Entry, ...] = (
    _vit("dino-vits16", "dino", "vit_small_patch16_224.dino", _APACHE, 21.7, 16, 384, 12, 224),
    _vit("dino-vits8", "dino", "vit_small_patch8_224.dino", _APACHE, 21.7, 8, 384, 12, 224),
    _vit("dino-vitb16", "dino", "vit_base_patch16_224.dino", _APACHE, 85.8, 16, 768, 12, 224),
    _vit("dino-vitb8", "dino", "vit_base_patch8_224.dino", _APACHE, 85.8, 8, 768, 12, 224),
    _vit("dinov2-vits14", "dinov2", "vit_small_patch14_dinov2.lvd142m", _APACHE, 22.1, 14, 384, 12, 518),
    _vit("dinov2-vitb14", "dinov2", "vit_base_patch14_dinov2.lvd142m", _APACHE, 86.6, 14, 768, 12, 518),
    _vit("dinov2-vitl14", "dinov2", "vit_large_patch14_dinov2.lvd142m", _APACHE, 304.4, 14, 1024, 24, 518),
    _vit(
        "dinov2-vits14-reg",
        "dinov2",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        _APACHE,
        22.1,
        14,
        384,
        12,
        518,
        registers=4,
    ),
    _vit(
        "dinov2-vitb14-reg",
        "dinov2",
        "vit_base_patch14_reg4_dinov2.lvd142m",
        _APACHE,
        86.6,
        14,
        768,
        12,
        518,
        registers=4,
    ),
    _vit(
        "dinov2-vitl14-reg",
        "dinov2",
        "vit_large_patch14_reg4_dinov2.lvd142m",
        _APACHE,
        304.4,
        14,
        1024,
        24,
        518,
        registers=4,
    ),
    _vit(
        "clip-vitl14-336",
        "clip",
        "vit_large_patch14_clip_336.openai",
        _MIT,
        304.3,
        14,
        1024,
        24,
        336,
        file=_OPEN_CLIP,
        revision="81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
    ),
    _vit(
        "clip-vitl14",
        "clip",
        "vit_large_patch14_clip_224.openai",
        _MIT,
        304.0,
        14,
        1024,
        24,
        224,
        file=_OPEN_CLIP,
    ),
    _vit(
        "clip-vitb16",
        "clip",
        "vit_base_patch16_clip_224.openai",
        _MIT,
        86.2,
        16,
        768,
        12,
        224,
        file=_OPEN_CLIP,
    ),
    _vit(
        "clip-vitb32",
        "clip",
        "vit_base_patch32_clip_224.openai",
        _MIT,
        87.8,
        32,
        768,
        12,
        224,
        file=_OPEN_CLIP,
    ),
    _vit("deit-tiny", "deit", "deit_tiny_patch16_224.fb_in1k", _APACHE, 5.5, 16, 192, 12, 224),
    _vit("deit-small", "deit", "deit_small_patch16_224.fb_in1k", _APACHE, 21.7, 16, 384, 12, 224),
    _vit("deit-base", "deit", "deit_base_patch16_224.fb_in1k", _APACHE, 85.8, 16, 768, 12, 224),
    Entry(
        "point-mae",
        "points",
        "point_mae",
        Source(
            url="https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth",
            sha256="27ded932bb0a2625d5a8eb006df199b2578598c774aee6d86b985300b6a5fd20",
        ),
        _MIT,
        21.8,
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of ``muscjax backbones``."""

    name: str
    kind: params.Kind
    millions: float  # parameters, 10^6
    megabytes: float  # of the converted file
    license: str
    cached: bool
    source: str


def table() -> list[Row]:
    """Every backbone that a name stands for; the weight-free ones last."""
    listed = [
        Row(
            entry.name,
            entry.kind,
            entry.millions,
            round(entry.millions * 4, 1),
            entry.license,
            converted_path(entry.name).is_file(),
            entry.source.url or f"hf:{entry.source.repository}",
        )
        for entry in ENTRIES
    ]
    kinds: tuple[params.Kind, ...] = ("image", "points")
    computed = (
        Row(WEIGHT_FREE[kind], kind, 0, 0, "no weights", True, "computed, the default") for kind in kinds
    )
    return [*listed, *computed]


def load_image_backbone(
    name_or_path: str | os.PathLike,
    *,
    image_size: int | None = None,
    taps: tuple[int, ...] | None = None,
    final_norm: bool | None = None,
    dtype=jnp.float32,
    precision: jax.lax.Precision = HIGHEST,
    implementation: Implementation = "xla",
    progress: bool = True,
) -> ImageBackbone:
    """A vision transformer by name (downloaded, converted and cached on first use) or from a converted file.

    Args:
      name_or_path: a name of :data:`ENTRIES` or a file written by ``muscjax convert``.
      image_size: side of the images it will see, pixels; None: what the architecture is meant for.
      taps: blocks counted from 0; None: the last of each third.
      final_norm: the last norm on every tapped block; None: the architecture's.
      dtype: of parameters and products, float32 or bfloat16; tokens come out as float32.
      precision, implementation: of products and attention.
      progress: show a bar while downloading.

    Raises:
      InputError: unknown name, no such file, damaged or wrong contents, no network, a bad size or tap.
    """
    loaded = params.load(_path(name_or_path, "image", progress=progress), kind="image", dtype=dtype)
    assert isinstance(loaded.spec, vit.Spec)
    return image_backbone(
        loaded.params,
        loaded.spec,
        image_size=image_size,
        taps=taps,
        final_norm=final_norm,
        dtype=dtype,
        precision=precision,
        implementation=implementation,
    )


def load_point_backbone(
    name_or_path: str | os.PathLike,
    *,
    batch_norm: point_mae.BatchNormMode = "running",
    taps: tuple[int, ...] | None = None,
    final_norm: bool | None = None,
    dtype=jnp.float32,
    precision: jax.lax.Precision = HIGHEST,
    implementation: Implementation = "xla",
    progress: bool = True,
) -> PointBackbone:
    """A Point-MAE encoder by name or from a converted file; as :func:`load_image_backbone`.

    ``fpfh`` needs no weights and is no matter of this function.
    """
    loaded = params.load(_path(name_or_path, "points", progress=progress), kind="points", dtype=dtype)
    assert isinstance(loaded.spec, point_mae.Spec)
    return point_backbone(
        loaded.params,
        loaded.spec,
        batch_norm=batch_norm,
        taps=taps,
        final_norm=final_norm,
        dtype=dtype,
        precision=precision,
        implementation=implementation,
    )


def find(name: str) -> Entry | None:
    """The published backbone of that name."""
    return next((entry for entry in ENTRIES if entry.name == name), None)


def converted_path(name: str) -> Path:
    """Where the converted parameters of a named backbone are cached."""
    return cache_root() / "backbones" / f"{name}.safetensors"


def ensure(entry: Entry, *, progress: bool = True) -> Path:
    """The converted file of a named backbone: cached and unchanged, or fetched and converted now."""
    path = converted_path(entry.name)
    key = f"backbones/{entry.name}"
    if path.is_file():
        header = params.metadata(path)
        trusted = entry.source.sha256 or recorded(entry.source.key)
        if trusted is not None and header.get("source_sha256") != trusted:
            raise InputError(
                f"{path}: made from a source with SHA-256 {header.get('source_sha256')}, expected {trusted}; "
                "delete the file to make it again"
            )
        verify(path, key)
        return path
    published = fetch(entry.name, entry.source, alternative=_alternative(entry.kind), progress=progress)
    from weights_convert import convert

    with replacing(path) as temporary:
        convert(
            published,
            temporary,
            family=entry.family,
            source=entry.source.address(recorded(f"{entry.source.repository}@commit")),
            license=entry.license,
            expect={
                field: getattr(entry, field)
                for field in ("patch_size", "width", "depth", "image_size", "registers")
                if entry.kind == "image" or field in ("width", "depth")
            },
            name=entry.name,
        )
        # Made from a verified source, so it replaces what an earlier conversion left on record.
        record(key, params.sha256(temporary))
    return path


def _alternative(kind: Literal["image", "points"]) -> str:
    return f"--{'point' if kind == 'points' else kind}-backbone {WEIGHT_FREE[kind]}"


def _path(name_or_path: str | os.PathLike, kind: params.Kind, *, progress: bool) -> Path:
    entry = find(os.fspath(name_or_path))
    if entry is None:
        path = Path(name_or_path)
        if not path.exists():
            names = ", ".join(entry.name for entry in ENTRIES if entry.kind == kind)
            raise InputError(f"{path}: no such weights file, and no backbone of that name (known: {names})")
        return path
    if entry.kind != kind:
        raise InputError(f"{entry.name}: a backbone for {entry.kind}, expected one for {kind}")
    return ensure(entry, progress=progress)


__all__ = [
    "ENTRIES",
    "Entry",
    "Row",
    "converted_path",
    "download_path",
    "ensure",
    "find",
    "load_image_backbone",
    "load_point_backbone",
    "table",
]
