"""The min-distance kernel: one signature, chosen by ``implementation=``; ``xla`` is the reference."""

from __future__ import annotations

from collections.abc import Callable

from muscjax.kernels import xla

IMPLEMENTATIONS: dict[str, Callable] = {"xla": xla.min_squared_distances}


def min_squared_distances(implementation: str) -> Callable:
    """The implementation of that name (see ``xla.min_squared_distances`` for the signature)."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r}: expected one of {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[implementation]


__all__ = ["IMPLEMENTATIONS", "min_squared_distances"]
