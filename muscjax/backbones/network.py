"""A loaded backbone: parameters, architecture and run options as one callable pytree."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from muscjax.backbones import point_mae, vit
from muscjax.backbones.layers import HIGHEST, Implementation
from muscjax.errors import InputError
from muscjax.types import Cloud, PointGroups

_RUN = ("spec", "taps", "final_norm", "dtype", "precision", "implementation")


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=[*_RUN, "image_size"])
@dataclasses.dataclass(frozen=True, eq=False)
class ImageBackbone:
    """``backbone(images (B, H, W, 3)) -> tokens (S, B, M, C)`` float32.

    Pass it to a compiled function as an argument: its parameters are then traced, never constants.
    """

    params: Any
    spec: vit.Spec
    image_size: int  # side of the images that it is meant to see, pixels
    taps: tuple[int, ...]
    final_norm: bool
    dtype: Any = jnp.float32
    precision: jax.lax.Precision = HIGHEST
    implementation: Implementation = "xla"

    def __call__(self, images: jax.Array) -> jax.Array:
        """Patch tokens; images are uint8 or float in [0, 1] and normalised here."""
        return _image_tokens(self, images)

    def with_class_token(self, images: jax.Array) -> vit.Output:
        """Patch tokens and the class feature (CLIP: projected, not yet unit norm) of one pass, float32."""
        return _image_output(self, images)

    @property
    def grid(self) -> int:
        """Patches along one side at ``image_size``; M is its square."""
        return self.image_size // self.spec.patch_size


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=[*_RUN, "batch_norm"])
@dataclasses.dataclass(frozen=True, eq=False)
class PointBackbone:
    """``backbone(cloud, groups) -> tokens (S, G, C)`` float32, for one cloud; see :class:`ImageBackbone`."""

    params: Any
    spec: point_mae.Spec
    taps: tuple[int, ...]
    final_norm: bool
    batch_norm: point_mae.BatchNormMode = "running"
    dtype: Any = jnp.float32
    precision: jax.lax.Precision = HIGHEST
    implementation: Implementation = "xla"

    def __call__(self, cloud: Cloud, groups: PointGroups) -> jax.Array:
        return _point_tokens(self, cloud, groups)


def image_backbone(
    params,
    spec: vit.Spec,
    *,
    image_size: int | None = None,
    taps: tuple[int, ...] | None = None,
    final_norm: bool | None = None,
    dtype=jnp.float32,
    precision: jax.lax.Precision = HIGHEST,
    implementation: Implementation = "xla",
) -> ImageBackbone:
    """Parameters and their architecture as a backbone; None takes the architecture's own value.

    Raises:
      InputError: an image size that is no multiple of the patch, or a tap outside the network.
    """
    size = spec.input_size if image_size is None else image_size
    if size < spec.patch_size or size % spec.patch_size:
        name = spec.name or spec.family
        raise InputError(f"image size {size}: expected a multiple of {spec.patch_size}, the patch of {name}")
    norm = spec.final_norm if final_norm is None else final_norm
    chosen = _checked_taps(taps, spec)
    return ImageBackbone(params, spec, size, chosen, norm, jnp.dtype(dtype), precision, implementation)


def point_backbone(
    params,
    spec: point_mae.Spec,
    *,
    batch_norm: point_mae.BatchNormMode = "running",
    taps: tuple[int, ...] | None = None,
    final_norm: bool | None = None,
    dtype=jnp.float32,
    precision: jax.lax.Precision = HIGHEST,
    implementation: Implementation = "xla",
) -> PointBackbone:
    """Parameters and their architecture as a backbone; None takes the architecture's own value.

    Raises:
      InputError: an unknown ``batch_norm`` or a tap outside the network.
    """
    if batch_norm not in ("running", "cloud"):
        raise InputError(f"batch_norm {batch_norm!r}: expected 'running' or 'cloud'")
    norm = spec.final_norm if final_norm is None else final_norm
    chosen = _checked_taps(taps, spec)
    return PointBackbone(params, spec, chosen, norm, batch_norm, jnp.dtype(dtype), precision, implementation)


def _checked_taps(taps: tuple[int, ...] | None, spec: vit.Spec | point_mae.Spec) -> tuple[int, ...]:
    taps = spec.taps if taps is None else tuple(taps)
    if not taps or not all(0 <= i < spec.depth for i in taps):
        raise InputError(
            f"taps {list(taps)}: expected blocks 0 to {spec.depth - 1} of {spec.name or spec.family}"
        )
    return taps


@jax.jit
def _image_tokens(backbone: ImageBackbone, images: jax.Array) -> jax.Array:
    return vit.features(backbone.params, images, **_options(backbone)).astype(jnp.float32)


@jax.jit
def _image_output(backbone: ImageBackbone, images: jax.Array) -> vit.Output:
    out = vit.forward(backbone.params, images, **_options(backbone))
    return vit.Output(*(part.astype(jnp.float32) for part in out))


@jax.jit
def _point_tokens(backbone: PointBackbone, cloud: Cloud, groups: PointGroups) -> jax.Array:
    run = partial(point_mae.features, batch_norm=backbone.batch_norm, **_options(backbone))
    return run(backbone.params, cloud, groups).astype(jnp.float32)


def _options(backbone: ImageBackbone | PointBackbone) -> dict[str, Any]:
    return {name: getattr(backbone, name) for name in _RUN}
