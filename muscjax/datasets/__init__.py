"""From a folder on disk to arrays at working size: one file per layout, lazy loading, no labels needed."""

from muscjax.datasets.images import Images, prefetch
from muscjax.datasets.layouts import LAYOUTS, open_dataset
from muscjax.datasets.loading import image_hw, load_image, load_mask, load_xyz, xyz_hw
from muscjax.datasets.sources import load_scan_xyz, scan_xyz_hw
from muscjax.datasets.tree import Dataset, Modality, Scan
from muscjax.datasets.working import (
    Kind,
    Prepared,
    Working,
    frame_of,
    load_truth,
    open_working,
    prepare,
    working_sizes,
)

__all__ = [
    "LAYOUTS",
    "Dataset",
    "Images",
    "Kind",
    "Modality",
    "Prepared",
    "Scan",
    "Working",
    "frame_of",
    "image_hw",
    "load_image",
    "load_mask",
    "load_scan_xyz",
    "load_truth",
    "load_xyz",
    "open_dataset",
    "open_working",
    "prefetch",
    "prepare",
    "scan_xyz_hw",
    "working_sizes",
    "xyz_hw",
]
