"""The table of layouts, and opening a data set with one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from muscjax.datasets import btad, eyecandies, folder, mpdd, mvtec, mvtec3d, visa
from muscjax.datasets.tree import Dataset, Modality, with_fewest
from muscjax.errors import InputError


class Layout(Protocol):
    """What the module of a layout offers; a new layout is a new module and a line in ``LAYOUTS``."""

    @property
    def NAME(self) -> str: ...

    @property
    def EXPECTED(self) -> str: ...  # the tree, for messages

    def matches(self, path: Path) -> bool: ...

    def read(self, path: Path, *, category: str | None, split: str, modality: Modality) -> list[Dataset]: ...


# In the order of recognition. VisA (converted) and MPDD have the tree of MVTec AD and are told apart by
# names, BTAD by its folders, so they come before it; a plain folder matches whatever holds images: last.
LAYOUTS: dict[str, Layout] = {
    mvtec3d.NAME: mvtec3d,
    eyecandies.NAME: eyecandies,
    visa.NAME: visa,
    mpdd.NAME: mpdd,
    btad.NAME: btad,
    mvtec.NAME: mvtec,
    folder.NAME: folder,
}


def open_dataset(
    path: str | Path,
    *,
    layout: str = "auto",
    category: str | None = None,
    split: str = "test",
    modality: Modality = "auto",
    strict: bool = True,
    fewest: int = 2,
) -> list[Dataset]:
    """The data sets under ``path``, one per category.

    Folders are listed; no file is opened but those that hold labels: a CSV split, ``labels.csv``, Eyecandies'
    ``metadata.yaml``, and masks where nothing else tells good from defective.

    Args:
      path: a category, a folder of categories, or a plain folder of images.
      layout: a key of ``LAYOUTS``, or "auto" to recognise it from the tree.
      category: the one to read; None or "all" for all of them.
      split: folder of the scans, in layouts that have splits.
      modality: what a run will use; "auto" is both where both are there. "image" and "points" ask for no
        partner.
      strict: raise on fatal problems; otherwise they stand in ``Dataset.fatal``.
      fewest: scans without which no run is possible: two, or one where it is scored against a reference set.

    Raises:
      InputError: no such folder, an unknown or unrecognisable layout or, if ``strict``, a fatal problem
        (scans that do not pair, one stem twice, too few scans); it names the first and counts them.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such folder")
    if not path.is_dir():
        raise InputError(f"{path}: found a file, expected the folder of a data set")
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"layout: found {layout!r}, expected auto or one of: {', '.join(LAYOUTS)}")
    try:
        reader = _recognise(path) if layout == "auto" else LAYOUTS[layout]
        found = reader.read(path, category=category, split=split, modality=modality)
        datasets = [with_fewest(dataset, fewest) for dataset in found]
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be listed: {error.strerror}") from None
    fatal = [problem for dataset in datasets for problem in dataset.fatal]
    if strict and fatal:
        more = f" (first of {len(fatal)} problems)" if len(fatal) > 1 else ""
        raise InputError(fatal[0] + more)
    return datasets


def _recognise(path: Path) -> Layout:
    for reader in LAYOUTS.values():
        if reader.matches(path):
            return reader
    trees = "; ".join(f"{reader.NAME}: {reader.EXPECTED}" for reader in LAYOUTS.values())
    raise InputError(f"{path}: found no known layout, expected one of: {trees}")
