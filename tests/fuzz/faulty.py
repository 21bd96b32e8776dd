"""Readers that do wrong on purpose: the engine must see each of them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
import warnings
from pathlib import Path

from muscjax.errors import InputError
from tests.fuzz import engine
from tests.fuzz.engine import Reader

engine.CASE_S = 0.2


def first(path: Path) -> bool:
    """Is this the seed? It has to be read right."""
    return path.read_bytes() == b"seed"


def _never(path: Path) -> None:
    while not first(path):
        time.sleep(0.01)


def _raises(path: Path) -> None:
    if not first(path):
        raise ZeroDivisionError("no")


def _two_lines(path: Path) -> None:
    if not first(path):
        error = InputError(f"{path}: bad")
        error.args = (f"{path}: bad\nand worse",)  # past what its constructor does
        raise error


def _no_name(path: Path) -> None:
    if not first(path):
        raise InputError("bad")


def _wrong(path: Path) -> None:
    assert first(path), "five"


def _writes(path: Path) -> None:
    if not first(path):
        (path.parent / "left behind").write_text("x")


def _escapes(path: Path) -> None:
    if not first(path):
        os.rename(path, path.parent / "elsewhere")


def _runs(path: Path) -> None:
    if not first(path):
        subprocess.run(["true"], check=False)


def _warns(path: Path) -> None:
    if not first(path):
        warnings.warn("odd", stacklevel=1)


def _allocates(path: Path) -> None:
    if not first(path):
        try:
            bytearray(1 << 40)
        except MemoryError:
            raise InputError(f"{path}: too large") from None


def _dies(path: Path) -> None:
    if not first(path):
        ctypes.string_at(0)


def _right(path: Path) -> None:
    if not first(path):
        raise InputError(f"{path}: not a seed")


READERS = [
    Reader(name, "file", read, [b"seed"], killable=name == "may die")
    for name, read in (
        ("raises", _raises), ("two lines", _two_lines), ("no name", _no_name), ("wrong", _wrong),
        ("writes", _writes), ("escapes", _escapes), ("runs", _runs), ("warns", _warns),
        ("allocates", _allocates), ("hangs", _never), ("dies", _dies), ("may die", _dies), ("right", _right),
    )
]  # fmt: skip
