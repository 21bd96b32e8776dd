"""Where the package keeps files of its own, and the one way in which files appear: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from muscjax.errors import InputError

TEMPORARY = ".tmp"  # ending of the hidden files that a killed process may leave; nothing reads them


def cache_root() -> Path:
    """``$MUSCJAX_CACHE`` (a leading ``~`` is the home folder), or ``~/.cache/muscjax``; it need not exist."""
    stated = os.environ.get("MUSCJAX_CACHE")
    return Path(stated).expanduser() if stated else Path.home() / ".cache" / "muscjax"


def umask() -> int:
    """The process's file mode mask; files and folders of ``tempfile`` are made without regard to it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Whatever the system refuses within becomes one line of InputError about ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).replace("\n", " ")
        raise InputError(f"{path}: cannot be written ({reason}), expected a writable place") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """An empty temporary file beside ``path`` that takes its place when the block ends well.

    Otherwise it vanishes and ``path`` stays as it was. A reader never meets half a file, and of two writers
    the later one wins. Missing folders are made.

    Raises:
      InputError: the place cannot be written. What the block raises goes through as it is.
    """
    path = Path(path)
    # Short and in the same folder: a long name still fits, and the rename stays on one disk.
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY}"
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.open("xb").close()
        yield temporary
        with writing(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """``replacing`` as an open file; what the system refuses while it is written is an InputError too."""
    with replacing(path) as temporary, writing(path), temporary.open("wb") as file:
        yield file
