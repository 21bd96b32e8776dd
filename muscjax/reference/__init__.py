"""A kept set of scans, and scoring new ones against it: a line that keeps running.

``detect`` scores every scan of a set by all the others, so each new scan would cost the whole set again. A
reference store keeps what R scans are to others (pooled features, groups, clouds) on disk, and a new scan
meets those R alone: O(R), and its scores depend on no other new scan.

    kept = reference.add(folder, request, config, observe)      # costs the features of the new scans
    reference.rescore(folder, observe)                          # costs R² / 2 pairs: the frozen numbers
    muscjax detect PATH --reference FOLDER                      # costs R pairs for each scan of PATH

**Patch scores.** As in ``detect``, with all R kept scans for references: distances to every one of them,
enhancement, interval average, mean over stages. A kept scan whose working image and cloud are the very same
as the new one's is no reference of it, as no scan is one of itself in ``detect``: scored once more, a kept
scan gets the scores that ``rescore`` gave it.

**Frozen numbers.** Re-scoring, its min-max and the threshold need a set. ``rescore`` scores the kept scans by
each other, exactly as ``detect`` would, and writes down the maxima of their maps, their salient features,
their scores, the range of the heat and, with ``maps.balance``, the units of both modalities. A new scan then

* has its map in those units;
* is put on the scale of the kept maxima: (c - min) / (max - min), beyond 0...1 where it is beyond them;
* has the kept scans and, last, itself for candidates of its neighbourhood, and takes the weighted mean of
  their scores as ``rscon.rescore`` would;
* is labelled by the threshold that ``decision.decide`` reads from the kept scores.

``add`` and ``prune`` leave the frozen numbers as they are: they are those of an older set until ``rescore``
is called, and ``info`` and every run say so.
"""

from muscjax.reference.adding import Added, add
from muscjax.reference.against import frozen_rescore, score_against, statistics
from muscjax.reference.kept import Frozen, Kept, open_kept, prune, read_frozen
from muscjax.reference.line import Line, detect, open_line, remarks, rescore
from muscjax.reference.origin import compare_request, defaults
from muscjax.reference.telling import examine, told, write

__all__ = [
    "Added",
    "Frozen",
    "Kept",
    "Line",
    "add",
    "compare_request",
    "defaults",
    "detect",
    "examine",
    "frozen_rescore",
    "open_kept",
    "open_line",
    "prune",
    "read_frozen",
    "remarks",
    "rescore",
    "score_against",
    "statistics",
    "told",
    "write",
]
