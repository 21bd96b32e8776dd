"""Scans cut to a square around their object: where it lies, what is cut, and the way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from muscjax import datasets, maps
from muscjax.config import Config, InputConfig
from muscjax.datasets import making
from muscjax.datasets.windows import windowed
from muscjax.errors import InputError
from muscjax.preprocess import window
from muscjax.types import Frame
from tests import layouts

SIDES = st.integers(1, 60)


@given(st.integers(0, 1000))
def test_extent_is_the_smallest_rectangle(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 13)) < 0.03
    found = window.extent(mask)
    if not mask.any():
        assert found is None
        return
    assert found is not None
    top, bottom, left, right = found
    outside = mask.copy()
    outside[top:bottom, left:right] = False
    assert not outside.any()
    inner = mask[top:bottom, left:right]
    assert all(edge.any() for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))


@given(st.lists(st.tuples(st.integers(0, 40), SIDES, st.integers(0, 40), SIDES), max_size=5))
def test_the_common_side_holds_every_object(found):
    extents = [(top, top + h, left, left + w) for top, h, left, w in found]
    side = window.common_side([None, *extents], 0.1)
    assert side == window.common_side(extents, 0.1)
    assert all(1.1 * max(h, w) <= side < 1.1 * 60 + 1 for _, h, _, w in found)
    assert side > 0 or not found


@given(st.integers(0, 60), st.integers(0, 60), SIDES, st.integers(1, 120))
def test_a_window_lies_in_the_picture_and_holds_what_fits(top, left, size, side):
    hw = (120, 125)
    inside = (top, min(top + size, hw[0]), left, min(left + size, hw[1]))
    found = window.window(inside, side, hw)
    if side >= 0.95 * 120:
        assert found is None
        return
    assert found is not None
    y, x, h, w = found
    assert (h, w) == (side, side)
    assert 0 <= y <= hw[0] - side
    assert 0 <= x <= hw[1] - side
    if size <= side:
        assert y <= inside[0]
        assert x <= inside[2]
        assert max(inside[1] - y, inside[3] - x) <= side


def test_nothing_to_look_at_takes_the_middle():
    assert window.window(None, 10, (100, 60)) == (45, 25, 10, 10)
    assert window.window(None, 0, (100, 60)) is None


@pytest.fixture
def scans(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path / "cache"))
    return datasets.open_dataset(layouts.write_mvtec3d(tmp_path / "set") / "part")[0].scans


def opened(scans, **more):
    settings = InputConfig(image_size=32, window="object", **more)
    return datasets.open_working(scans, Config(input=settings), modality="both", processes=0)


def parts(item: datasets.Prepared) -> tuple[tuple[int, int, int, int], Any, np.ndarray, np.ndarray]:
    """Crop, cloud, foreground and mask; all of them are there."""
    crop, cloud, foreground, mask = item.frame.crop, item.cloud, item.foreground, item.mask
    assert crop is not None
    assert cloud is not None
    assert foreground is not None
    assert mask is not None
    return crop, cloud, foreground, mask


def test_every_scan_is_cut_to_its_object(scans):
    whole = datasets.open_working(
        scans, Config(input=InputConfig(image_size=32)), modality="both", processes=0
    )
    cut = opened(scans)
    assert len({parts(item)[0][2:] for item in cut.prepared}) == 1  # one size
    for before, after in zip(whole.prepared, cut.prepared, strict=True):
        (y, x, side, _), cloud, foreground, _ = parts(after)
        assert before.cloud is not None
        assert after.frame.working_hw == (cut.map_size, cut.map_size)
        assert cut.map_size == round(32 * side / 64)  # pixels as far apart as they were
        count = [int(np.asarray(each.valid).sum()) for each in (before.cloud, cloud)]
        assert abs(count[1] - count[0]) <= 0.2 * count[0]  # nothing of the object is lost
        back = np.asarray(maps.to_source(jnp.asarray(foreground, jnp.float32), after.frame))
        assert back.shape == (64, 64)
        outside = np.ones((64, 64), bool)
        outside[y : y + side, x : x + side] = False
        assert not back[outside].any()
    assert cut.images is not None
    images = cut.images[0 : len(scans)]
    assert images.shape[1:] == (32, 32, 3)


def test_image_mask_and_points_are_cut_alike(scans):
    cut = opened(scans)
    for scan, item in zip(scans, cut.prepared, strict=True):
        (y, x, side, _), cloud, foreground, mask = parts(item)
        stored = np.asarray(Image.open(scan.mask)) != 0 if scan.mask else np.zeros((64, 64), bool)
        part = stored[y : y + side, x : x + side].astype(np.float64)
        size = cut.map_size
        if part.any() and mask.any():  # the mask's middle is where it is in the part
            middle = [np.argwhere(m).mean(axis=0) + 0.5 for m in (part, mask)]
            np.testing.assert_allclose(middle[1] * side / size, middle[0], atol=1.5)
        rows, columns = np.divmod(np.asarray(cloud.pixel)[np.asarray(cloud.valid)], size)
        assert foreground[rows, columns].all()


def test_the_whole_grid_of_a_sensor_is_cut_as_well():
    frame = Frame(source_hw=(40, 40), working_hw=(5, 5), crop=(8, 12, 20, 20))
    grid = np.arange(1600.0).reshape(40, 40)
    kept = making._cut(grid, frame, sensor=True)
    np.testing.assert_array_equal(kept, grid[8:28, 12:32])
    np.testing.assert_array_equal(making._cut(grid, frame, sensor=False), grid[8:28:4, 12:32:4])
    half = making._cut(grid[::2, ::2], frame, sensor=False)  # a map of half the image's side
    np.testing.assert_array_equal(half, grid[8:28:4, 12:32:4])


@pytest.mark.parametrize("side", [7, 10, 13])
def test_without_a_crop_it_is_the_nearest_rule(side):
    grid = np.arange(400).reshape(20, 20)
    frame = Frame(source_hw=(20, 20), working_hw=(side, side))
    every = dataclasses.replace(frame, crop=(0, 0, 20, 20))
    np.testing.assert_array_equal(
        making._cut(grid, frame, sensor=False), making._cut(grid, every, sensor=False)
    )


def tasks_of(scans, size=448, image_size=448):
    frame = Frame(source_hw=(400, 400), working_hw=(size, size))
    return [making.Task(scan, "both", frame, image_size) for scan in scans]


def test_a_side_beyond_the_photograph_is_lowered(scans, monkeypatch):
    monkeypatch.setattr(making, "extent", lambda task: (100, 300, 120, 310))
    cut, notes = windowed(tasks_of(scans[:2]), 0.06)
    assert notes == ["the window is 212 pixels wide: images at 224 instead of 448"]
    assert [task.frame.crop for task in cut] == [(94, 109, 212, 212)] * 2
    assert {task.image_size for task in cut} == {224}
    assert {task.frame.working_hw for task in cut} == {(round(448 * 212 / 400),) * 2}
    kept, _ = windowed(tasks_of(scans[:2], image_size=112), 0.06)
    assert {task.image_size for task in kept} == {112}


@pytest.mark.parametrize(("patch", "lowered"), [(8, 256), (14, 266), (16, 256), (32, 256)])
def test_a_lowered_side_is_a_multiple_of_the_patch(scans, monkeypatch, patch, lowered):
    monkeypatch.setattr(making, "extent", lambda task: (100, 340, 120, 310))
    cut, _ = windowed(tasks_of(scans[:2], image_size=518), 0.06, step=patch)
    assert cut[0].frame.crop[2] == 255
    assert {task.image_size for task in cut} == {lowered}


def test_pictures_of_several_sizes_stay_whole(scans, monkeypatch):
    monkeypatch.setattr(making, "extent", lambda task: (100, 300, 120, 310))
    tasks = tasks_of(scans[:2])
    tasks[1] = dataclasses.replace(tasks[1], frame=dataclasses.replace(tasks[1].frame, source_hw=(800, 800)))
    kept, notes = windowed(tasks, 0.06)
    assert kept == tasks
    assert notes == ["pictures of several sizes: no window around the object"]


def test_an_object_as_wide_as_the_picture_leaves_everything(scans, monkeypatch):
    monkeypatch.setattr(making, "extent", lambda task: (0, 399, 100, 200))
    tasks = tasks_of(scans[:2])
    assert windowed(tasks, 0.06) == (tasks, [])


def test_a_scan_that_cannot_be_read_is_named(scans, monkeypatch):
    def broken(task):
        raise InputError(f"{task.scan.name}: broken")

    monkeypatch.setattr(making, "extent", broken)
    with pytest.raises(InputError, match=r"broken \(first of 2 problems\)"):
        windowed(tasks_of(scans[:2]), 0.06)


def test_extents_are_kept_by_content(scans, monkeypatch):
    task = tasks_of(scans[:1])[0]
    task = dataclasses.replace(task, frame=datasets.frame_of(scans[0], 32))
    first = making.extent(task)
    assert first is not None
    monkeypatch.setattr(making, "load_scan_xyz", lambda *args, **more: pytest.fail("read again"))
    assert making.extent(task) == first
