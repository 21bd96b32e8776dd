"""Vision transformers as pure functions: DINO, DINOv2, DeiT/timm and CLIP's image tower (section III-B).

One module serves all of them; a :class:`Spec` holds what differs. Parameters are a nested dictionary,
written by ``weights_convert`` and loaded by :mod:`muscjax.backbones.registry`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from muscjax.backbones import layers
from muscjax.backbones.layers import HIGHEST, Activation, Block, Dense, Implementation, LayerNorm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Spec:
    """An architecture with its preprocessing; hashable, so that it can be a static argument."""

    patch_size: int
    width: int  # C
    depth: int
    heads: int
    image_size: int  # side of the images that the stored positions belong to, pixels
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    pre_norm: bool = False  # CLIP normalises the embedding before the first block
    patch_bias: bool = True
    layer_scale: bool = False
    registers: int = 0
    eps: float = 1e-6
    # Positions of another input size. dino: scale (side + 0.1)/stored side; half_pixel: Hugging Face's
    # bicubic; antialias: bicubic with a = -0.5 and a low pass, DINOv2's with registers and timm's.
    interpolation: Literal["dino", "half_pixel", "antialias"] = "dino"
    projection: int = 0  # channels of CLIP's projected class token, 0: none
    taps: tuple[int, ...] = (3, 7, 11)  # blocks, counted from 0
    final_norm: bool = True  # the last norm, applied to every tapped block
    input_size: int = 224  # side of the images it should see by default, pixels
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    family: str = "dino"
    name: str = ""

    @property
    def grid(self) -> int:
        """Side of the stored grid of positions, patches."""
        return self.image_size // self.patch_size


class Output(NamedTuple):
    tokens: jax.Array  # (S, B, M, C), patches of the tapped blocks, row by row
    class_token: jax.Array  # (B, C), after the final norm; (B, projection) where the model projects it


class ViT(nn.Module):
    """The network on normalised images (B, H, W, 3); returns tapped tokens with CLS and registers."""

    spec: Spec
    taps: tuple[int, ...]
    final_norm: bool
    blocks: int
    dtype: jnp.dtype
    precision: jax.lax.Precision = HIGHEST
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        spec = self.spec
        x = self._embed(images)
        if spec.pre_norm:
            x = LayerNorm(spec.eps, name="pre_norm")(x)
        norm = LayerNorm(spec.eps, name="norm")
        tapped = {}
        for i in range(self.blocks):
            x = Block(
                spec.heads,
                round(spec.width * spec.mlp_ratio),
                spec.eps,
                self.dtype,
                activation=spec.activation,
                layer_scale=spec.layer_scale,
                precision=self.precision,
                implementation=self.implementation,
                name=f"block_{i}",
            )(x)
            if i in self.taps:
                tapped[i] = norm(x) if self.final_norm else x
        token = norm(x[:, 0])
        if spec.projection:
            token = Dense(spec.projection, self.dtype, self.precision, use_bias=False, name="projection")(
                token
            )
        return [tapped[i] for i in self.taps], token

    def _embed(self, images: jax.Array) -> jax.Array:
        spec, p = self.spec, self.spec.patch_size
        batch, height, width, _ = images.shape
        h, w = height // p, width // p
        patches = images.reshape(batch, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(batch, h * w, -1)
        x = Dense(spec.width, self.dtype, self.precision, use_bias=spec.patch_bias, name="patch")(patches)
        small = nn.initializers.normal(0.02)
        cls = self.param("cls", small, (spec.width,))
        positions = self.param("positions", small, (1 + spec.grid**2, spec.width)).astype(jnp.float32)
        grid = interpolate_positions(positions[1:], (h, w), spec=spec, precision=self.precision)
        x = x + grid.astype(self.dtype)[None]
        extra = (cls.astype(jnp.float32) + positions[0])[None]
        if spec.registers:
            registers = self.param("registers", small, (spec.registers, spec.width))
            extra = jnp.concatenate([extra, registers.astype(jnp.float32)])
        extra = jnp.broadcast_to(extra.astype(self.dtype)[None], (batch, *extra.shape))
        return jnp.concatenate([extra, x], axis=1)


def interpolate_positions(
    positions: jax.Array, grid: tuple[int, int], *, spec: Spec, precision: jax.lax.Precision = HIGHEST
) -> jax.Array:
    """Position embeddings for another grid of patches.

    Args:
      positions: (side·side, C) float32, the stored grid without the class token, row by row.
      grid: (h, w) patches wanted.
      spec: names the interpolation.

    Returns:
      (h·w, C) float32.
    """
    side, (h, w) = spec.grid, grid
    if (h, w) == (side, side):
        return positions
    # DINO asks torch for a scale, not for a size, and adds 0.1 against rounding: the samples shift.
    offset = 0.1 if spec.interpolation == "dino" else 0.0
    low_pass = spec.interpolation == "antialias"
    rows, columns = (_cubic_weights(side, n, (n + offset) / side, low_pass=low_pass) for n in grid)
    stored = positions.reshape(side, side, -1)
    return jnp.einsum("ir,jc,rck->ijk", rows, columns, stored, precision=precision).reshape(h * w, -1)


def _cubic_weights(stored: int, wanted: int, scale: float, *, low_pass: bool) -> np.ndarray:
    """PyTorch's bicubic along one axis as a matrix (wanted, stored), from float64.

    Sample i lies at (i + 0.5)/scale - 0.5. Plain: a = -0.75 and taps outside count for the end.
    ``low_pass`` (antialias=True): a = -0.5, the kernel is as wide as a coarser sample, taps outside are
    left out and the rest sums to 1. ``jax.image`` has both, but rounds sample positions to float32.
    """
    a = -0.5 if low_pass else -0.75
    width = max(1 / scale, 1.0) if low_pass else 1.0
    sample = (np.arange(wanted) + 0.5) / scale - 0.5
    margin = 0 if low_pass else 3
    taps = np.arange(-margin, stored + margin)
    d = np.abs(sample[:, None] - taps) / width
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    kernel = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    weights = np.zeros((wanted, stored))
    for tap, column in zip(taps.clip(0, stored - 1), kernel.T, strict=True):
        weights[:, tap] += column
    if low_pass:
        weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def normalise(images: jax.Array, *, spec: Spec) -> jax.Array:
    """Images (B, H, W, 3), uint8 or float in [0, 1], to the backbone's own mean and deviation, float32."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    mean = jnp.asarray(spec.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(spec.std, jnp.float32)[None, None, None]
    return (images.astype(jnp.float32) - mean) / std


