"""Same input, same version, same device: the same bits, whatever else differs between two runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from muscjax.datasets.synthetic import write_line

SMALL = ("--image-size=64", "--set=ipg.groups=48", "--set=ipg.group_size=16", "--set=ipg.initial_size=10")
ENTRY = "import os, sys; {before}; sys.argv[1:] = sys.argv[2:]; from muscjax.cli import main; main()"
ONE_CPU = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"


def detected(
    line: Path, out: Path, *options: str, cache: Path, before: str = "pass", **environment: str
) -> dict:
    """Every result of a run in a process of its own, file by file; its record and the report aside."""
    environment = {"MUSCJAX_CACHE": str(cache), **environment}
    command = [sys.executable, "-c", ENTRY.format(before=before), "muscjax", "detect", str(line)]
    subprocess.run(
        [*command, "--out", str(out), "--quiet", *SMALL, *options],
        env={**os.environ, **environment},
        cwd=Path(__file__).resolve().parents[1],
        check=True,
    )
    kept = sorted(p for p in out.rglob("*") if p.suffix in (".csv", ".tiff", ".png") and p.is_file())
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in kept}
    assert "scores.csv" in found
    assert sum(name.startswith("maps/") for name in found) == 5
    return found


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("line")
    return write_line(root, part="cap", scans=5, defective=0.4, size=64)


def test_two_processes_give_the_same_bits(line, tmp_path):
    """Another hash seed, another number of threads, programs compiled and programs kept."""
    first = detected(line, tmp_path / "a", "--modality=image", cache=tmp_path / "cache", PYTHONHASHSEED="1")
    again = detected(
        line,
        tmp_path / "b",
        "--modality=image",
        cache=tmp_path / "cache",
        before=ONE_CPU if hasattr(os, "sched_setaffinity") else "pass",
        PYTHONHASHSEED="2",
        OMP_NUM_THREADS="7",
    )
    assert again == first


@pytest.mark.slow
def test_nothing_but_the_input_matters(line, tmp_path):
    """Both modalities: caches cold and warm, one processor, many threads, another order of files on disk."""
    options = ("--modality=both",)
    first = detected(line, tmp_path / "a", *options, cache=tmp_path / "one", PYTHONHASHSEED="1")
    shuffled = tmp_path / "line" / "cap"
    for path in sorted(line.rglob("*"), reverse=True):
        if path.is_file():
            target = shuffled / path.relative_to(line)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    variants = {
        "warm": (line, {"cache": tmp_path / "one", "PYTHONHASHSEED": "2"}),
        "one processor": (line, {"cache": tmp_path / "one", "before": ONE_CPU}),
        "compiled again": (
            line,
            {"cache": tmp_path / "two", "OPENBLAS_NUM_THREADS": "5", "OMP_NUM_THREADS": "5"},
        ),
        "compiled on one processor": (line, {"cache": tmp_path / "three", "before": ONE_CPU}),
        "no cache of scans": (line, {"cache": tmp_path / "one", "MUSCJAX_CACHE_LIMIT": "0"}),
        "another order": (shuffled, {"cache": tmp_path / "one"}),
    }
    for name, (place, settings) in variants.items():
        found = detected(place, tmp_path / name, *options, **settings)
        for path, content in first.items():
            said = found[path].replace(str(place).encode(), str(line).encode())
            assert said == content, (name, path)


@pytest.mark.slow
def test_the_seed_changes_the_parts_and_nothing_else(line, tmp_path):
    options = ("--modality=image", "--subsets=2")
    first = detected(line, tmp_path / "a", *options, "--set=run.seed=3", cache=tmp_path / "cache")
    again = detected(line, tmp_path / "b", *options, "--set=run.seed=3", cache=tmp_path / "cache")
    other = detected(line, tmp_path / "c", *options, "--set=run.seed=4", cache=tmp_path / "cache")
    assert again == first
    assert other["scores.csv"] != first["scores.csv"]
    whole = ("--modality=image",)
    one = detected(line, tmp_path / "d", *whole, "--set=run.seed=3", cache=tmp_path / "cache")
    two = detected(line, tmp_path / "e", *whole, "--set=run.seed=4", cache=tmp_path / "cache")
    assert one == two
