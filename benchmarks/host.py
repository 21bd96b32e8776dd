"""What the host does around the device: seconds of its own stages, and whether reading keeps up.

python -m benchmarks.host path/to/mvtec3d path/to/mvtec3d_native/cable_gland

The first folder is a data set for the loader, the second one for plane removal at the sensor's resolution.
Either may be left out as "-"; without a data set the loader is given a synthetic line of 108 scans.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from muscjax import datasets, extract, metrics, preprocess
from muscjax.config import Config
from muscjax.datasets.synthetic import write_line

STUB_SECONDS = 5e-3  # of a backbone per image


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


def preprocessing(scans: Sequence[datasets.Scan], modality: datasets.Kind) -> dict[str, float]:
    """Wall seconds of ``open_working``: with an empty cache by threads, one and two processes, and again."""
    from muscjax import geometry  # JAX is no part of what is measured

    del geometry
    seconds = {}
    for name, processes in (("threads", 0), ("1 process", 1), ("2 processes", 2)):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                begin = time.perf_counter()
                datasets.open_working(
                    scans, Config(), modality=modality, cache_dir=Path(cache), processes=processes
                )
                seconds[f"{state}, {name}"] = time.perf_counter() - begin
    return seconds


def stub_backbone(seconds: float) -> tuple[Callable[[Any], Any], list[tuple[float, float]]]:
    """A backbone that sleeps so long per image, and the list of (begin, end) of its calls."""
    calls: list[tuple[float, float]] = []

    def sleep(images: Any) -> np.ndarray:
        begin = time.perf_counter()
        time.sleep(seconds * len(images))
        calls.append((begin, time.perf_counter()))
        return np.ones((1, len(images), 16, 4), np.float32)

    def backbone(images: Any) -> Any:
        shape = jax.ShapeDtypeStruct((1, images.shape[0], 16, 4), np.float32)
        return jax.pure_callback(sleep, shape, images)

    return backbone, calls


def busy_share(images: Any, seconds: float = STUB_SECONDS) -> float:
    """The share of the time after its first batch that a stub backbone spends at work, at best 1."""
    backbone, calls = stub_backbone(seconds)
    extract.extract_images(images, backbone, Config(), pool=lambda grid, config: grid[None])
    calls.sort()
    return sum(end - begin for begin, end in calls[1:]) / (calls[-1][1] - calls[0][1])


def cached_busy_shares(
    scans: Sequence[datasets.Scan], modality: datasets.Kind, *, tries: int = 5
) -> list[float]:
    """``busy_share`` with images of scans that an earlier run has left in the cache, each try read anew."""
    shares = []
    with tempfile.TemporaryDirectory() as cache:
        datasets.open_working(scans, Config(), modality=modality, cache_dir=Path(cache))
        for _ in range(tries):
            working = datasets.open_working(scans, Config(), modality=modality, cache_dir=Path(cache))
            assert working.images is not None
            with working.images as images:
                shares.append(busy_share(images))
    return shares


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
    places = [None if place == "-" else Path(place) for place in (*sys.argv[1:], "-", "-")]
    with tempfile.TemporaryDirectory() as made:
        root = places[0] or write_line(Path(made), part="gear", scans=108)
        scans = datasets.open_dataset(root)[0].scans
        kinds: tuple[datasets.Kind, ...] = ("image", "both")
        for kind in kinds:
            for name, wall in preprocessing(scans, kind).items():
                print(f"preprocessing, {kind}, {name}: {len(scans)} scans in {wall:.2f} s")
            shares = sorted(100 * share for share in cached_busy_shares(scans, kind))
            print(
                f"backbone of {1000 * STUB_SECONDS:g} ms per image, {kind}: after its first batch busy "
                f"{np.median(shares):.0f} % ({shares[0]:.0f}-{shares[-1]:.0f} % in {len(shares)} tries)"
            )
    if places[1] is not None:
        seconds = plane_removal(places[1])
        middle, worst = np.median(seconds), max(seconds)
        print(f"plane removal: {len(seconds)} scans, median {middle:.3f} s, worst {worst:.3f} s")
    all_metrics, one_sort = pixel_metrics()
    print(f"pixel metrics of 100 maps of 400×400: {all_metrics:.2f} s; one sort {one_sort:.2f} s")


if __name__ == "__main__":
    main()
