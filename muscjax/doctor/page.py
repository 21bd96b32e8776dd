"""The examination on a console. Names are data: markup, emoji codes and control characters have no effect."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from muscjax.doctor import Examination
    from muscjax.doctor.files import Category, Size
    from muscjax.doctor.machine import Machine
    from muscjax.doctor.needs import Need

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, line and paragraph separators


def print_examination(console: Console, examination: Examination) -> None:
    """Machine, categories, what a run needs, then every problem as one line and their number."""
    _print_machine(console, examination.machine)
    for category, needs in zip(examination.categories, examination.needs, strict=True):
        _say(console, "")
        _print_category(console, category)
        _print_needs(console, needs)
    if examination.path is None and not examination.problems:
        return
    _say(console, "")
    fatal = len(examination.fatal)
    for position, problem in enumerate(examination.problems):
        word, style = ("error", "bold red") if position < fatal else ("note", "yellow")
        _say(console, problem, label=f"{word}: ", style=style)
    count = len(examination.problems)
    if not count:
        _say(console, "no problem found")
        return
    several = f"{count} problems" if count > 1 else "1 problem"
    _say(console, f"{several}, {fatal or 'none'} of which stop{'s' if fatal == 1 else ''} a run")


def literal(text: str) -> str:
    """``text`` on one line of visible characters; what cannot be seen is escaped as in Python."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text
    )


def _say(console: Console, text: str, *, label: str = "", style: str = "") -> None:
    from rich.text import Text

    console.print(Text.assemble((label, style), literal(text)), soft_wrap=True, highlight=False)


def _field(console: Console, name: str, text: str) -> None:
    _say(console, text, label=f"{name:<11}", style="bold")


def _print_machine(console: Console, machine: Machine) -> None:
    versions = [f"{name} {number or 'not installed'}" for name, number in machine.versions.items()]
    _field(console, "versions", ", ".join(versions))
    if machine.device is not None:
        size = "" if machine.device_memory is None else f", {_bytes(machine.device_memory)} each"
        device = machine.device
        _field(console, "devices", f"{device['count']} × {device['platform']} ({device['kind']}){size}")
    free = "" if machine.available is None else f", {_bytes(machine.available)} available"
    _field(console, "memory", "unknown" if machine.total is None else f"{_bytes(machine.total)}{free}")
    parts = ", ".join(f"{name or 'files'} {_bytes(size)}" for name, size in machine.cache_sizes.items())
    total = sum(machine.cache_sizes.values())
    filled = f"{_bytes(total)} ({parts})" if total else "empty"
    _field(console, "cache", f"{machine.cache}, {filled}")
    cached = ", ".join(machine.cached) or "none"
    _field(console, "backbones", f"weights cached: {cached}; see muscjax backbones")
    extras = [
        f"{extra}: not installed, needs {', '.join(names)} (pip install 'muscjax[{extra}]')"
        if names
        else f"{extra}: installed"
        for extra, names in machine.missing.items()
    ]
    _field(console, "extras", "; ".join(extras))


def _print_category(console: Console, category: Category) -> None:
    _field(console, "category", f"{category.name}, layout {category.layout}, {category.root}")
    counts = ", ".join(f"{defect or 'here'} {count}" for defect, count in category.counts.items())
    _field(console, "scans", f"{category.scans} ({counts})" if counts else "none")
    for name, count, sizes in (
        ("images", category.images, category.image_sizes),
        ("XYZ maps", category.clouds, category.xyz_sizes),
    ):
        _field(console, name, f"{count}{_sizes(sizes)}" if count else "none")
    _field(console, "masks", f"{category.masks}" if category.masks else "none")


def _sizes(sizes: dict[Size, int]) -> str:
    shown = [f"{h}×{w}" if len(sizes) == 1 else f"{count} of {h}×{w}" for (h, w), count in sizes.items()]
    more = f" and {len(shown) - 4} other sizes" if len(shown) > 4 else ""
    return f", {', '.join(shown[:4])}{more}" if shown else ""


def _print_needs(console: Console, needs: tuple[Need, ...]) -> None:
    from rich.table import Table

    if not needs:
        return
    _say(console, "A run needs about (T = 10¹² floating-point operations; memory at the peak):")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", overflow="fold")
    for heading in ("maps", "plan", "features", "distances", "memory", "scoring", "backbone"):
        table.add_column(heading, justify="right", no_wrap=True)
    for need in needs:
        fits = need.plan is not None
        table.add_row(
            " + ".join(need.backbones),
            f"{need.map_size}",
            need.plan or "-",
            _bytes(need.features),
            _bytes(need.distances) if fits else "-",
            _bytes(need.peak) if fits else "-",
            _flop(need.scoring_flop) if fits else "-",
            "-" if need.backbone_flop is None else _flop(need.backbone_flop),
        )
    console.print(table)
    for need in needs:
        if need.note:
            _say(console, f"{' + '.join(need.backbones)}: {need.note}")


def _bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.3g} MiB"


def _flop(count: float) -> str:
    return f"{count / 1e12:.3g} T"
