"""A category at working size: processes and threads, the cache, its damage, and all errors at once."""

from __future__ import annotations

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from muscjax import datasets
from muscjax.config import Config, FpfhConfig, InputConfig
from muscjax.datasets import making, prepare, workers
from muscjax.errors import InputError
from muscjax.preprocess import cache
from tests import layouts

SMALL = Config(input=InputConfig(image_size=32))


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


@pytest.fixture
def category(tmp_path):
    return layouts.write_mvtec3d(tmp_path / "set") / "part"


def scans_of(category):
    return datasets.open_dataset(category)[0].scans


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path / "own cache"))


class TestCached:
    def all_of(self, category, tmp_path, **keywords):
        given = {"modality": "both", "cache_dir": tmp_path / "cache"} | keywords
        return datasets.open_working(scans_of(category), SMALL, **given)

    def entries(self, tmp_path):
        return sorted((tmp_path / "cache").rglob("*.scan"))

    def equal(self, one, other):
        for a, b in zip(one.prepared, other.prepared, strict=True):
            for x, y in zip(jax.tree.leaves(a.cloud), jax.tree.leaves(b.cloud), strict=True):
                np.testing.assert_array_equal(x, y)
            np.testing.assert_array_equal(a.foreground, b.foreground)
            np.testing.assert_array_equal(a.mask, b.mask)
            assert (a.frame, a.notes) == (b.frame, b.notes)
        assert (one.images is None) == (other.images is None)
        if one.images is not None:
            np.testing.assert_array_equal(one.images[:], other.images[:])

    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("modality", ["image", "points", "both"])
    def test_is_what_prepare_gives(self, category, tmp_path, modality, full):
        config = Config(input=InputConfig(image_size=48, map_size=40), fpfh=FpfhConfig(full_resolution=full))
        given = {"modality": modality, "cache_dir": tmp_path / "cache"}
        working = datasets.open_working(scans_of(category), config, **given)
        assert working.map_size == 40
        for i, scan in enumerate(scans_of(category)):
            alone = prepare(scan, config, modality=modality, cache_dir=tmp_path / "other")
            image = None if working.images is None else working.images[i]
            held = datasets.Working((working.prepared[i],), None, 40)
            self.equal(held, datasets.Working((dataclasses.replace(alone, image=None),), None, 40))
            assert (image is None) == (alone.image is None) == (modality == "points")
            if image is not None:
                np.testing.assert_array_equal(image, alone.image)
            assert working.prepared[i].image is None
            assert (alone.cloud is not None and alone.cloud.surface is not None) == (
                full and modality != "image"
            )

    def test_processes_and_threads_and_the_cache_agree(self, category, tmp_path):
        first = self.all_of(category, tmp_path, processes=2)
        assert len(self.entries(tmp_path)) == 6  # four scans, and the objects of two XYZ maps
        second = self.all_of(category, tmp_path, processes=0)
        third = self.all_of(category, tmp_path, processes=0, cache_dir=tmp_path / "other")
        self.equal(first, second)
        self.equal(first, third)

    def test_second_time_computes_nothing(self, category, tmp_path, monkeypatch):
        said = []
        first = self.all_of(category, tmp_path, progress=lambda *step: said.append(step))
        monkeypatch.setattr(making, "make", lambda task: pytest.fail("made again"))
        again = self.all_of(category, tmp_path, progress=lambda *step: said.append(step))
        self.equal(first, again)
        assert said == [(0, 4)] * 4 + [(k, 4) for k in (1, 2, 3, 4)] * 2

    @pytest.mark.parametrize("processes", [None, 0, 2])
    def test_objects_are_looked_for_once_and_where_it_is_said(
        self, category, tmp_path, monkeypatch, processes
    ):
        """For a window; what the cache holds starts no process."""
        started, spread = [], workers.spread

        def spy(function, items, *, processes):
            started.append((function, len(items), processes))
            return spread(function, items, processes=processes)

        monkeypatch.setattr(workers, "spread", spy)
        monkeypatch.setattr(workers, "process_count", lambda items: 1 if items else 0)
        config = Config(input=InputConfig(image_size=32, window="object"))
        given = {"modality": "both", "cache_dir": tmp_path / "cache", "processes": processes}
        first = datasets.open_working(scans_of(category), config, **given)
        count = 1 if processes is None else processes
        assert started == [(making.extent, 4, count), (making.make, 4, count)]
        started.clear()
        with monkeypatch.context() as patch:
            patch.setattr(making, "_object", lambda *args: pytest.fail("looked for again"))
            self.equal(first, datasets.open_working(scans_of(category), config, **given))
        assert [count for _, count, _ in started] == [0, 0]

    def test_damaged_extents_are_looked_for_again(self, category, tmp_path):
        config = Config(input=InputConfig(image_size=32, window="object"))
        given = {"modality": "points", "cache_dir": tmp_path / "cache"}
        first = datasets.open_working(scans_of(category), config, **given)
        kept = [path for path in self.entries(tmp_path) if "extent" in cache.unpack(path).layout]
        assert len(kept) == 4
        content = [path.read_bytes() for path in kept]
        for path, whole in zip(kept, content, strict=True):
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        self.equal(first, datasets.open_working(scans_of(category), config, **given))
        assert [path.read_bytes() for path in kept] == content

    def test_other_sizes_find_the_object_again(self, category, tmp_path, monkeypatch):
        self.all_of(category, tmp_path)
        monkeypatch.setattr(making, "find_foreground", lambda xyz: pytest.fail("found again"))
        config = Config(input=InputConfig(image_size=20))
        working = datasets.open_working(
            scans_of(category), config, modality="points", cache_dir=tmp_path / "cache"
        )
        assert working.map_size == 20

    @pytest.mark.parametrize(
        "change",
        [
            {"modality": "points"},
            {"clean": False},
            {"units": "mm"},
            {"fit": "stretch"},
            "size",
            "full",
            "image",
            "xyz",
            "mask",
            "rule",
            "version",
        ],
        ids=str,
    )
    def test_key_holds_all_that_matters(self, tmp_path, change, monkeypatch):
        root = layouts.write_mvtec3d(tmp_path / "set", rgb_hw=(64, 48), xyz_hw=(64, 48))
        scan, config = scans_of(root)[0], SMALL
        given = {"modality": "both", "cache_dir": tmp_path / "cache"}
        prepare(scan, config, **given)
        calls = []
        make = making.make
        monkeypatch.setattr(making, "make", lambda task: calls.append(task) or make(task))
        prepare(scan, config, **given)
        assert calls == []
        if isinstance(change, dict):
            given |= change
        elif change == "size":
            config = Config(input=InputConfig(image_size=31))
        elif change == "full":
            config = Config(input=InputConfig(image_size=32), fpfh=FpfhConfig(full_resolution=True))
        elif change == "image":
            layouts.save_image(scan.image, layouts.rgb_scan(64, 48, seed=9))
        elif change == "xyz":
            layouts.save_xyz(scan.xyz, layouts.xyz_scan(64, width=48, seed=9))
        elif change == "mask":
            layouts.save_image(scan.mask, np.zeros((64, 48), np.uint8))
        elif change == "rule":
            scan = dataclasses.replace(scan, cleaning="none")
        else:
            monkeypatch.setattr(making, "VERSION", 0)
        prepare(scan, config, **given)
        assert len(calls) == 1

    def test_name_and_place_do_not_matter(self, category, tmp_path, monkeypatch):
        clean = np.where(layouts.box_mask()[..., None], layouts.xyz_scan(), np.float32(0))
        scan = scans_of(category)[0]
        layouts.save_xyz(scan.xyz, clean)
        prepare(scan, SMALL, modality="points", cache_dir=tmp_path / "cache")
        moved = tmp_path / "moved.tiff"
        shutil.copy(scan.xyz, moved)
        monkeypatch.setattr(making, "make", lambda task: pytest.fail("made again"))
        renamed = dataclasses.replace(scan, stem="999", defect="other", xyz=moved)
        got = prepare(renamed, SMALL, modality="points", cache_dir=tmp_path / "cache")
        assert len(got.notes) == 1
        assert got.notes[0].startswith(f"{moved}: ")

    @pytest.mark.parametrize("damage", ["cut", "image", "points", "gone"])
    def test_damaged_entries_are_made_again(self, category, tmp_path, damage):
        first = self.all_of(category, tmp_path)
        whole = first.images[:]
        for path in self.entries(tmp_path):
            content = path.read_bytes()
            layout = cache.unpack(path).layout
            if damage == "gone":
                path.unlink()
            elif damage == "cut":
                path.write_bytes(content[: len(content) // 2])
            elif damage in layout:
                at = layout[damage]["start"] + layout[damage]["size"] // 2
                path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        # of those who hold the entries already, and of a new run
        np.testing.assert_array_equal(first.images[:], whole)
        self.equal(first, self.all_of(category, tmp_path))

    def test_a_cache_that_cannot_be_written_is_said_once(self, category, tmp_path):
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "scans").write_text("a file where the folder should be")
        for processes in (0, 2):
            working = self.all_of(category, tmp_path, processes=processes)
            assert len(working.notes) == 1
            assert working.notes[0].startswith("cache not written")
            self.equal(working, self.all_of(category, tmp_path, cache_dir=tmp_path / "other"))
        got = prepare(scans_of(category)[0], SMALL, modality="both", cache_dir=tmp_path / "cache")
        assert any("cache not written" in note for note in got.notes)

    def test_a_cache_of_no_size_is_not_written(self, category, tmp_path, monkeypatch):
        monkeypatch.setenv("MUSCJAX_CACHE_LIMIT", "0")
        working = self.all_of(category, tmp_path)
        assert working.notes == ()
        assert working.images[0:4].any()
        assert not (tmp_path / "cache").exists()

    def test_it_is_pruned_after_it_grew(self, category, tmp_path, monkeypatch):
        self.all_of(category, tmp_path)
        old = self.entries(tmp_path)
        for path in old:
            os.utime(path, (0, 0))
        monkeypatch.setenv("MUSCJAX_CACHE_LIMIT", "1")
        working = self.all_of(category, tmp_path, modality="points", clean=False)
        assert len(self.entries(tmp_path)) == 4
        assert not set(old) & set(self.entries(tmp_path))
        assert working.prepared[0].cloud is not None

    @pytest.mark.parametrize("processes", [0, 2])
    def test_all_errors_of_a_category(self, category, tmp_path, processes):
        scans = scans_of(category)
        content = scans[1].xyz.read_bytes()
        scans[1].xyz.write_bytes(content[:200] + bytes(len(content) - 200))  # only its header is sound
        layouts.save_xyz(scans[3].xyz, np.zeros((64, 64, 3), np.float32))
        with pytest.raises(InputError) as error:
            self.all_of(category, tmp_path, processes=processes)
        one_line(error, scans[1].xyz, "(first of 2 problems)")
        for scan in scans[1:]:
            scan.xyz.write_bytes(b"no header")
        with pytest.raises(InputError) as error:
            self.all_of(category, tmp_path, processes=processes)
        one_line(error, scans[1].xyz, "(first of 3 problems)")

    def test_files_that_change_meanwhile_make_no_entry(self, category, tmp_path, monkeypatch):
        scan = scans_of(category)[0]
        load = making.load_truth

        def late(*arguments):
            layouts.save_image(scan.image, layouts.rgb_scan(seed=77))
            return load(*arguments)

        monkeypatch.setattr(making, "load_truth", late)
        with pytest.raises(InputError) as error:
            prepare(scan, SMALL, modality="image", cache_dir=tmp_path / "cache")
        one_line(error, scan.image, "changed while it was read")
        assert not self.entries(tmp_path)

    def test_no_more_images_are_held_than_stated(self, category, tmp_path):
        with self.all_of(category, tmp_path).images as images:
            images[0:1]
            assert set(images._pending) == {1, 2, 3}
            images[0:4]
            assert not images._pending
