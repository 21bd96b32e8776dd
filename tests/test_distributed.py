"""Two processes over loopback against one, and how they end when one of them cannot go on."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from muscjax import config, distributed, team
from muscjax.datasets import Prepared, synthetic
from muscjax.errors import InputError
from muscjax.frame import Frame
from muscjax.types import Cloud
from tests.budget import QUICK_XLA

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--image-size", "32", "--quiet"]
for _name, _value in (("groups", 12), ("group_size", 8), ("initial_size", 5)):
    SMALL += ["--set", f"ipg.{_name}={_value}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A product line, a broken copy of it, and a cache that all processes share."""
    folder = tmp_path_factory.mktemp("distributed")
    for name in ("line", "broken"):
        synthetic.write_line(folder / name, part="cap", scans=7, defective=0.3, seed=4, size=64)
    sorted((folder / "broken").rglob("*.tiff"))[-1].write_bytes(b"no picture")
    return folder


def start(place, *options):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MUSCJAX_CACHE": str(place / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    environment["XLA_FLAGS"] = QUICK_XLA
    return subprocess.Popen(
        [sys.executable, "-m", "muscjax", "detect", *options, *SMALL],
        env=environment,
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(place, data, out, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    several = ("--distributed", "--coordinator", address, "--processes", "2", "--process")
    return [start(place, data, "--out", out, *options, *several, str(i)) for i in range(2)]


def ended(processes):
    """(exit code, stdout, the lines of stderr that are ours) of each; none is left behind."""
    try:
        done = [(*process.communicate(timeout=240), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, out, [x for x in err.splitlines() if x.startswith("muscjax")]) for out, err, code in done]


def scores(folder):
    with open(folder / "scores.csv", newline="") as file:
        return {
            row["path"]: [float(row["score"]), float(row["score_before_rscon"])]
            for row in csv.DictReader(file)
        }


@pytest.mark.parametrize("modality", ["image", pytest.param("both", marks=pytest.mark.slow)])
def test_two_processes_equal_one(place, modality):
    one, two = f"one-{modality}", f"two-{modality}"
    chosen = ("--modality", modality)
    ((code, _, said),) = ended([start(place, "line", "--out", one, *chosen)])
    assert (code, said) == (0, [])
    for code, _, said in ended(start_two(place, "line", two, *chosen)):
        assert (code, said) == (0, [])
    written = sorted(path.relative_to(place / one) for path in (place / one).rglob("*"))
    assert written == sorted(path.relative_to(place / two) for path in (place / two).rglob("*"))
    expected, found = scores(place / one), scores(place / two)
    assert expected.keys() == found.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-6)
    maps = [path for path in written if path.parts[0] == "maps" and path.suffix]
    assert len(maps) == len(expected)
    for path in maps:
        assert (place / one / path).read_bytes() == (place / two / path).read_bytes()


def test_bad_data_of_one_process_end_both_with_its_line(place):
    first, second = ended(start_two(place, "broken", "none"))
    for code, _, said in (first, second):
        assert code == 2
        assert len(said) == 1
        assert "not a readable" in said[0]
    assert sum("process" in said[0] for _, _, said in (first, second)) == 1
    assert not (place / "none" / "scores.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 3])
def test_a_killed_process_ends_the_other(place, seconds):
    out = f"killed-{seconds}"
    processes = start_two(place, "line", out)
    patience = time.monotonic() + 120
    while not (place / out / "run.json").exists() and time.monotonic() < patience:
        time.sleep(0.1)  # until they have met
    time.sleep(seconds)
    processes[1].send_signal(signal.SIGKILL)
    (code, _, said), (killed, _, _) = ended(processes)
    assert killed in (0, -signal.SIGKILL)  # 0: it was done already
    if killed:
        assert code == 2
        assert len(said) == 1
        assert "another process is gone" in said[0]


def test_a_share_is_whole_tiles_and_everybody_has_one(monkeypatch):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("devices",))
    monkeypatch.setattr(distributed.parallel, "mesh_of", lambda devices: mesh)
    share = distributed.share_of(9, (16,), config.released())
    np.testing.assert_array_equal(share.ids, np.arange(9))
    assert share.size >= 9
    assert share.size % share.plan.tile == 0


def test_what_only_the_whole_set_knows_is_refused():
    for kind, said in (("both", "maps.balance"), ("points", "input.window"), ("image", "input.window")):
        with pytest.raises(InputError, match=said):
            distributed._check_whole(kind, config.muscjax())
    sized = config.override(config.muscjax(), "maps.balance=none", "input.window_side=200")
    for kind, chosen in (("image", sized), ("both", sized), ("both", config.released())):
        distributed._check_whole(kind, chosen)


def test_one_device_is_no_team(monkeypatch):
    monkeypatch.setattr(distributed.parallel, "mesh_of", lambda devices: None)
    with pytest.raises(InputError, match="one process with one device"):
        distributed.share_of(9, (16,), config.released())


def test_more_processes_than_scans_are_refused(monkeypatch):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("devices",))
    monkeypatch.setattr(distributed.parallel, "mesh_of", lambda devices: mesh)
    monkeypatch.setattr(team, "size", lambda: 2)
    with pytest.raises(InputError, match="9 scans are too few for 2 processes"):
        distributed.share_of(9, (16,), config.released())


