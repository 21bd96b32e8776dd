"""Worker processes: results, errors, deaths, and that none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muscjax import datasets
from muscjax.datasets import making, workers
from muscjax.errors import InputError
from tests import chores, layouts

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def alive(pid: int) -> bool:
    """Does the process run? One that waits to be reaped by its new parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc").exists()


def wait_for(what, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited too long")


def pids(folder: Path, count: int) -> list[int]:
    wait_for(lambda: len(list(folder.glob("*.pid"))) >= count)
    return [int(path.read_text()) for path in folder.glob("*.pid")]


@pytest.mark.parametrize("processes", [0, 2])
class TestResults:
    def test_every_position_once(self, processes, capfd):
        found = dict(workers.spread(chores.square, range(7), processes=processes))
        assert found == {i: i * i for i in range(7)}
        written = capfd.readouterr()
        # what a library prints in a worker goes to the errors, not among the answers
        assert (written.err if processes else written.out).count("among the answers") == 7

    def test_input_errors_come_back_at_their_places(self, processes):
        found = dict(workers.spread(chores.refuse_odd, range(5), processes=processes))
        assert [found[i] for i in (0, 2, 4)] == [0, 2, 4]
        for i in (1, 3):
            assert isinstance(found[i], InputError)
            assert str(found[i]) == f"{i}: odd"

    def test_other_errors_are_raised(self, processes):
        with pytest.raises((RuntimeError, ZeroDivisionError), match="division"):
            list(workers.spread(chores.fail, range(3), processes=processes))

    def test_nothing_to_do(self, processes):
        assert list(workers.spread(chores.square, [], processes=processes)) == []


def test_a_dead_process_is_one_line_and_another_takes_over():
    found = dict(workers.spread(chores.leave_at_three, range(6), processes=1))
    assert isinstance(found[3], InputError)
    assert "status 9" in str(found[3])
    assert found[2] != found[4] != os.getpid()
    assert found[4] == found[5]


def test_without_an_interpreter_to_start_the_work_is_done_here(monkeypatch):
    for executable in ("", "/bin/true", "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", executable)
        assert dict(workers.spread(chores.leave_at_three, range(2), processes=2)) == dict.fromkeys(
            range(2), os.getpid()
        )


def test_workers_know_neither_jax_nor_many_threads(tmp_path):
    category = layouts.write_mvtec3d(tmp_path / "set") / "part"
    scan = datasets.open_dataset(category)[0].scans[0]
    frame = datasets.frame_of(scan, 32)
    task = making.Task(scan, "both", frame, 32, root=tmp_path / "cache")
    ((_, answer),) = workers.spread(chores.surroundings, [task], processes=1)
    assert not isinstance(answer, InputError)
    modules, threads, place = answer
    assert {name.split(".")[0] for name in modules} & {"numpy", "scipy", "PIL", "tifffile"}
    assert not {name.split(".")[0] for name in modules} & {"jax", "jaxlib", "chex", "flax", "sklearn", "rich"}
    assert threads["OMP_NUM_THREADS"] == threads["OPENBLAS_NUM_THREADS"] == "1"
    assert place.is_relative_to(tmp_path / "cache")


def test_how_many(monkeypatch):
    monkeypatch.setattr(workers, "cpu_count", lambda: 4)
    counts = [workers.process_count(n * workers.PER_PROCESS) for n in range(7)]
    assert counts == [0, 0, 2, 3, 4, 4, 4]
    monkeypatch.setattr(workers, "cpu_count", lambda: 1)
    assert workers.process_count(10_000) == 0


def test_closing_ends_what_runs(tmp_path):
    items = [(str(tmp_path), i) for i in range(40)]
    with contextlib.closing(workers.spread(chores.note_pid, items, processes=2)) as results:
        assert next(results) == (0, 0)
        started = pids(tmp_path, 2)
    assert not [pid for pid in started if alive(pid)]
    assert len(list(tmp_path.glob("*.pid"))) < 5


def parent(folder: Path, chore: str, items: str) -> subprocess.Popen:
    """A script from standard input without a guard: it cannot be imported, nor be run a second time."""
    code = (
        # A suite in the background of a shell is told to ignore interrupts, and so are its children.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from muscjax.datasets import workers\nfrom tests import chores\n"
        f"print('begun', flush=True)\nlist(workers.spread(chores.{chore}, {items}, processes=2))\n"
        "print('done')"
    )
    process = subprocess.Popen(
        [sys.executable, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    process.stdin.write(code.encode())
    process.stdin.close()
    process.stdin = None
    return process


def end_of(process: subprocess.Popen) -> tuple[bytes, bytes]:
    """What it wrote. The limit only keeps a failure from hanging: workers left alone go on for longer."""
    try:
        return process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def test_a_script_from_standard_input_is_not_run_again(tmp_path):
    process = parent(tmp_path, "square", "range(4)")
    out, err = end_of(process)
    assert process.returncode == 0, err
    assert out.split() == [b"begun", b"done"]


@posix
def test_an_interrupt_leaves_no_process(tmp_path):
    process = parent(tmp_path, "note_pid", f"[({str(tmp_path)!r}, i) for i in range(1, 9)]")
    started = pids(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    _, err = end_of(process)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in err
    assert not [pid for pid in started if alive(pid)]


@posix
def test_a_killed_parent_leaves_no_process(tmp_path):
    process = parent(tmp_path, "short", f"[({str(tmp_path)!r}, i) for i in range(1000)]")
    (started,) = pids(tmp_path, 1)
    process.kill()
    end_of(process)
    wait_for(lambda: not alive(started))
