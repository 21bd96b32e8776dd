"""A synthetic product line: RGB, organised XYZ and exact defect masks from seeds, without files or network.

>>> from muscjax.datasets import synthetic
>>> scan = synthetic.render("cap", 7, defect="depth_dent")
>>> scan.rgb.shape, scan.xyz.dtype.name, scan.kind
((256, 256, 3), 'float32', 'depth')
"""

from muscjax.datasets.synthetic.defects import DEFECTS
from muscjax.datasets.synthetic.scan import DEPTH_THRESHOLD, RGB_THRESHOLD, Rendered, parts, render
from muscjax.datasets.synthetic.write import Line, schedule, write_line

__all__ = [
    "DEFECTS",
    "DEPTH_THRESHOLD",
    "RGB_THRESHOLD",
    "Line",
    "Rendered",
    "parts",
    "render",
    "schedule",
    "write_line",
]
