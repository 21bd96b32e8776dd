"""The rows of a mapping table: a regular expression on the source key, a target name, a transform."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Op:
    """A transform of one tensor, known in both directions so that a wrong shape can be named.

    ``apply`` turns the source array into the target's; ``source`` says which source shape a target
    shape needs; ``target`` the reverse, or None where the rank alone is already wrong.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    source: Callable[[Shape], Shape]
    target: Callable[[Shape], Shape | None]


def _ranked(rank: int, shape: Callable[[Shape], Shape]) -> Callable[[Shape], Shape | None]:
    return lambda source: shape(source) if len(source) == rank else None


VECTOR = Op(lambda a: a, lambda t: t, _ranked(1, lambda s: s))
TOKEN = Op(lambda a: a.reshape(-1), lambda t: (1, 1, *t), _ranked(3, lambda s: s[-1:]))
AS_IS = Op(lambda a: a, lambda t: t, _ranked(2, lambda s: s))
MATRIX = Op(lambda a: a.T, lambda t: t[::-1], _ranked(2, lambda s: s[::-1]))
CONV1D = Op(lambda a: a[..., 0].T, lambda t: (t[1], t[0], 1), _ranked(3, lambda s: (s[1], s[0])))
BATCHED = Op(lambda a: a[0], lambda t: (1, *t), _ranked(3, lambda s: s[1:]))


def _side(patch: int) -> int:
    return round((patch / 3) ** 0.5)


PATCH = Op(  # (C, 3, p, p) convolution of stride p to a matrix on flattened (row, column, channel) patches
    lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
    lambda t: (t[1], 3, _side(t[0]), _side(t[0])),
    _ranked(4, lambda s: (s[1] * s[2] * s[3], s[0])),
)
GRID_ONLY = Op(  # positions of the patches alone; the class token gets a zero row
    lambda a: np.concatenate([np.zeros_like(a[0, :1]), a[0]]),
    lambda t: (1, t[0] - 1, t[1]),
    _ranked(3, lambda s: (s[1] + 1, s[2])),
)
GLOBAL_HALF = Op(  # a layer on [global, local]: its first half of the inputs
    lambda a: a[:, : a.shape[1] // 2, 0].T,
    lambda t: (t[1], 2 * t[0], 1),
    _ranked(3, lambda s: (s[1] // 2, s[0])),
)
LOCAL_HALF = dataclasses.replace(GLOBAL_HALF, apply=lambda a: a[:, a.shape[1] // 2 :, 0].T)


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""One row. ``(\d+)`` in the pattern is the block's number and replaces ``{}`` in the target.

    ``part`` is the place among three tensors that are joined along the last axis (query, key, value).
    Several rows may share a pattern: the tensor is then split over several targets.
    """

    pattern: str
    target: str
    op: Op
    part: int | None = None

    def key(self, block: int | None = None) -> str:
        """The source key that this row reads, of one block."""
        return re.sub(r"\\(.)", r"\1", self.pattern.replace(r"(\d+)", str(block)))


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """All rows of one way to name the parameters of a family, and what else such files hold."""

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()  # regular expressions of keys that are read past and listed
    spec: tuple[tuple[str, object], ...] = ()  # what this code base sets and no tensor tells

    @lru_cache(maxsize=1 << 14)  # noqa: B019 (layouts are module constants)
    def match(self, key: str) -> tuple[tuple[Rule, int | None], ...]:
        """The rows that read a key, with the block's number."""
        hits = [(rule, re.fullmatch(rule.pattern, key)) for rule in self.rules]
        return tuple((rule, int(hit[1]) if hit.groups() else None) for rule, hit in hits if hit)

    @lru_cache(maxsize=1 << 14)  # noqa: B019
    def ignores(self, key: str) -> bool:
        return any(re.fullmatch(pattern, key) for pattern in self.ignored)


def affine(source: str, target: str) -> list[Rule]:
    """Weight and bias of a norm."""
    return [
        Rule(rf"{source}\.weight", f"{target}.scale", VECTOR),
        Rule(rf"{source}\.bias", f"{target}.bias", VECTOR),
    ]


def dense(source: str, target: str, *, op: Op = MATRIX, part: int | None = None) -> list[Rule]:
    """Weight and bias of a layer."""
    return [
        Rule(rf"{source}\.weight", f"{target}.kernel", op, part),
        Rule(rf"{source}\.bias", f"{target}.bias", VECTOR, part),
    ]


def rows(*groups: Rule | Iterable[Rule]) -> tuple[Rule, ...]:
    """Rows and groups of rows, flat."""
    return tuple(rule for group in groups for rule in ([group] if isinstance(group, Rule) else group))
