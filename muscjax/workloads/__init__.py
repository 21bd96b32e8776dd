"""Named real workloads: sizes, networks, and inputs that look like the real thing.

Benchmarks, ``muscjax profile`` and tests share them, so that a figure always names the same work. A workload
is a frozen dataclass of sizes; ``inputs(seed)`` makes its arrays in NumPy. Nothing is computed at import.

Features have unit norm and real neighbours: every place of the grid holds a mixture of a few materials, the
samples of a set differ by noise and by a small shift, and some samples hold a defect. Clouds are organised
scans of a curved part with ridges, so that flat and curved groups both occur.
"""

from muscjax.workloads.data import cloud, features, images, nearest_groups, organised_scan
from muscjax.workloads.names import GROUPS, STAGES, WORKLOADS, find, scoring_sweep
from muscjax.workloads.sizes import (
    Averaging,
    Fusing,
    Grouping,
    GroupPooling,
    ImageNetwork,
    Interpolating,
    Pipeline,
    PointNetwork,
    Pooling,
    Scoring,
    Workload,
)

__all__ = [
    "GROUPS",
    "STAGES",
    "WORKLOADS",
    "Averaging",
    "Fusing",
    "GroupPooling",
    "Grouping",
    "ImageNetwork",
    "Interpolating",
    "Pipeline",
    "PointNetwork",
    "Pooling",
    "Scoring",
    "Workload",
    "cloud",
    "features",
    "find",
    "images",
    "nearest_groups",
    "organised_scan",
    "scoring_sweep",
]
