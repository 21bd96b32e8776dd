"""From a folder on disk to arrays at working size: one file per layout, lazy loading, no labels needed."""

from muscjax.datasets.images import Images, prefetch
from muscjax.datasets.layouts import LAYOUTS, open_dataset
from muscjax.datasets.loading import image_hw, load_image, load_mask, load_xyz, xyz_hw
from muscjax.datasets.tree import Dataset, Modality, Scan
from muscjax.datasets.working import (
    Kind,
    Prepared,
    frame_of,
    lazy_images,
    load_truth,
    prepare,
    prepare_image,
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
    "frame_of",
    "image_hw",
    "lazy_images",
    "load_image",
    "load_mask",
    "load_truth",
    "load_xyz",
    "open_dataset",
    "prefetch",
    "prepare",
    "prepare_image",
    "working_sizes",
    "xyz_hw",
]
