"""Data sets whose names, links, pipes and holes are meant to lead astray; a case describes a tree in JSON."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from hypothesis import strategies as st

from muscjax import outputs
from muscjax.datasets import image_hw, load_image, load_scan_xyz, load_truth, open_dataset
from muscjax.errors import InputError
from tests.fuzz.clouds import npy, points
from tests.fuzz.engine import Reader
from tests.fuzz.texts import picture

NAMES = (
    "a.png",
    "b.png",
    "a.npy",
    "b.ply",
    "c.tiff",
    "labels.csv",
    "camera.json",
    "run.json",
    "..png",
    "-rf.png",
    "a\n.png",
    "\x1b[31mred.png",
    "\u202egnp.exe.png",
    "a\\..\\..\\b.png",
    "C:x.png",
    "<b>.png",
    ".hidden.png",
    "x" * 240 + ".png",
    " .png",
    "a.PNG",
    "%2e%2e%2fa.png",
    "${HOME}.png",
    "=1+1.png",
    "\udcff.png",
    "a'.png",
)
FOLDERS = ("", "test/good", "test/bent", "ground_truth/bent", "xyz", "rgb", "masks", "d", "d/e", "test", "..")
KINDS = ("image", "cloud", "text", "empty", "pipe", "hole", "folder", "nothing")
TARGETS = ("/etc/passwd", "/etc", "/dev/zero", "/dev/stdin", ".", "..", "a.png", "missing")
FEW = 40  # scans that are opened


def build(root: Path, tree: object) -> None:
    """What of the description can be made below ``root``."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for entry in tree if isinstance(tree, list) else ():
        try:
            folder, name, kind = (str(part) for part in entry)
            path = root / folder / name
            if not path.resolve().is_relative_to(root.resolve()) or "\0" in str(path):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            elif kind in TARGETS:
                path.symlink_to(kind)
            else:
                make(path, kind)
        except (OSError, TypeError, ValueError):
            continue


def make(path: Path, kind: str) -> None:
    content = {"image": picture(), "cloud": npy(points()), "text": b"path,label\na.png,1\n"}.get(kind, b"")
    with path.open("xb") as file:
        file.write(content)
        if kind == "hole":
            file.truncate(1 << 40)


def plant(path: Path) -> None:
    """The tree that the case describes, beside it."""
    try:
        described = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        described = []
    build(path.parent / "planted", described)


def read_tree(path: Path) -> None:
    """Everything that a run asks of a data set before it computes, and where its results would go."""
    root, results = path.parent / "planted", path.parent / "results"
    refused: list[InputError] = []
    for found in open_dataset(root, strict=False):
        assert all(line.isprintable() for line in (*found.problems, *found.fatal)), found.problems
        for scan in found.scans[:FEW]:
            try:
                for place in (outputs.map_path, outputs.overlay_path, outputs.mask_path):
                    made = os.path.realpath(place(results, scan.name))
                    assert made.startswith(os.path.realpath(results) + os.sep), made
                if scan.image is not None:
                    image_hw(scan.image)
                    load_image(scan.image)
                if scan.xyz is not None:
                    load_scan_xyz(scan)
                load_truth(scan)
            except InputError as error:
                refused.append(error)
    assert all(str(error).isprintable() for error in refused), refused
    if refused:
        raise refused[0]


def _seed(*entries: tuple[str, str, str]) -> bytes:
    return json.dumps(entries).encode()


def _readers() -> list[Reader]:
    # names are ASCII here: a mutation that breaks them would break the description
    name = st.one_of(st.sampled_from(NAMES), st.text(min_size=1, max_size=9).map(lambda t: t + ".png"))
    entry = st.tuples(st.sampled_from(FOLDERS), name, st.sampled_from([*KINDS, "image", "image", *TARGETS]))
    trees = st.lists(entry, max_size=12).map(lambda found: json.dumps(found).encode())
    two = [("", "a.png", "image"), ("", "b.png", "image")]
    seeds = [
        _seed(*two, ("", "l", "."), ("", "m", ".")),  # links that double at every level
        _seed(("test/good", "a.png", "image"), ("test/bent", "a.png", "image"), ("test/bent", "l", "/etc")),
        _seed(*two, ("d", "a.png", "image"), ("d", "up", ".."), ("masks", "a.png", "image")),
    ]
    return [
        Reader(
            "data set",
            "tree.json",
            read_tree,
            seeds,
            strategy=trees,
            before=plant,
            tokens=(b"../", b"\\u0000", b"/etc", b'"pipe"', b'"hole"', b'"/dev/zero"', b"\\n"),
        )
    ]


READERS = _readers()
