"""A run that is killed at any moment is carried on by the same command, with the same results bit for bit."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import layouts

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "ipg.groups=32", "ipg.group_size=16", "ipg.initial_size=10",
    "fpfh.normal_neighbours=12", "fpfh.feature_neighbours=16",
)  # fmt: skip
UNLIKE = {"run.json", "report.html"}  # they tell when, and how long
KILLS = 32

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def scans(place):
    counts = (("good", 10), ("bent", 8))
    return layouts.write_mvtec3d(place / "data", splits=("test",), counts=counts)


def start(scans: Path, out: Path, cache: Path, *, programs: Path, modality: str = "both") -> subprocess.Popen:
    """``muscjax detect`` as a process; its compiled programs are kept however short their compilation was."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MUSCJAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    given = ["--image-size", "32", "--modality", modality]
    given += [word for assignment in SMALL for word in ("--set", assignment)]
    return subprocess.Popen(
        [sys.executable, "-m", "muscjax", "detect", scans, "--out", out, *given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )


def finish(process: subprocess.Popen) -> str:
    """What it said, once it has ended well."""
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()
    return err.decode()


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in UNLIKE
    }


@pytest.fixture(scope="module", params=["both"])
def whole(scans, place, request):
    """An uninterrupted run: its results, and what every run of its kind is told."""
    given = {"programs": place / "programs", "modality": request.param}
    out = place / f"whole {request.param}"
    finish(start(scans, out, place / "cache", **given))
    return contents(out), given


PHASES: tuple[tuple[str, str], ...] = (  # the file that tells that a phase has begun, the latest first
    ("tables", "scores.csv"),
    ("writing", "maps/**/*.tiff"),
    ("maps", ".unfinished/*/scored.bin"),
    ("scoring", ".unfinished/*/points/000002.h5"),
    ("points", ".unfinished/*/points/manifest.json"),
    ("images", ".unfinished/*/image/manifest.json"),
    ("state", ".unfinished/*/state.json"),
    ("loading", "run.json"),
)


def phase(out: Path) -> str:
    return next((name for name, files in PHASES if next(out.glob(files), None)), "start")


def kill_when(process: subprocess.Popen, ripe: Callable[[], object]) -> bool:
    """Kill it, without a chance to tidy up, as soon as it is ``ripe``; False where it ended before."""
    while process.poll() is None and not ripe():
        time.sleep(0.002)
    ended = process.poll() is not None
    if not ended:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


def finished_maps(out: Path) -> dict[Path, int]:
    """The maps that the state of the killed run lists, and when they were written."""
    found = {}
    for listing in out.glob(".unfinished/*/written.jsonl"):
        for line in listing.read_text().splitlines():
            with contextlib.suppress(ValueError):
                name = json.loads(line)[0]
                if name.startswith("maps/"):
                    found[out / name] = (out / name).stat().st_mtime_ns
    return found


def shards(out: Path) -> int:
    return len(list(out.glob(".unfinished/*/*/0*.h5")))


@pytest.mark.parametrize(
    "whole",
    ["image", pytest.param("both", marks=pytest.mark.slow)],
    indirect=True,  # points take three times as long to compile
)
def test_three_kills_in_a_row(scans, whole, place):
    """Each at another phase of the same run; the fourth process finishes it."""
    expected, given = whole
    out, cache = place / f"out {given['modality']}", place / "cache"
    shard = "image" if given["modality"] == "image" else "points"
    for files in (
        f".unfinished/*/{shard}/000000.h5",
        ".unfinished/*/scored.bin",
        "maps/part/test/good/*.tiff",
    ):
        process = start(scans, out, cache, **given)
        assert kill_when(process, lambda files=files: next(out.glob(files), None)), files
    stay = finished_maps(out)
    said = finish(start(scans, out, cache, **given))
    assert contents(out) == expected
    assert {path: path.stat().st_mtime_ns for path in stay} == stay
    record = json.loads((out / "run.json").read_text())
    assert not {"image features", "point features", "symmetric scoring"} & record["seconds"].keys()
    assert "afresh" not in said


@pytest.mark.slow
def test_kills_at_random_moments(scans, whole, place):
    """Seeded moments spread over all of a run, every fourth with an empty cache: loading is long then."""
    expected, given = whole
    random_moment = random.Random(0)
    begun = time.perf_counter()
    finish(start(scans, place / "timed", place / "cache", **given))
    seconds = time.perf_counter() - begun
    print(f"\nuninterrupted: {seconds:.1f} s")
    print("killed at s  phase     shards  scans  resumed in s  identical  kept")
    phases, number, killed = set(), 0, 0
    while killed < KILLS:
        number += 1
        out, cache = place / f"out{number}", place / "cache"
        if number % 4 == 0:
            cache = place / f"cache{number}"
        moment = random_moment.uniform(0.2, 1.0) * seconds
        begun = time.perf_counter()
        until = begun + moment
        process = start(scans, out, cache, **given)
        if not kill_when(process, lambda until=until: time.perf_counter() >= until):
            seconds = min(seconds, time.perf_counter() - begun)  # the machine has become faster
            shutil.rmtree(out)
            continue
        killed += 1
        at, stay, done = phase(out), finished_maps(out), shards(out)
        begun = time.perf_counter()
        finish(start(scans, out, cache, **given))
        took = time.perf_counter() - begun
        identical = contents(out) == expected
        kept = {path: path.stat().st_mtime_ns for path in stay} == stay
        cells = (
            f"{moment:11.2f}  {at:<8}  {done:6d}  {len(stay):5d}  {took:12.2f}  {identical!s:>9}  {kept!s:>4}"
        )
        print(cells, flush=True)
        assert identical, at
        assert kept, at
        phases.add(at)
        shutil.rmtree(out)
    assert len(phases) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_disk_that_is_really_full(scans, whole, place, share):
    """A disk of its own that holds this share of what the run leaves; the cache lies elsewhere."""
    expected, given = whole
    size = int(share * sum(map(len, expected.values())))
    disk = place / f"disk {share}"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs privileges")
    try:
        process = start(scans, disk / "out", place / "cache", **given)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 2, err.decode()
        (line,) = [line for line in err.decode().splitlines() if line.startswith("muscjax: ")]
        assert os.strerror(errno.ENOSPC) in line
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        finish(start(scans, disk / "out", place / "cache", **given))
        assert contents(disk / "out") == expected
    finally:
        subprocess.run(["umount", disk], check=True)
