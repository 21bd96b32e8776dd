"""A whole line of scans on disk, in the layout of MVTec 3D-AD."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from muscjax.datasets.synthetic.defects import DEFECTS
from muscjax.datasets.synthetic.scan import SIZES, Rendered, check_count, check_part, render
from muscjax.errors import InputError
from muscjax.files import umask

MARKER = "synthetic.json"  # beside test/; says what the folder holds and that it may be written again


@dataclasses.dataclass(frozen=True)
class Line:
    """What is written: how many scans of what, with which share of defects."""

    part: str
    scans: int = 200
    defective: float = 0.1
    seed: int = 0
    size: int = 256

    def __post_init__(self):
        check_part(self.part)
        check_count("scans", self.scans, 1, 100_000)
        check_count("seed", self.seed, 0, 2**63 - 1)
        check_count("size", self.size, *SIZES)
        if not 0.0 <= self.defective <= 1.0:
            raise InputError(f"defective: found {self.defective!r}, expected a share from 0 to 1")


def schedule(line: Line) -> list[tuple[str | None, int]]:
    """(defect or None, seed) of each scan, in the order of a shuffled shift.

    The defects take turns: image, depth, both, so that the three kinds, and the defects of a kind, differ in
    number by one at most.
    """
    kinds = {kind: [name for name in DEFECTS if DEFECTS[name] == kind] for kind in ("image", "depth", "both")}
    count = round(line.scans * line.defective)
    turns = [list(kinds.values())[i % 3] for i in range(count)]
    drawn: list[str | None] = [names[i // 3 % len(names)] for i, names in enumerate(turns)]
    drawn += [None] * (line.scans - count)
    sequence = np.random.SeedSequence([line.seed, line.scans])
    order = np.random.default_rng(sequence).permutation(line.scans)
    seeds = np.random.SeedSequence(line.seed).generate_state(line.scans, np.uint64) >> np.uint64(1)
    return [(drawn[int(i)], int(s)) for i, s in zip(order, seeds, strict=True)]


def write_line(
    out: Path,
    *,
    part: str,
    scans: int = 200,
    defective: float = 0.1,
    seed: int = 0,
    size: int = 256,
) -> Path:
    """Write ``out/<part>/test/<good|defect>/{rgb,xyz,gt}/NNN.{png,tiff,png}`` and return ``out/<part>``.

    RGB and masks (255 on the defect) are PNG, XYZ is a deflate TIFF of float32 metres, all ``size``² pixels.
    ``defective`` is the share of defective scans, spread evenly over the three kinds and over ``DEFECTS``
    within a kind. The folder appears at once when it is complete; one that an earlier call wrote is
    replaced.

    Raises InputError for options out of range, and where ``out/<part>`` holds something else.
    """
    line = Line(part=part, scans=scans, defective=defective, seed=seed, size=size)
    out = Path(out)
    target = out / part
    _check_target(out, target)
    out.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{part}-", dir=out))
    try:
        partial.chmod(0o777 & ~umask())
        numbers: dict[str, int] = {}
        for defect, scan_seed in schedule(line):
            folder = defect or "good"
            number = numbers.get(folder, 0)
            numbers[folder] = number + 1
            scan = render(part, scan_seed, defect=defect, size=size)
            _write_scan(partial / "test" / folder, f"{number:03d}", scan)
        about = {"generator": "muscjax.datasets.synthetic", **dataclasses.asdict(line)}
        (partial / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        _check_target(out, target)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{part}-old-", dir=out))
            os.replace(target, old / part)
            os.replace(partial, target)
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_target(out: Path, target: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: found a file, expected a folder to write into")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target}: found a file, expected a folder or nothing")
    if any(target.iterdir()) and not (target / MARKER).is_file():
        raise InputError(
            f"{target}: found files that are not a synthetic line, expected an empty folder or nothing"
        )


def _write_scan(folder: Path, stem: str, scan: Rendered) -> None:
    import tifffile
    from PIL import Image

    for name in ("rgb", "xyz", "gt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(scan.rgb).save(folder / "rgb" / f"{stem}.png", compress_level=3)
    mask = np.where(scan.mask, np.uint8(255), np.uint8(0))
    Image.fromarray(mask).save(folder / "gt" / f"{stem}.png")
    tifffile.imwrite(
        folder / "xyz" / f"{stem}.tiff",
        scan.xyz,
        compression="zlib",
        compressionargs={"level": 1},
        photometric="minisblack",
        planarconfig="contig",
    )
