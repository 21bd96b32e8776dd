"""The machine a run would use: versions, devices, memory, caches and optional packages."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

EXTRAS = {"report": ("jinja2",), "convert": ("torch",)}
_CGROUP = Path("/sys/fs/cgroup")
_VERSIONS = ("python", "muscjax", "jax", "jaxlib", "numpy")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Sizes in bytes; None where the system does not tell."""

    versions: dict[str, str | None]
    device: dict[str, Any] | None  # platform, kind, count; None where JAX finds none
    device_memory: int | None  # of one device
    total: int | None  # memory of the host, or the limit set for this process
    available: int | None
    cache: Path
    cache_sizes: dict[str, int]  # by folder of the cache
    cached: tuple[str, ...]  # backbones whose weights are here
    missing: dict[str, tuple[str, ...]]  # by extra, packages that are not installed
    trouble: str = ""  # one line where JAX cannot be used at all

    @property
    def on_host(self) -> bool:
        """Do the arrays of a run lie in the host's memory?"""
        return self.device is None or self.device["platform"] == "cpu"


def examine_machine() -> Machine:
    """Look at this machine. Optional packages are looked for, never imported."""
    from muscjax.files import cache_root

    versions: dict[str, str | None] = {"python": platform.python_version()}
    device, device_memory, cached, trouble = None, None, (), ""
    try:
        import jax

        from muscjax import outputs
        from muscjax.backbones import registry

        cached = tuple(row.name for row in registry.table() if row.cached and row.millions)
        record = outputs.run_record(None, seconds={})
        versions = {name: record["versions"].get(name) for name in _VERSIONS}
        device = record["device"]
        stats = jax.devices()[0].memory_stats() if device["platform"] != "cpu" else None
        device_memory = (stats or {}).get("bytes_limit")
    except (ImportError, RuntimeError) as error:  # a package that does not fit, a driver that does not start
        lines = str(error).strip().splitlines() or [type(error).__name__]
        trouble = f"jax: cannot be used: {lines[0]}"
    total, available = host_memory()
    cache = cache_root()
    return Machine(
        versions=versions,
        device=device,
        device_memory=device_memory,
        total=total,
        available=available,
        cache=cache,
        cache_sizes=folder_sizes(cache),
        cached=cached,
        missing={
            extra: tuple(name for name in names if importlib.util.find_spec(name) is None)
            for extra, names in EXTRAS.items()
        },
        trouble=trouble,
    )


def host_memory() -> tuple[int | None, int | None]:
    """(total, available) bytes; a container's limit counts where it is the smaller one."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None, None
    available = _meminfo("MemAvailable")
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and limit < total:
        total = limit
        if used is not None:
            free = max(0, limit - used)
            available = free if available is None else min(available, free)
    return total, available


def _meminfo(field: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def folder_sizes(root: Path) -> dict[str, int]:
    """Bytes below each folder of ``root``, and of its own files under ``""``; what cannot be read is 0."""
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        size = 0
        for name in names:
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
        first = parts[0] if parts else ""
        sizes[first] = sizes.get(first, 0) + size
    return {name: size for name, size in sorted(sizes.items()) if size}
