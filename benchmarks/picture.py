"""Defects of the synthetic line as ``released`` and as ``muscjax`` see them: a row of three tiles for each.

    python -m benchmarks.picture --part gear --out benchmarks/results/preset/gear.jpg

Photograph with the defect outlined, then both presets' heat maps over it, colours as in the report. Of every
defect named the first scan is shown, whatever comes out. Weight-free, both modalities.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from scipy.ndimage import binary_dilation

from benchmarks.directions import Bench, truth_of
from benchmarks.kinds import PRESETS
from muscjax import colormap, datasets, inputs, runtime
from muscjax import config as configs
from muscjax.console import watch
from muscjax.datasets import synthetic
from muscjax.preprocess import window
from muscjax.requests import Request

_TILE = 300  # pixels of a tile's side
_GAP = 6  # of white around it
_MARGIN = 0.16  # to spare around all objects, a share of their widest side


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="gear", choices=synthetic.parts())
    parser.add_argument("--defects", nargs="+", default=["colour_stain", "depth_warp", "both_chip"])
    parser.add_argument("--scans", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/preset/gear.jpg"))
    options = parser.parse_args()
    runtime.prepare()
    with tempfile.TemporaryDirectory() as place, watch(Console(stderr=True), quiet=True) as observe:
        line = synthetic.write_line(
            Path(place), part=options.part, scans=options.scans, defective=0.4, seed=options.seed
        )
        request = Request(line, Path())
        bench = Bench(request, observe)
        scans = inputs.plan(request, configs.released()).datasets[0].scans
        truth, maps = truth_of(scans), [bench.run(configs.preset(name), "both").maps for name in PRESETS]
        limits = [colormap.heat_limits(found) for found in maps]
        defects = [scan.defect for scan in scans]
        around_all = window.extent(np.any(truth.inside, axis=0))
        crop = window.window(around_all, window.common_side([around_all], _MARGIN), truth.inside[0].shape)
        top, left, height, width = crop or (0, 0, *truth.inside[0].shape)
        rows = []
        for number in (defects.index(name) for name in options.defects):
            photograph = scans[number].image
            assert photograph is not None
            rgb, mask = datasets.load_image(photograph), truth.masks[number] > 0
            outlined = rgb.copy()
            far, near = (np.asarray(binary_dilation(mask, iterations=pixels), bool) for pixels in (3, 2))
            outlined[far & ~near] = 255
            heat = [
                colormap.overlay(rgb, found[number], limits=low_high)
                for found, low_high in zip(maps, limits, strict=True)
            ]
            cut = [tile[top : top + height, left : left + width] for tile in (outlined, *heat)]
            around = ((_GAP, _GAP), (_GAP, _GAP), (0, 0))
            tiles = [np.asarray(Image.fromarray(tile).resize((_TILE, _TILE))) for tile in cut]
            rows.append(np.hstack([np.pad(tile, around, constant_values=255) for tile in tiles]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(options.out, quality=88)


if __name__ == "__main__":
    main()
