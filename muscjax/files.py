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
def replacing(path: str | os.PathLike, *, durable: bool = False) -> Iterator[Path]:
    """An empty temporary file beside ``path`` that takes its place when the block ends well.

    Otherwise it vanishes and ``path`` stays as it was. A reader never meets half a file, and of two writers
    the later one wins. Missing folders are made. ``durable``: the disk has it before this returns, so that
    the promise outlives a power cut.

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
            if durable:
                _to_disk(temporary)
            os.replace(temporary, path)
            if durable and os.name == "posix":
                _to_disk(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replaced(path: str | os.PathLike, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """``replacing`` as an open file; what the system refuses while it is written is an InputError too."""
    with replacing(path, durable=durable) as temporary, writing(path), temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def locked(folder: str | os.PathLike, *, name: str = ".lock", wait: bool = False) -> Iterator[None]:
    """The folder for this block alone; every other ``locked`` of it is refused, or waits, meanwhile.

    The system gives the lock back when its process ends, however it ends: no lock outlives a killed one.
    Where the system or the disk knows no locks, there are none.

    Raises:
      InputError: somebody else holds it, or the folder cannot be written.
    """
    path = Path(folder) / name
    handle = _acquired(path, wait=wait)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):  # while it is held: nobody takes a file that is about to go
                path.unlink()
            os.close(handle)


def _acquired(path: Path, *, wait: bool) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            raise InputError(
                f"{path.parent}: another run is writing here; wait for its end, or name another folder"
            ) from None
        except OSError:
            os.close(handle)
            return None
        # The one before may have removed the file between our opening it and our having it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
