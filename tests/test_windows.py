"""Scans cut to a square around their object: where it lies, what is cut, and the way back."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from muscjax import datasets, maps
from muscjax.config import Config, InputConfig
from muscjax.datasets import making, workers
from muscjax.datasets.sources import load_scan_xyz
from muscjax.datasets.windows import windowed
from muscjax.errors import InputError
from muscjax.preprocess import backdrop, find_foreground, removed_pixels, valid_points
from muscjax.types import Frame
from tests import layouts


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
    assert cut.images is not None
    defective = 0
    for scan, item, image in zip(scans, cut.prepared, cut.images[0 : len(scans)], strict=True):
        (y, x, side, _), cloud, foreground, mask = parts(item)
        stored = np.asarray(Image.open(scan.mask)) != 0 if scan.mask else np.zeros((64, 64), bool)
        part = stored[y : y + side, x : x + side]
        size = cut.map_size
        assert mask.any() == part.any()
        if part.any():  # the mask's middle is where it is in the part
            defective += 1
            middle = [np.argwhere(m).mean(axis=0) + 0.5 for m in (part, mask)]
            np.testing.assert_allclose(middle[1] * side / size, middle[0], atol=1.5)
        cleaned = removed_pixels(valid_points(xyz := load_scan_xyz(scan)), find_foreground(xyz).mask)
        shown = np.where(cleaned[..., None], np.uint8(0), np.asarray(Image.open(scan.image)))
        shown = Image.fromarray(shown[y : y + side, x : x + side]).resize((32, 32), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(image, shown)
        rows, columns = np.divmod(np.asarray(cloud.pixel)[np.asarray(cloud.valid)], size)
        assert foreground[rows, columns].all()
    assert defective


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


def test_a_side_beyond_the_photograph_is_lowered(scans):
    told = [(100, 300, 120, 310)] * 2
    cut, notes = windowed(tasks_of(scans[:2]), told, 0.06)
    assert notes == ["the window is 212 pixels wide: images at 224 instead of 448"]
    assert [task.frame.crop for task in cut] == [(94, 109, 212, 212)] * 2
    assert {task.image_size for task in cut} == {224}
    assert {task.frame.working_hw for task in cut} == {(round(448 * 212 / 400),) * 2}
    kept, _ = windowed(tasks_of(scans[:2], image_size=112), told, 0.06)
    assert {task.image_size for task in kept} == {112}


@pytest.mark.parametrize(("patch", "lowered"), [(8, 256), (14, 266), (16, 256), (32, 256)])
def test_a_lowered_side_is_a_multiple_of_the_patch(scans, patch, lowered):
    cut, _ = windowed(tasks_of(scans[:2], image_size=518), [(100, 340, 120, 310)] * 2, 0.06, step=patch)
    assert cut[0].frame.crop[2] == 255
    assert {task.image_size for task in cut} == {lowered}


def test_pictures_of_several_sizes_stay_whole(scans):
    tasks = tasks_of(scans[:2])
    tasks[1] = dataclasses.replace(tasks[1], frame=dataclasses.replace(tasks[1].frame, source_hw=(800, 800)))
    kept, notes = windowed(tasks, [(100, 300, 120, 310)] * 2, 0.06)
    assert kept == tasks
    assert notes == ["pictures of several sizes: no window around the object"]


@pytest.mark.parametrize(
    ("told", "note"),
    [
        (
            [(100, 300, 120, 310), (20, 30, 4, 396), (0, 399, 100, 200), None],
            "{2}: its object is 399 pixels wide, the picture 400 (the widest of 2 such)",
        ),
        (
            [(100, 300, 120, 310), (20, 30, 4, 396), None, (100, 300, 120, 310)],
            "{1}: its object is 392 pixels wide, the picture 400",
        ),
        ([(0, 399, 100, 200), (0, 400, 0, 400), (0, 400, 2, 399), None], "every object fills its picture"),
        ([None] * 4, "no object in any scan"),
    ],
    ids=["two", "one", "every", "none"],
)
def test_an_object_as_wide_as_the_picture_leaves_everything(scans, told, note):
    tasks = tasks_of(scans)
    said = note.format(*(scan.xyz for scan in scans))
    assert windowed(tasks, told, 0.06) == (tasks, [f"{said}: no window around the object"])


def test_a_given_side_as_wide_as_the_picture_leaves_everything(scans):
    tasks = tasks_of(scans)
    said = f"{scans[0].xyz}: the picture is 400 pixels wide, the window 390: no window around the object"
    assert windowed(tasks, [(100, 300, 120, 310)] * len(tasks), 0.06, side=390) == (tasks, [said])


def test_scans_that_cannot_be_read_are_named(scans, monkeypatch):
    def broken(task):
        raise InputError(f"{task.scan.name}: broken")

    monkeypatch.setattr(making, "extent", broken)
    with pytest.raises(InputError, match=rf"{scans[0].name}: broken \(first of {len(scans)} problems\)"):
        opened(scans)


def test_extents_are_kept_by_content(scans, monkeypatch):
    task = tasks_of(scans[:1])[0]
    task = dataclasses.replace(task, frame=datasets.frame_of(scans[0], 32))
    first = making.extent(task)
    assert first is not None
    monkeypatch.setattr(making, "load_scan_xyz", lambda *args, **more: pytest.fail("read again"))
    assert making.extent(task) == first


PARTS = (
    (20, 58, 30, 70),
    (30, 70, 12, 46),
    (8, 44, 40, 76),
    (40, 75, 41, 80),
    (26, 60, 20, 55),
    (9, 40, 9, 40),
)
PART_SIDE = 43  # of the window: the widest part is 40 pixels wide, and 6 % more


def photograph(*place: int, hw=(96, 96)) -> np.ndarray:
    """(H, W, 3) uint8: a part with its own pattern on a bright table; without a place the table alone."""
    rgb = np.full((*hw, 3), (210, 205, 200), np.uint8)
    if place:
        top, bottom, left, right = place
        part = np.random.default_rng(sum(place)).integers(20, 120, (bottom - top, right - left, 3))
        rgb[top:bottom, left:right] = part
    return rgb


@pytest.fixture
def photographed(tmp_path, monkeypatch):
    """Scans without depth, and the function that replaces one of their pictures."""
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(workers, "process_count", lambda items: pytest.fail("a process to read images"))
    folder = tmp_path / "set"
    for i, place in enumerate(PARTS):
        layouts.save_image(folder / f"{i}.png", photograph(*place))
    scans = datasets.open_dataset(folder)[0].scans
    assert [scan.image for scan in scans] == [folder / f"{i}.png" for i in range(len(PARTS))]
    return scans


def opened_images(scans, kind: Literal["whole", "object"] = "object", **more):
    settings = InputConfig(image_size=32, window=kind, **more)
    return datasets.open_working(scans, Config(input=settings), modality="image")


def crops(cut: datasets.Working) -> list[tuple[int, int, int, int]]:
    found = [item.frame.crop for item in cut.prepared]
    return [crop for crop in found if crop is not None]


def test_photographs_are_cut_to_their_object(photographed):
    cut = opened_images(photographed)
    assert cut.notes == ()
    assert cut.images is not None
    assert cut.map_size == round(32 * PART_SIDE / 96)
    for place, shown, (y, x, *side) in zip(PARTS, cut.images[0 : len(PARTS)], crops(cut), strict=True):
        assert side == [PART_SIDE, PART_SIDE]
        assert y <= place[0] < place[1] <= y + PART_SIDE
        assert x <= place[2] < place[3] <= x + PART_SIDE
        part = Image.fromarray(photograph(*place)[y : y + PART_SIDE, x : x + PART_SIDE])
        np.testing.assert_array_equal(shown, part.resize((32, 32), Image.Resampling.BICUBIC))


def test_maps_of_cut_photographs_go_back_to_the_scan(photographed):
    cut = opened_images(photographed)
    for item, (y, x, side, _) in zip(cut.prepared, crops(cut), strict=True):
        truth = np.zeros((96, 96), np.float32)
        truth[y : y + side, x : x + side] = 1
        back = maps.to_source(jnp.ones((cut.map_size, cut.map_size)), item.frame)
        np.testing.assert_allclose(back, truth, atol=1e-6)
        rows, columns = ((np.arange(cut.map_size) + 0.5) * side / cut.map_size for _ in range(2))
        ramp = jnp.asarray((y + rows)[:, None] + 1000 * (x + columns)[None, :], jnp.float32)
        back = np.asarray(maps.to_source(ramp, item.frame))
        inner = slice(y + 3, y + side - 3), slice(x + 3, x + side - 3)  # beyond, nothing to go between
        rows, columns = np.mgrid[inner] + 0.5
        np.testing.assert_allclose(back[inner], rows + 1000 * columns, rtol=1e-5)


def test_one_photograph_without_a_backdrop_leaves_the_set_whole(photographed):
    for name in (2, 4):
        layouts.save_image(photographed[name].image, layouts.rgb_scan(96, seed=name))
    kept, whole = opened_images(photographed), opened_images(photographed, "whole")
    assert kept.notes == (
        f"{photographed[2].image}: {backdrop.NO_BACKDROP} (first of 2): no window around the object",
    )
    assert kept.map_size == whole.map_size == 32
    assert [item.frame for item in kept.prepared] == [item.frame for item in whole.prepared]
    assert kept.images is not None
    assert whole.images is not None
    np.testing.assert_array_equal(kept.images[0 : len(PARTS)], whole.images[0 : len(PARTS)])


def test_a_line_across_one_photograph_is_named(photographed):
    rgb = photograph(*PARTS[2])
    rgb[45:48, 2:94] = 20
    layouts.save_image(photographed[2].image, rgb)
    kept = opened_images(photographed)
    said = f"{photographed[2].image}: its object is 92 pixels wide, the picture 96"
    assert kept.notes == (f"{said}: no window around the object",)
    assert {item.frame.crop for item in kept.prepared} == {None}


@pytest.mark.parametrize("edge", [np.s_[:, :1], np.s_[-1:], np.s_[:1]], ids=["left", "bottom", "top"])
def test_a_black_edge_of_one_photograph_is_no_object(photographed, edge):
    rgb = photograph(*PARTS[2])
    rgb[edge] = 0
    layouts.save_image(photographed[2].image, rgb)
    cut = opened_images(photographed)
    assert cut.notes == ()
    assert [crop[2] for crop in crops(cut)] == [PART_SIDE] * len(PARTS)


def test_a_missing_part_has_no_say(photographed):
    layouts.save_image(photographed[3].image, photograph())
    cut = opened_images(photographed)
    assert cut.notes == ()
    assert [crop[2] for crop in crops(cut)] == [PART_SIDE] * len(PARTS)
    assert crops(cut)[3][:2] == (26, 26)  # the middle


def test_many_photographs_of_nothing_but_backdrop_leave_the_set_whole(photographed):
    for name in (1, 5):
        layouts.save_image(photographed[name].image, photograph())
    kept = opened_images(photographed)
    assert kept.notes == (
        f"{photographed[1].image}: nothing but backdrop in 2 of 6 photographs: no window around the object",
    )
    assert {item.frame.crop for item in kept.prepared} == {None}


def test_with_a_given_side_a_photograph_without_a_backdrop_is_cut_in_the_middle(photographed):
    layouts.save_image(photographed[2].image, layouts.rgb_scan(96))
    cut = opened_images(photographed, window_side=50)
    assert cut.notes == (f"{photographed[2].image}: {backdrop.NO_BACKDROP}: cut in the middle",)
    assert [crop[2:] for crop in crops(cut)] == [(50, 50)] * len(PARTS)
    assert crops(cut)[2][:2] == (23, 23)
    assert crops(cut)[0][:2] == (14, 25)  # around its part


def image_task(scan, **frame):
    return making.Task(scan, "image", Frame(source_hw=(96, 96), working_hw=(32, 32), **frame), 32)


@pytest.mark.parametrize("shown", ["part", "table", "texture"])
def test_extents_in_photographs_are_kept_by_content(photographed, monkeypatch, shown):
    rgb = {"part": photograph(*PARTS[0]), "table": photograph(), "texture": layouts.rgb_scan(96)}[shown]
    layouts.save_image(photographed[0].image, rgb)
    task = image_task(photographed[0])
    first = making.extent(task)
    assert first == {"part": PARTS[0], "table": None, "texture": backdrop.NO_BACKDROP}[shown]
    with monkeypatch.context() as patch:
        patch.setattr(backdrop, "object_mask", lambda rgb: pytest.fail("looked for again"))
        assert making.extent(task) == first
        assert making.extent(dataclasses.replace(task, clean=False, image_size=48)) == first
        padded = making.extent(image_task(photographed[0], pad=(2, 3, 5, 7)))
        down, across = np.array([2, 2, 0, 0]), np.array([0, 0, 5, 5])
        assert padded == (tuple(np.array(first) + down + across) if shown == "part" else first)
    monkeypatch.setattr(backdrop, "object_mask", lambda rgb: np.eye(96, dtype=bool))
    assert making.extent(task) == first
    monkeypatch.setattr(backdrop, "VERSION", backdrop.VERSION + 1)
    assert making.extent(task) == (0, 96, 0, 96)


def test_the_extent_is_that_of_the_picture_as_it_is_read(photographed, tmp_path):
    rgb = photograph(*PARTS[0])
    alpha = np.dstack([rgb, np.zeros((96, 96), np.uint8)])
    grey = rgb.mean(axis=2)
    for name, stored in (
        ("alpha", alpha),
        ("grey", grey.astype(np.uint8)),
        ("deep", (grey * 257).astype(np.uint16)),
    ):
        layouts.save_image(tmp_path / f"{name}.png", stored)
        scan = dataclasses.replace(photographed[0], image=tmp_path / f"{name}.png")
        assert making.extent(image_task(scan)) == PARTS[0]


def test_depth_decides_where_the_run_uses_it(scans):
    """The same scans by depth and by their photographs, which are noise."""
    cut = opened(scans)
    assert {item.frame.crop is None for item in cut.prepared} == {False}
    kept = opened_images(scans)
    assert kept.notes == (
        f"{scans[0].image}: {backdrop.NO_BACKDROP} (first of {len(scans)}): no window around the object",
    )


def test_a_scan_without_its_photograph_is_named(photographed):
    missing = dataclasses.replace(photographed[1], image=None)
    with pytest.raises(InputError, match="found no image to pair with"):
        making.extent(image_task(missing))
