"""Two runs of the same scans side by side: what their difference is worth, and which scans moved.

A difference of two figures over the same scans is much surer than either figure: the bootstrap draws scans,
and both runs are evaluated on each draw. Scores of two runs are not on one scale, so a scan's change is that
of its rank among the scans of its category.
"""

from muscjax.compare.figures import METRICS, Comparison, compare
from muscjax.compare.runs import Run, read_run
from muscjax.compare.show import COLUMNS, print_comparison, write

__all__ = ["COLUMNS", "METRICS", "Comparison", "Run", "compare", "print_comparison", "read_run", "write"]
