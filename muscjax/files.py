"""Where the package keeps files of its own, and with which rights they appear."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$MUSCJAX_CACHE`` (a leading ``~`` is the home folder), or ``~/.cache/muscjax``; it need not exist."""
    stated = os.environ.get("MUSCJAX_CACHE")
    return Path(stated).expanduser() if stated else Path.home() / ".cache" / "muscjax"


def umask() -> int:
    """The process's file mode mask; files and folders of ``tempfile`` are made without regard to it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
