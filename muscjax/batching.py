"""How a stage, written for one sample, meets a batch of them.

The batches themselves are made on the host: of scans in ``extract``, of maps in ``detection``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def each(function: Callable[[Any], Any], batch: Any) -> Any:
    """``function`` of every entry along the leading axis of a pytree, joined along a new leading axis.

    One after the other on a CPU, whose caches then hold what one sample needs; all at once elsewhere, where
    a thousand small dependent steps, as of the farthest points, are limited by their launches. The memory on
    such a device is that of the whole batch: callers take the batch from their memory budget.
    """
    return lax.platform_dependent(
        batch, cpu=lambda entries: lax.map(function, entries), default=jax.vmap(function)
    )
