"""Entries of the preprocessing cache: small, checked, bounded; and the writer behind them."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from muscjax import files
from muscjax.errors import InputError
from muscjax.preprocess import cache

ARRAYS = {
    "image": np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3),
    "bits": np.random.default_rng(0).random((5, 7)) < 0.5,
    "points": np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32),
    "none": np.zeros((0, 3), np.float32),
    "nothing": np.zeros((0, 4), bool),
    "numbers": np.arange(-3, 4, dtype=np.int32),
}


def check(entry):
    assert set(entry.layout) == set(ARRAYS)
    for name, array in ARRAYS.items():
        got = entry.array(name)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_arrays_and_note_come_back(tmp_path):
    content = cache.pack(ARRAYS, "a note: ü")
    entry, complaint = cache.keep("ab12", content, tmp_path)
    assert complaint == ""
    for found in (entry, cache.find("ab12", tmp_path), cache.unpack(content)):
        assert found is not None
        assert found.note == "a note: ü"
        assert "image" in found
        assert "other" not in found
        check(found)
    assert cache.find("ab13", tmp_path) is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ab12.scan"]


def test_points_are_smaller_than_they_are(tmp_path):
    rows, columns = np.mgrid[:100, :100]
    points = np.stack([columns * 1e-3, rows * 1e-3, 0.6 + 1e-4 * rows], axis=-1).reshape(-1, 3)
    assert len(cache.pack({"points": points.astype(np.float32)})) < 0.5 * points.size * 4


def test_one_flipped_byte_anywhere_is_never_taken_for_data(tmp_path):
    content = cache.pack(ARRAYS, "note")
    for at in range(len(content)):
        bad = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
        with pytest.raises(cache.Damaged):
            check(cache.unpack(bad))


@pytest.mark.parametrize("cut", [0, 10, 44, 60, -1])
def test_a_cut_or_lengthened_entry_is_missing(tmp_path, cut):
    content = cache.pack(ARRAYS)
    entry, _ = cache.keep("ab", content, tmp_path)
    assert not isinstance(entry.place, bytes)
    entry.place.write_bytes(content[:cut])
    assert cache.find("ab", tmp_path) is None
    entry.place.write_bytes(content + b"x")
    assert cache.find("ab", tmp_path) is None
    entry.place.unlink()
    with pytest.raises(cache.Damaged):
        entry.array("image")


def test_what_cannot_be_written_is_held(tmp_path):
    (tmp_path / "scans").write_text("a file where the folder should be")
    entry, complaint = cache.keep("ab", cache.pack(ARRAYS), tmp_path)
    assert complaint.startswith("cache not written")
    assert "\n" not in complaint
    check(entry)


def test_limit(monkeypatch, tmp_path):
    monkeypatch.delenv("MUSCJAX_CACHE_LIMIT", raising=False)
    assert cache.limit() == 5_000_000_000
    monkeypatch.setenv("MUSCJAX_CACHE_LIMIT", "2 GiB")
    assert cache.limit() == 2 << 30
    monkeypatch.setenv("MUSCJAX_CACHE_LIMIT", "much")
    with pytest.raises(InputError, match="MUSCJAX_CACHE_LIMIT 'much'"):
        cache.limit()
    monkeypatch.setenv("MUSCJAX_CACHE_LIMIT", "0")
    entry, complaint = cache.keep("ab", cache.pack(ARRAYS), tmp_path)
    assert complaint == ""
    check(entry)
    assert not list(tmp_path.iterdir())


def test_pruned_are_those_unused_for_longest(monkeypatch, tmp_path):
    content = cache.pack(ARRAYS)
    for hour in range(6):
        entry, _ = cache.keep(f"{hour:02d}", content, tmp_path)
        os.utime(entry.place, (hour * 3600, hour * 3600))
    left = entry.place.parent / f".dead{files.TEMPORARY}"
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    young = left.with_name(f".alive{files.TEMPORARY}")
    young.write_bytes(b"")
    cache.find("00", tmp_path)  # used just now
    monkeypatch.setenv("MUSCJAX_CACHE_LIMIT", str(3 * len(content)))
    assert cache.prune(tmp_path) == 3
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == [young.name, "00.scan", "04.scan", "05.scan"]
    monkeypatch.setenv("MUSCJAX_CACHE_LIMIT", "1")
    assert cache.prune(tmp_path) == 2  # what was used within the hour stays
    assert cache.find("00", tmp_path) is not None
    assert cache.prune(tmp_path, keep_s=-1) == 1
    assert cache.prune(tmp_path / "nowhere") == 0


def test_threads_share_it(tmp_path):
    """Writers, readers and a pruning run at the same keys: an entry is whole or missing."""
    content, wrong = cache.pack(ARRAYS, "note"), []

    def work():
        try:
            for turn in range(20):
                cache.keep(f"{turn % 2:02d}", content, tmp_path)
                found = cache.find(f"{(turn + 1) % 2:02d}", tmp_path)
                if found is not None:
                    try:
                        check(found)
                    except cache.Damaged:
                        continue
        except BaseException as error:
            wrong.append(error)

    def sweep():
        for _ in range(40):
            for path in tmp_path.rglob("*.scan"):
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=target) for target in (work, work, work, sweep)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not list(tmp_path.rglob("*.tmp"))


def test_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path / "scans"
    monkeypatch.delenv("MUSCJAX_CACHE")
    assert files.cache_root().parts[-2:] == (".cache", "muscjax")


class TestReplaced:
    def test_appears_when_the_block_ends_well(self, tmp_path):
        path = tmp_path / "a" / "b.txt"
        with files.replaced(path) as file:
            file.write(b"one")
            assert not path.exists()
        assert path.read_bytes() == b"one"
        with pytest.raises(KeyError), files.replaced(path) as file:
            raise KeyError(file.write(b"two"))
        assert path.read_bytes() == b"one"
        assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
        assert path.stat().st_mode & 0o777 == 0o666 & ~files.umask()

    def test_one_line_where_it_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        for writer in (files.replaced, files.replacing):
            with pytest.raises(InputError, match="cannot be written"), writer(tmp_path / "file" / "x"):
                pass
        with pytest.raises(InputError, match="cannot be written"), files.replaced(tmp_path / "x"):
            raise OSError(28, "No space left on device")

    def test_errors_of_the_block_go_through_replacing(self, tmp_path):
        with pytest.raises(ConnectionError), files.replacing(tmp_path / "x"):
            raise ConnectionError("the network, not the disk")
        assert not list(tmp_path.iterdir())