@pytest.mark.parametrize("modality", ["image", "points"])
def test_what_is_sent_arrives_as_it_was(modality):
    rng = np.random.default_rng(0)
    cloud = None
    if modality == "points":
        points = rng.random((5, 3)).astype(np.float32)
        cloud = Cloud(points, 2 * points, np.arange(5) < 4, np.arange(5, dtype=np.int32))
    frame = Frame((40, 30), (16, 16), pad=(0, 0, 5, 5), crop=None)
    item = Prepared(None, cloud, frame, rng.random((16, 16)) < 0.5, None, ("a note", "ünd one more"))
    sent = rng.random((16, 16)).astype(np.float32)
    number, heat, back = distributed._unpack(distributed._pack(7, sent, item))
    assert (number, back.frame, back.notes) == (7, frame, item.notes)
    assert back.foreground is None
    np.testing.assert_array_equal(heat, sent)
    np.testing.assert_array_equal(back.mask, item.mask)
    jax.tree.map(np.testing.assert_array_equal, back.cloud, cloud)


def test_alone_is_a_team_of_one(monkeypatch):
    monkeypatch.setattr(team, "PIECE", 3)
    assert (team.size(), team.number()) == (1, 0)
    assert team.texts("grün") == ["grün"]
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = team.gather_rows(rows, np.asarray([2, 0]), 3)
    np.testing.assert_array_equal(found, [rows[1], [0, 0, 0], rows[0]])
    assert list(team.bring([b"1234567", b""], [7, 0])) == [(0, b"1234567"), (0, b"")]
    assert team._moved(b"ab", 0) == b"ab\0"
    with pytest.raises(InputError, match="mine"), team.together():
        raise InputError("mine")
    with pytest.raises(team.Lost, match="out of memory"), team.talking():
        raise RuntimeError("RESOURCE_EXHAUSTED: no more")


def test_options_that_do_not_go_together(place):
    for options, expected in (
        (["--processes", "2"], "belong to --distributed"),
        (["--distributed", "--devices", "2"], "leave it out"),
        (["--devices", "99"], "--devices 99: expected 1 to"),
    ):
        with pytest.raises(InputError, match=expected):
            run_cli(place, options)


def run_cli(place, options):
    from typer.testing import CliRunner

    from muscjax.cli import app

    outcome = CliRunner().invoke(app, ["detect", str(place / "line"), "--out", str(place / "no"), *options])
    raise outcome.exception or AssertionError(outcome.output)
