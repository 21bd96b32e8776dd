"""Seconds of the host's own stages: plane removal on native scans, and all pixel metrics of 100 maps.

python -m benchmarks.host path/to/mvtec3d_native/cable_gland
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from muscjax import datasets, metrics, preprocess


def plane_removal(root: Path) -> list[float]:
    """Processor seconds per scan; the first call, which loads libraries, is left out."""
    seconds = []
    for path in sorted(root.glob("test/*/xyz/*.tiff")):
        xyz = datasets.load_xyz(path)
        for _ in range(1 if seconds else 2):
            begin = time.process_time()
            preprocess.foreground(xyz)
            spent = time.process_time() - begin
        seconds.append(spent)
    return seconds


def pixel_metrics(count: int = 100, side: int = 400) -> tuple[float, float]:
    """Wall seconds of all pixel metrics, and of one stable sort of the same pixels."""
    rng = np.random.default_rng(0)
    maps = rng.random((count, side, side), dtype=np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:, 40:90, 60:100] = True
    metrics.pixel_metrics(masks[:2], maps[:2])
    begin = time.perf_counter()
    metrics.pixel_metrics(masks, maps)
    middle = time.perf_counter()
    np.argsort(maps.ravel(), kind="stable")
    return middle - begin, time.perf_counter() - middle


def main() -> None:
    seconds = plane_removal(Path(sys.argv[1]))
    print(
        f"plane removal: {len(seconds)} scans, median {np.median(seconds):.3f} s, worst {max(seconds):.3f} s"
    )
    all_metrics, one_sort = pixel_metrics()
    print(f"pixel metrics of 100 maps of 400×400: {all_metrics:.2f} s; one sort {one_sort:.2f} s")


if __name__ == "__main__":
    main()
