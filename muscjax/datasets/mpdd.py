"""MPDD: the tree of MVTec AD with metal parts; told apart by the names of its parts and defects.

S. Jezek, M. Jonak, R. Burget, P. Dvorak, M. Skotak, "Deep learning-based defect detection of metal parts:
evaluating current methods in complex conditions", ICUMT 2021.
"""

from __future__ import annotations

from pathlib import Path

from muscjax.datasets import mvtec
from muscjax.datasets.tree import Dataset, Modality, subfolders

NAME = "mpdd"
EXPECTED = "bracket_black/test/<defect>/NNN.png and bracket_black/ground_truth/<defect>/NNN_mask.png"
# The names of some parts are anybody's; with those of their defects they are not
DEFECTS = {
    "bracket_black": {"hole", "scratches"},
    "bracket_brown": {"bend_and_parts_mismatch", "parts_mismatch"},
    "bracket_white": {"defective_painting", "scratches"},
    "connector": {"parts_mismatch"},
    "metal_plate": {"major_rust", "scratches", "total_rust"},
    "tubes": {"anomalous"},
}


def _is_part(path: Path) -> bool:
    known = DEFECTS.get(path.resolve().name, set())
    found = {child.name for child in subfolders(path / "test")} - {"good"}
    return bool(found) and found <= known and mvtec.is_category(path)


def matches(path: Path) -> bool:
    """Is ``path`` one of the parts, or a folder in which every category is one?"""
    if _is_part(path):
        return True
    categories = [child for child in subfolders(path) if mvtec.is_category(child)]
    return bool(categories) and all(_is_part(child) for child in categories)


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """As ``mvtec.read``, under the name of MPDD; asked for by name, any category of that tree will do.

    Raises:
      InputError: ``path`` has another layout, no such category, or ``modality`` asks for points.
    """
    return mvtec.read_tree(
        path,
        mvtec.is_category,
        category=category,
        split=split,
        modality=modality,
        layout=NAME,
        expected=EXPECTED,
    )
