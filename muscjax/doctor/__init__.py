"""``muscjax doctor``: what is installed, what is wrong with a data set, and what a run of it will need.

Nothing is computed on a device and nothing is written; every file of the data set is read once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from muscjax import datasets
from muscjax.datasets.loading import Units
from muscjax.datasets.tree import Modality
from muscjax.doctor.files import Category, Progress, examine_category, silent, skipped_folders
from muscjax.doctor.machine import Machine, examine_machine
from muscjax.doctor.needs import Need, Tokens, default_tokens, run_needs
from muscjax.doctor.page import print_examination
from muscjax.errors import InputError

if TYPE_CHECKING:
    from muscjax.config import Config

__all__ = [
    "Category",
    "Examination",
    "Machine",
    "Need",
    "Tokens",
    "default_tokens",
    "examine",
    "print_examination",
    "run_needs",
]


@dataclasses.dataclass(frozen=True)
class Examination:
    """Everything that was found out."""

    machine: Machine
    categories: tuple[Category, ...]
    needs: tuple[tuple[Need, ...], ...]  # one tuple per category
    problems: tuple[str, ...]  # one line each, fatal ones first
    fatal: tuple[str, ...]  # those of ``problems`` that stop a run
    path: Path | None = None  # of the data set, if one was asked for

    @property
    def exit_code(self) -> int:
        """1 where something would stop a run, else 0."""
        return int(bool(self.fatal))


def examine(
    path: Path | None = None,
    *,
    layout: str = "auto",
    category: str | None = None,
    split: str = "test",
    modality: Modality = "auto",
    units: Units = "auto",
    config: Config | None = None,
    progress: Progress = silent,
) -> Examination:
    """The machine and, with a ``path``, every file of the data set below it; all problems at once.

    Args:
      path: what ``muscjax detect`` would be given; None: the machine alone.
      layout, category, split, modality, units: as ``detect`` takes them.
      config: of the run whose needs are estimated; ``released()`` when None.
      progress: called as (stage, done, total) while files are read.

    Raises:
      InputError: ``path`` is no folder, or an option that the data set does not know. A folder without a
        recognisable data set is a finding, no error.
    """
    if config is None:
        from muscjax.config import released

        config = released()
    machine = examine_machine()
    fatal, minor = ([machine.trouble] if machine.trouble else []), []
    found: list[datasets.Dataset] = []
    if path is not None:
        try:
            found = datasets.open_dataset(
                path, layout=layout, category=category, split=split, modality=modality, strict=False
            )
        except InputError as error:
            default = (layout, category or "all", modality) == ("auto", "all", "auto")
            if not (default and path.is_dir()):
                raise
            fatal.append(str(error))
    categories = []
    for dataset in found:
        categories.append(
            examine_category(dataset, split=split, modality=modality, units=units, progress=progress)
        )
        fatal += categories[-1].fatal
        minor += categories[-1].minor
    if path is not None and found and category in (None, "all"):
        minor += skipped_folders(path, found)
    tokens = default_tokens(config, machine.cached)
    needs = tuple(
        run_needs(item, tokens, config, available=machine.available if machine.on_host else None)
        for item in categories
    )
    return Examination(machine, tuple(categories), needs, (*fatal, *minor), tuple(fatal), path)
