"""Weights from the network into the cache: whole files or none, and always the same bytes.

The cache (``$MUSCJAX_CACHE``, else ``~/.cache/muscjax``) holds ``downloads/`` as published,
``backbones/`` as converted, and ``hashes.json``: the SHA-256 of everything that was ever trusted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from muscjax.backbones.params import sha256
from muscjax.errors import InputError
from muscjax.files import cache_root, replaced, replacing
from muscjax.texts import read_record

_TIMEOUT = 20  # seconds without an answer
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a published checkpoint lies: a hub repository's file, or an address of its own."""

    repository: str = ""  # owner/name on the Hugging Face hub
    file: str = "model.safetensors"
    revision: str = "main"  # a commit where one is pinned; otherwise the first use's commit is kept
    url: str = ""
    sha256: str | None = None  # None: recorded on first use

    @property
    def key(self) -> str:
        """The name under which its hash is kept."""
        return self.url or f"{self.repository}/{self.file}"

    @property
    def suffix(self) -> str:
        return Path(self.url or self.file).suffix

    def address(self, revision: str | None = None) -> str:
        """The address of the file, for a person or a client."""
        return self.url or f"{hub()}/{self.repository}/resolve/{revision or self.revision}/{self.file}"


def hub() -> str:
    """The hub's address, which ``HF_ENDPOINT`` can replace by a mirror."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def download_path(name: str, source: Source) -> Path:
    """Where the published file of a backbone lies, or where a person may put it."""
    return cache_root() / "downloads" / f"{name}{source.suffix}"


def fetch(name: str, source: Source, *, alternative: str, progress: bool = True) -> Path:
    """The published file of a backbone, from the cache or the network, verified.

    Args:
      name: of the backbone.
      source: where it lies.
      alternative: what a user without network can do instead, for the message.
      progress: show a bar.

    Raises:
      InputError: no network, no such file, a broken transfer, or bytes other than those trusted before.
    """
    placed = download_path(name, source)
    if placed.is_file():
        verify(placed, source.key, source.sha256)
        return placed
    try:
        if source.url:
            with replacing(placed) as temporary:
                _download(source.url, temporary, label=name, progress=progress)
                verify(temporary, source.key, source.sha256)
            return placed
        return _from_hub(source, progress=progress)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name}: cannot be downloaded ({_reason(error)}); fetch {source.address()} on another machine "
            f"and save it as {placed}, or go without weights: {alternative}"
        ) from None


def verify(path: Path, key: str, known: str | None = None) -> str:
    """Compare a file's hash with the one that is known or was recorded; record it the first time.

    Raises:
      InputError: the bytes differ.
    """
    found = sha256(path)
    trusted = known or recorded(key)
    if trusted is None:
        record(key, found)
    elif found != trusted:
        raise InputError(
            f"{path}: SHA-256 is {found}, expected {trusted} of {key}; delete the file to fetch it again"
        )
    return found


def recorded(key: str) -> str | None:
    """What was trusted under a key: a file's hash, or the commit of a hub repository."""
    value = _ledger().get(key)
    return value if isinstance(value, str) else None


def record(key: str, value: str) -> None:
    entries = _ledger() | {key: value}
    with replaced(_ledger_path()) as file:
        file.write((json.dumps(entries, indent=1, sort_keys=True) + "\n").encode())


def _ledger_path() -> Path:
    return cache_root() / "hashes.json"


def _ledger() -> dict[str, str]:
    path = _ledger_path()
    return read_record(path) if path.exists() else {}


def _download(url: str, path: Path, *, label: str, progress: bool) -> None:
    """One whole file; a transfer that ends early is an error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    if not url.startswith(("http://", "https://")):
        raise ValueError(f"address {url} is not http")
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with _ask(url) as answer, open(path, "wb") as file:
        stated = answer.headers.get("Content-Length")
        total = int(stated) if stated else None
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task(label, total=total)
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))
        if total is not None and file.tell() != total:
            raise OSError(f"the transfer ended after {file.tell()} of {total} bytes")


def _from_hub(source: Source, *, progress: bool) -> Path:
    import huggingface_hub

    kept = f"{source.repository}@commit"
    revision = (recorded(kept) if source.revision == "main" else None) or source.revision
    with _quiet(bars=progress):
        download = partial(
            huggingface_hub.hf_hub_download,
            source.repository,
            source.file,
            revision=revision,
            endpoint=hub(),
        )
        try:
            path = Path(download(local_files_only=True))
        except FileNotFoundError:
            # The client tries for half a minute before it gives up; one request tells at once.
            _reach(source.address(revision))
            path = Path(download())
    if source.revision == "main" and recorded(kept) is None and path.parent.parent.name == "snapshots":
        record(kept, path.parent.name)
    verify(path, source.key, source.sha256)
    return path


def _reach(url: str) -> None:
    try:
        _ask(urllib.request.Request(url, method="HEAD")).close()
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise


def _ask(request: str | urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """The hub client without its retry warnings, and without bars when none are wanted."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, hidden = logger.level, are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars and not hidden:
            enable_progress_bars()


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
