"""What this device reaches at best: matrix products and memory traffic, measured by plain ``jnp``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax.kernels.xla import as_operand
from muscjax.profile.program import build, interleaved

Shape = tuple[int, int, int]  # rows, contracted, columns
SHAPES: tuple[Shape, ...] = ((784, 768, 784), (2048, 2048, 2048), (3136, 768, 3136))
LARGE: Shape = (8192, 8192, 8192)  # an accelerator's best takes more


@dataclasses.dataclass(frozen=True)
class Rates:
    """Operations and bytes per second."""

    matmul: float
    shape: Shape  # of the best product
    precision: str
    bandwidth: float


def product(precision: str) -> Callable[..., Any]:
    """a (m, k), b (n, k) to a·bᵀ (m, n) float32, with operands of that precision."""

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        (left, level), (right, _) = as_operand(a, precision), as_operand(b, precision)
        return jnp.matmul(left, right.T, precision=level, preferred_element_type=jnp.float32)

    return multiply


def shapes() -> tuple[Shape, ...]:
    """Products among which this device's best rate is looked for."""
    return SHAPES if jax.default_backend() == "cpu" else (*SHAPES, LARGE)


def product_calls(wanted: Iterable[Shape], precision: str) -> dict[Shape, Callable[[], Any]]:
    """A compiled product of each shape; bfloat16 operands are rounded beforehand."""
    rng = np.random.default_rng(0)
    calls: dict[Shape, Callable[[], Any]] = {}
    for m, k, n in wanted:
        pair = [jnp.asarray(rng.random((rows, k), np.float32)) for rows in (m, n)]
        if precision == "bfloat16":
            pair = [side.astype(jnp.bfloat16) for side in pair]
        calls[m, k, n] = build(product(precision), pair)
    return calls


def operations(shape: Shape) -> float:
    """Multiplications and additions of one product."""
    return 2.0 * shape[0] * shape[1] * shape[2]


def bandwidth(size: int = 1 << 28, *, rounds: int = 3) -> float:
    """Bytes per second at best: of a copy of ``size`` bytes, or of reading them for a product with a vector.

    A host that clears fresh pages for every result makes the copy slower than the memory is.
    """
    rows = jnp.zeros((size // 4096, 1024), jnp.float32)
    vector = jnp.ones(1024, jnp.float32)
    copy = build(lambda x: x + jnp.float32(1), [rows])
    read = build(lambda x, v: jnp.matmul(x, v, precision=jax.lax.Precision.HIGHEST), [rows, vector])
    times = interleaved({"copy": copy, "read": read}, rounds=rounds)
    return max(2.0 * size / min(times["copy"]), size / min(times["read"]))


@functools.lru_cache(maxsize=8)
def measure(
    precision: str = "float32", among: tuple[Shape, ...] = (), *, rounds: int = 3, size: int = 1 << 28
) -> Rates:
    """The best of each over some rounds; once per process and precision."""
    calls = product_calls(among or shapes(), precision)
    times = interleaved({str(shape): call for shape, call in calls.items()}, rounds=rounds)
    rate = {shape: operations(shape) / min(times[str(shape)]) for shape in calls}
    best = max(rate, key=rate.__getitem__)
    return Rates(rate[best], best, precision, bandwidth(size, rounds=rounds))