def forward(
    params,
    images: jax.Array,
    *,
    spec: Spec,
    taps: tuple[int, ...] | None = None,
    final_norm: bool | None = None,
    dtype=jnp.float32,
    precision: jax.lax.Precision = HIGHEST,
    implementation: Implementation = "xla",
) -> Output:
    """Patch tokens of the tapped blocks and the class token, of one pass.

    Args:
      params: the nested dictionary of :func:`init` or of a converted file.
      images: (B, H, W, 3), uint8 or float in [0, 1]; H and W multiples of ``spec.patch_size``.
      spec: the architecture.
      taps: blocks counted from 0; None: the architecture's.
      final_norm: apply the last norm to every tapped block; None: the architecture's.
      dtype: of the products; normalisation and softmax stay in float32.
      precision: of every product.
      implementation: of ``jax.nn.dot_product_attention``.

    Raises:
      ValueError: a size that is no multiple of the patch, or a tap outside the network.
    """
    return _run(params, images, spec, taps, final_norm, dtype, precision, implementation, spec.depth)


def features(
    params,
    images: jax.Array,
    *,
    spec: Spec,
    taps: tuple[int, ...] | None = None,
    final_norm: bool | None = None,
    dtype=jnp.float32,
    precision: jax.lax.Precision = HIGHEST,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Patch tokens of the tapped blocks, (S, B, M, C): CLS and registers dropped, row by row.

    Arguments and errors as :func:`forward`; blocks after the last tap are not computed.
    """
    last = max(spec.taps if taps is None else taps, default=0) + 1
    return _run(params, images, spec, taps, final_norm, dtype, precision, implementation, last).tokens


def _run(params, images, spec, taps, final_norm, dtype, precision, implementation, blocks) -> Output:
    taps = spec.taps if taps is None else tuple(taps)
    if not taps or not all(0 <= i < spec.depth for i in taps):
        raise ValueError(f"taps {taps} of a network with {spec.depth} blocks, counted from 0")
    if images.ndim != 4 or images.shape[-1] != 3 or any(n % spec.patch_size for n in images.shape[1:3]):
        raise ValueError(
            f"images {images.shape}: expected (B, H, W, 3) with sides that are multiples of {spec.patch_size}"
        )
    model = ViT(
        spec,
        taps,
        spec.final_norm if final_norm is None else final_norm,
        blocks,
        jnp.dtype(dtype),
        precision,
        implementation,
    )
    tapped, token = cast(Any, model.apply)({"params": params}, normalise(images, spec=spec).astype(dtype))
    return Output(jnp.stack(tapped)[:, :, 1 + spec.registers :], token)


def init(key: jax.Array, *, spec: Spec):
    """Random parameters of the right shapes; for tests and benchmarks, never for detection."""
    model = ViT(spec, spec.taps, spec.final_norm, spec.depth, jnp.dtype(jnp.float32))
    return model.init(key, jnp.zeros((1, spec.patch_size, spec.patch_size, 3)))["params"]


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Every parameter's flat name (``block_0.qkv.kernel``) and shape; nothing is allocated."""
    one = dataclasses.replace(spec, depth=1, taps=(0,))
    return layers.flat_shapes(jax.eval_shape(lambda key: init(key, spec=one), jax.random.key(0)), spec.depth)
