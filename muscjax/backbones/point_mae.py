"""The Point-MAE encoder (Pang et al., ECCV 2022) as a pure function on one cloud's groups (section III-A)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from muscjax.backbones import layers
from muscjax.backbones.layers import HIGHEST, Block, Dense, Implementation, LayerNorm, gelu
from muscjax.types import Cloud, PointGroups

BatchNormMode = Literal["running", "cloud"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """An architecture; hashable, so that it can be a static argument."""

    width: int = 384  # C
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    eps: float = 1e-5  # of the layer norms and of the batch norms
    taps: tuple[int, ...] = (3, 7, 11)  # blocks, counted from 0
    final_norm: bool = True  # the last norm, applied to every tapped block
    family: str = "point_mae"
    name: str = "point-mae"


class BatchNorm(nn.Module):
    """Per-channel normalisation of rows (G, K, C): stored statistics, or those of the valid groups."""

    eps: float
    mode: BatchNormMode

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels).astype(jnp.float32)
        mean = self.param("mean", nn.initializers.zeros, channels).astype(jnp.float32)
        var = self.param("var", nn.initializers.ones, channels).astype(jnp.float32)
        if self.mode == "cloud":
            weight = jnp.where(valid, 1.0, 0.0)[:, None, None]
            rows = jnp.maximum(jnp.sum(weight) * x.shape[1], 1.0)
            full = x.astype(jnp.float32)
            mean = jnp.sum(full * weight, axis=(0, 1)) / rows
            var = jnp.sum(jnp.square(full - mean[None, None]) * weight, axis=(0, 1)) / rows
        gain = scale * jax.lax.rsqrt(var + self.eps)
        shift = bias - mean * gain
        return (x.astype(jnp.float32) * gain[None, None] + shift[None, None]).astype(x.dtype)


class GroupEncoder(nn.Module):
    """One token per group from its points relative to the centre: (G, K, 3) -> (G, C)."""

    width: int
    eps: float
    mode: BatchNormMode
    dtype: jnp.dtype
    precision: jax.lax.Precision = HIGHEST

    @nn.compact
    def __call__(self, neighbourhood: jax.Array, valid: jax.Array) -> jax.Array:
        def dense(features, name, use_bias=True):
            return Dense(features, self.dtype, self.precision, use_bias, name=name)

        x = dense(128, "first_1")(neighbourhood)
        x = nn.relu(BatchNorm(self.eps, self.mode, name="first_norm")(x, valid))
        local = dense(256, "first_2")(x)
        # The published layer acts on [global, local] concatenated; its global half is the same for all
        # points of a group, so it runs once per group.
        whole = dense(512, "second_global")(jnp.max(local, axis=1))
        x = dense(512, "second_local", use_bias=False)(local) + whole[:, None, :]
        x = nn.relu(BatchNorm(self.eps, self.mode, name="second_norm")(x, valid))
        return jnp.max(dense(self.width, "second_2")(x), axis=1)


class PointMAE(nn.Module):
    spec: Spec
    taps: tuple[int, ...]
    final_norm: bool
    mode: BatchNormMode
    dtype: jnp.dtype
    precision: jax.lax.Precision = HIGHEST
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, neighbourhood: jax.Array, centers: jax.Array, valid: jax.Array) -> list[jax.Array]:
        spec = self.spec
        encoder = GroupEncoder(spec.width, spec.eps, self.mode, self.dtype, self.precision, name="encoder")
        x = encoder(neighbourhood, valid)[None]
        position = gelu(Dense(128, self.dtype, self.precision, name="position_1")(centers))
        position = Dense(spec.width, self.dtype, self.precision, name="position_2")(position)[None]
        norm = LayerNorm(spec.eps, name="norm")
        tapped = {}
        for i in range(max(self.taps) + 1 if not self.is_initializing() else spec.depth):
            block = Block(
                spec.heads,
                round(spec.width * spec.mlp_ratio),
                spec.eps,
                self.dtype,
                qkv_bias=False,
                precision=self.precision,
                implementation=self.implementation,
                name=f"block_{i}",
            )
            x = block(x + position, valid)
            if i in self.taps:
                tapped[i] = norm(x) if self.final_norm else x
        return [tapped[i][0] for i in self.taps]


def features(
    params,
    cloud: Cloud,
    groups: PointGroups,
    *,
    spec: Spec = Spec(),
    batch_norm: BatchNormMode = "running",
    taps: tuple[int, ...] | None = None,
    final_norm: bool | None = None,
    dtype=jnp.float32,
    precision: jax.lax.Precision = HIGHEST,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Tokens of the tapped blocks for the groups of one cloud, (S, G, C) float in ``dtype``.

    Args:
      params: the nested dictionary of :func:`init` or of a converted file.
      cloud: one sample; its normalised points are read.
      groups: one sample; groups that are not valid touch no other and come out as 0.
      spec: the architecture.
      batch_norm: "running" uses the stored statistics. "cloud" uses those of this cloud's rows (biased
        variance, valid groups only): the released script never switches its network to evaluation, so
        its published 3D numbers come from that, with random DropPath on top, which is not offered.
      taps: blocks counted from 0; None: the architecture's.
      final_norm: apply the last norm to every tapped block; None: the architecture's.
      dtype: of the products; norms and softmax stay in float32.

    Raises:
      ValueError: a tap outside the network or an unknown ``batch_norm``.
    """
    taps = spec.taps if taps is None else tuple(taps)
    if not taps or not all(0 <= i < spec.depth for i in taps):
        raise ValueError(f"taps {taps} of a network with {spec.depth} blocks, counted from 0")
    if batch_norm not in ("running", "cloud"):
        raise ValueError(f"batch_norm {batch_norm!r}: expected 'running' or 'cloud'")
    model = PointMAE(
        spec,
        taps,
        spec.final_norm if final_norm is None else final_norm,
        batch_norm,
        jnp.dtype(dtype),
        precision,
        implementation,
    )
    neighbourhood = cloud.points[groups.indices] - groups.centers[:, None, :]
    tapped = cast(Any, model.apply)({"params": params}, neighbourhood, groups.centers, groups.valid)
    return jnp.where(groups.valid[None, :, None], jnp.stack(tapped), jnp.zeros((), dtype))


def init(key: jax.Array, *, spec: Spec = Spec()):
    """Random parameters of the right shapes; for tests and benchmarks, never for detection."""
    model = PointMAE(spec, spec.taps, spec.final_norm, "running", jnp.dtype(jnp.float32))
    return model.init(key, jnp.zeros((2, 2, 3)), jnp.zeros((2, 3)), jnp.ones(2, bool))["params"]


def shapes(spec: Spec = Spec()) -> dict[str, tuple[int, ...]]:
    """Every parameter's flat name (``block_0.qkv.kernel``) and shape; nothing is allocated."""
    one = dataclasses.replace(spec, depth=1, taps=(0,))
    return layers.flat_shapes(jax.eval_shape(lambda key: init(key, spec=one), jax.random.key(0)), spec.depth)
