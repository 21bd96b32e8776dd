"""What a compiled program computes and sends, read off its HLO with loops multiplied out."""

from __future__ import annotations

import dataclasses
import math
import re

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8}
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+?)(?:\{[\d,]*\})? ([\w-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_NAME = re.compile(r"%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Program:
    """Of one device, for one run."""

    product_flops: int  # of products of two matrices; not those with a vector, such as norms
    bytes_sent: int  # by collective-permute
    permutes: int

    def __add__(self, more: Program) -> Program:
        return Program(*(a + b for a, b in zip(_numbers(self), _numbers(more), strict=True)))

    def __mul__(self, times: int) -> Program:
        return Program(*(times * number for number in _numbers(self)))


def _numbers(program: Program) -> tuple[int, int, int]:
    return program.product_flops, program.bytes_sent, program.permutes


@dataclasses.dataclass(frozen=True)
class Part:
    """What computes products, or sends, in the outermost program; and the parts that must come before it."""

    name: str
    product_flops: int
    bytes_sent: int
    after: frozenset[str]


def read(text: str) -> Program:
    """Count ``compiled.as_text()``.

    Raises:
        ValueError: a loop whose length the compiler does not know.
    """
    entry, bodies = _bodies(text)
    return _count(entry, bodies)


def parts(text: str) -> list[Part]:
    """The parts of ``compiled.as_text()`` in the order of the text, which is one of their orders."""
    entry, bodies = _bodies(text)
    before: dict[str, frozenset[str]] = {}  # of every instruction, the parts that its value needs
    shapes: dict[str, list[int]] = {}
    found: list[Part] = []
    for line in bodies[entry]:
        matched = _LINE.match(line)
        if not matched:
            continue
        name, operands = matched[1], _NAME.findall(matched[4])
        after = frozenset().union(*(before.get(operand, frozenset()) for operand in operands))
        alone = _counted(matched, shapes, bodies)
        if alone.product_flops or alone.bytes_sent:
            found.append(Part(name, alone.product_flops, alone.bytes_sent, after))
            after = after | {name}
        before[name] = after
    return found


def _bodies(text: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the outermost computation, and the lines of each."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        opened = re.match(r"^(ENTRY )?%?([\w.-]+) .*\{$", line)
        if opened:
            current = bodies.setdefault(opened[2], [])
            entry = opened[2] if opened[1] else entry
        elif current is not None:
            current.append(line)
    return entry, bodies


def _count(name: str, bodies: dict[str, list[str]]) -> Program:
    total, shapes = Program(0, 0, 0), {}
    for line in bodies[name]:
        matched = _LINE.match(line)
        if matched:
            total += _counted(matched, shapes, bodies)
    return total


def _counted(line: re.Match[str], shapes: dict[str, list[int]], bodies: dict[str, list[str]]) -> Program:
    """One instruction with what it calls; its shape joins those of the instructions before it."""
    result, kind, operation, rest = line.groups()
    total, shape = Program(0, 0, 0), _SHAPE.match(kind)
    if shape:
        shapes[result] = [int(side) for side in shape[2].split(",") if side]
    if operation == "dot" and len(shapes[result]) > 1 and min(shapes[result]) > 1:
        left, contracted = shapes[_NAME.findall(rest)[0]], _CONTRACTED.search(rest)
        assert contracted is not None
        inner = math.prod(left[int(axis)] for axis in contracted[1].split(","))
        total += Program(2 * math.prod(shapes[result]) * inner, 0, 0)
    elif operation in ("collective-permute", "collective-permute-start"):
        sent = _SHAPE.findall(kind)[0]
        sides = [int(side) for side in sent[1].split(",") if side]
        total += Program(0, _BYTES[sent[0]] * math.prod(sides), 1)
    times = 1
    if operation == "while":
        trips = _TRIPS.search(rest)
        if trips is None:
            raise ValueError(f"hlo: the length of loop {result} is not known")
        times = int(trips[1])
    for called in _CALLED.findall(rest):
        total += _count(called, bodies) * times
    return total
