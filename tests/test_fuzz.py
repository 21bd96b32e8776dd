"""Every reader against damaged and hostile files; `tests.fuzz.engine` says what a fault is."""

from __future__ import annotations

import random
import sys

import pytest

from tests.fuzz import engine

# One child process per family; about 200 cases a second.
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")


def tried(family: str, cases: int, place) -> list[engine.Counts]:
    found = engine.run(family, cases, place)
    for counts in found:
        died = f", {counts.died} of them with a process of its own" if counts.died else ""
        print(
            f"{counts.reader}: {counts.cases} cases, {counts.accepted} read right, {counts.refused} refused"
            f"{died}, {len(counts.faults)} faults, {counts.seconds:.1f} s, {counts.peak_mib:.0f} MiB more"
        )
    return found


def assert_no_faults(found: list[engine.Counts], cases: int) -> None:
    assert found
    assert all(counts.cases >= cases for counts in found)
    assert all(counts.accepted and counts.refused for counts in found), "every reader can do both"
    assert [fault for counts in found for fault in counts.faults] == []


@pytest.mark.parametrize("family", engine.FAMILIES)
def test_hostile_files_are_refused_in_one_line_or_read_right(family, tmp_path):
    cases = engine.CASES or 200
    assert_no_faults(tried(family, cases, tmp_path), cases)


@pytest.mark.slow
@pytest.mark.parametrize("family", engine.FAMILIES)
def test_two_thousand_hostile_files(family, tmp_path):
    cases = engine.CASES or 2000
    assert_no_faults(tried(family, cases, tmp_path), cases)


def test_the_engine_sees_every_kind_of_fault(tmp_path):
    """Readers that do wrong on purpose, each in its own way."""
    found = {counts.reader: counts for counts in engine.run("faulty", 2, tmp_path)}
    expected = {
        "raises": "ZeroDivisionError",
        "two lines": "not one printable line",
        "no name": "does not name the file",
        "wrong": "wrong result",
        "writes": "for writing",
        "escapes": "os.rename",
        "runs": "subprocess.Popen",
        "warns": "UserWarning",
        "allocates": "ran out of memory",
        "hangs": "took more than",
        "dies": "the process died",
    }
    assert set(found) == {*expected, "right", "may die"}
    for name, text in expected.items():
        assert found[name].cases == 2, name
        assert any(text in fault for fault in found[name].faults), (name, found[name].faults)
    for name in ("right", "may die"):
        assert found[name].faults == []
    assert found["may die"].died == 2


def test_a_case_is_the_same_every_time():
    seeds = [b"P5 3 3 255\n" + bytes(9), b"element vertex 12\n"]
    cases = [engine.mutated(seeds, random.Random(f"x {i}"), (b"token",)) for i in range(300)]
    assert cases == [engine.mutated(seeds, random.Random(f"x {i}"), (b"token",)) for i in range(300)]
    assert len(set(cases)) > 250
    assert any(b"1000000000" in case for case in cases)
