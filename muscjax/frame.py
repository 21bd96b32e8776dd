"""How a scan came to working size; apart from ``types`` for processes that have no use for JAX."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Frame:
    """How a scan was brought to working size; hashable, so that undoing it can be compiled.

    The source is padded with zeros by ``pad`` = (top, bottom, left, right), then cut to ``crop`` =
    (top, left, height, width) of the padded image (None: all of it), then resized to ``working_hw``.
    """

    source_hw: tuple[int, int]
    working_hw: tuple[int, int]
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    crop: tuple[int, int, int, int] | None = None
