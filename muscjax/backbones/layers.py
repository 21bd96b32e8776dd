"""Layers that both transformers use: explicit dtypes and precision, parameters as flat as the mathematics."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

Activation = Literal["gelu", "quick_gelu"]
Implementation = Literal["xla", "cudnn"] | None

HIGHEST = jax.lax.Precision.HIGHEST


def gelu(x: jax.Array) -> jax.Array:
    """x·Φ(x) with the error function, as PyTorch's default; the tanh form is 5e-4 off."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x·σ(1.702 x), OpenAI CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


class Dense(nn.Module):
    """``x @ kernel + bias`` over the last axis, in ``dtype`` and at an explicit precision."""

    features: int
    dtype: jnp.dtype
    precision: jax.lax.Precision = HIGHEST
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype), precision=self.precision)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class LayerNorm(nn.Module):
    """Normalisation over the last axis in float32, whatever the tokens' dtype.

    The variance is taken about the mean: CLIP's residual stream has channels a hundred times the others,
    where E[x²] - E[x]² loses half of float32's digits.
    """

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        centred = x.astype(jnp.float32)
        centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (centred * inverse * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


class Block(nn.Module):
    """A pre-norm transformer block; attention over the last-but-one axis of tokens (B, T, C).

    ``mask`` (T,) bool, optional: keys that may be attended to.
    """

    heads: int
    hidden: int
    eps: float
    dtype: jnp.dtype
    activation: Activation = "gelu"
    qkv_bias: bool = True
    layer_scale: bool = False
    precision: jax.lax.Precision = HIGHEST
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        x = x + self._scaled(self._attention(LayerNorm(self.eps, name="norm1")(x), mask), "scale1")
        return x + self._scaled(self._mlp(LayerNorm(self.eps, name="norm2")(x)), "scale2")

    def _attention(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        batch, tokens, width = x.shape
        qkv = Dense(3 * width, self.dtype, self.precision, self.qkv_bias, name="qkv")(x)
        q, k, v = (
            part.reshape(batch, tokens, self.heads, width // self.heads)
            for part in jnp.split(qkv, 3, axis=-1)
        )
        if mask is not None:
            mask = jnp.broadcast_to(mask[None, None, None, :], (1, 1, tokens, tokens))
        # The function has no precision argument, and promotes bfloat16 to float32 itself; both contexts
        # are read when it is traced.
        with jax.default_matmul_precision(self.precision.name.lower()), jax.numpy_dtype_promotion("standard"):
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=self.implementation)
        mixed = mixed.reshape(batch, tokens, width)
        return Dense(width, self.dtype, self.precision, name="out")(mixed)

    def _mlp(self, x: jax.Array) -> jax.Array:
        hidden = Dense(self.hidden, self.dtype, self.precision, name="fc1")(x)
        hidden = ACTIVATIONS[self.activation](hidden)
        return Dense(x.shape[-1], self.dtype, self.precision, name="fc2")(hidden)

    def _scaled(self, branch: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return branch
        gamma = self.param(name, nn.initializers.ones, (branch.shape[-1],)).astype(branch.dtype)
        return branch * gamma[None, None, :]


def flat_shapes(tree, depth: int) -> dict[str, tuple[int, ...]]:
    """Flat names and shapes of parameters with one block, as they are with ``depth`` equal ones."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {".".join(str(part.key) for part in path): leaf.shape for path, leaf in leaves}
    block = {name: shape for name, shape in flat.items() if name.startswith("block_0.")}
    more = {name.replace("_0.", f"_{i}.", 1): shape for i in range(1, depth) for name, shape in block.items()}
    return flat | more
