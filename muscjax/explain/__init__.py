"""Why a scan is hot at one place: ``explain`` for arrays, ``explain_scan`` for files."""

from muscjax.explain.arrays import explain
from muscjax.explain.files import Explained, explain_scan
from muscjax.explain.parts import Contributions, Explanation, ScanScore, Side, Stage
from muscjax.explain.place import Place

__all__ = [
    "Contributions",
    "Explained",
    "Explanation",
    "Place",
    "ScanScore",
    "Side",
    "Stage",
    "explain",
    "explain_scan",
]
