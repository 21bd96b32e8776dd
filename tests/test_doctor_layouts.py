"""The doctor on every layout: nothing in a healthy one, every planted fault of a damaged one at once."""

from __future__ import annotations

import numpy as np
import pytest

from muscjax import datasets, doctor
from muscjax.config import released
from muscjax.datasets import folder
from muscjax.errors import InputError
from tests import layouts
from tests.test_layouts import TREES


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def check(root, planted, **options):
    """Each planted (path, text, fatal) is one line, and there is no other."""
    found = doctor.examine(root, **options)
    for path, text, fatal in planted:
        (line,) = [line for line in found.problems if line.startswith(f"{path}: ") and text in line]
        assert "\n" not in line
        assert (line in found.fatal) == fatal, line
    assert len(found.problems) == len(planted), found.problems
    assert found.exit_code == int(any(fatal for *_, fatal in planted))


@pytest.mark.parametrize("name", TREES)
def test_healthy(tmp_path, name):
    write, options, _ = TREES[name]
    root = write(tmp_path / "set", **options)
    found = doctor.examine(root)
    assert found.problems == ()
    read = datasets.open_dataset(root)
    assert [c.scans for c in found.categories] == [len(d.scans) for d in read]
    for category, dataset in zip(found.categories, read, strict=True):
        assert category.images == len(dataset.scans)
        assert category.clouds == sum(scan.xyz is not None for scan in dataset.scans)
        assert category.masks == sum(scan.mask is not None for scan in dataset.scans)


@pytest.mark.parametrize("split", ["test_public", "test_private", "train"])
def test_splits_of_eyecandies(tmp_path, split):
    layouts.write_eyecandies(tmp_path, categories=("Lollipop",))
    assert doctor.examine(tmp_path, split=split).problems == ()


def test_eyecandies(tmp_path):
    layouts.write_eyecandies(tmp_path, categories=("Lollipop",), splits=("test_public",))
    data = tmp_path / "Lollipop" / "test_public" / "data"
    (data / "00_info_depth.yaml").write_text("normalization: {min: 3, max: 1}")
    np.savetxt(data / "01_pose.txt", np.ones((4, 4)))
    (data / "02_pose.txt").unlink()
    layouts.save_image(data / "03_depth.png", layouts.rgb_scan(layouts.SIDE))
    layouts.save_image(data / "03_mask.png", layouts.defect_mask(40))
    planted = [
        (data / "00_info_depth.yaml", "min < max", True),
        (data / "01_pose.txt", "no rotation", True),
        (data / "02_depth.png", "found no 02_pose.txt", True),
        (data / "03_depth.png", "expected grey of 16 bits", True),
        (data / "03_mask.png", "found a mask of 40×40 pixels", True),
    ]
    check(tmp_path, planted)


def test_clouds_with_a_camera(tmp_path):
    root = layouts.write_clouds(tmp_path / "line", kind=".ply", count=5)
    whole = (root / "00.ply").read_bytes()
    (root / "00.ply").write_bytes(whole[:-7])
    (root / "01.ply").write_bytes(b"")
    layouts.write_ply(root / "02.ply", -layouts.seen_cloud()[0])
    layouts.save_xyz(root / "03.ply", layouts.xyz_scan())
    layouts.save_image(root / "04.png", layouts.rgb_scan(80, 40))
    found = doctor.examine(root)
    assert len(found.fatal) == 5
    for name, text in (
        ("00.ply", "its header claims 1920 vertices"),
        ("01.ply", "found an empty file (0 bytes), expected a cloud"),
        ("02.ply", "no point in the view of"),
        ("03.ply", "its content is TIFF, its name says PLY"),
        ("04.ply", "expected the aspect ratio of 80×40"),
    ):
        assert any(line.startswith(f"{root / name}: ") and text in line for line in found.fatal), name


def test_a_broken_camera_is_told_once(tmp_path):
    root = layouts.write_clouds(tmp_path / "line", kind="points.npy")
    (root / "camera.json").write_text('{"fx": 90}')
    check(root, [(root / "camera.json", "fy is missing", True)])


def test_clouds_without_a_camera(tmp_path):
    root = layouts.write_clouds(tmp_path / "line", kind=".ply", camera=False)
    check(root, [(root / "00.ply", "points only, the images are left out", False)])


def test_visa_and_btad(tmp_path):
    visa = layouts.write_visa(tmp_path / "visa", objects=("candle",))
    images, masks = visa / "candle" / "Data" / "Images", visa / "candle" / "Data" / "Masks"
    (images / "Normal" / "0001.JPG").write_bytes(b"")
    (masks / "Anomaly" / "000.png").unlink()
    layouts.save_image(masks / "Anomaly" / "001.png", layouts.defect_mask(40, 60, value=0))
    check(
        visa,
        [
            (images / "Normal" / "0001.JPG", "found an empty file", True),
            (images / "Anomaly" / "000.JPG", "found no mask", False),
            (masks / "Anomaly" / "001.png", "found no defect pixel", False),
        ],
    )
    btad = layouts.write_btad(tmp_path / "btad", products=("03",))
    truth = btad / "03" / "ground_truth" / "ko"
    layouts.save_image(truth / "0001.png", layouts.defect_mask(40, 44))
    layouts.save_image(truth / "0007_mask.bmp", layouts.defect_mask(40, 44))
    check(
        btad,
        [
            (truth / "0001.png", "found the same stem as 0001.bmp", True),
            (truth / "0007_mask.bmp", "a mask without a scan", False),
        ],
    )


def test_folder_with_labels_and_masks(tmp_path):
    root = layouts.write_folder(tmp_path / "line")
    (root / folder.LABELS).write_text("path,label\na.png,1\nb.jpg,0\nzz,1\n")
    layouts.save_image(root / "masks" / "a.png", layouts.defect_mask(36))
    check(
        root,
        [
            (root / folder.LABELS, "line 4: found 'zz'", False),
            (root / folder.LABELS, "found no label of 1 of 3 scans", False),
            (root / "masks" / "a.png", "found a mask of 36×36 pixels, expected 40×50", True),
        ],
    )


@pytest.mark.parametrize("kind", [".ply", "points.npy", ".npy"])
def test_what_is_fatal_stops_a_run(tmp_path, kind):
    root = layouts.write_clouds(tmp_path / "line", kind=kind)
    path = root / f"01{kind.removeprefix('points')}"
    path.write_bytes(path.read_bytes()[:200])
    assert doctor.examine(root).exit_code == 1
    (dataset,) = datasets.open_dataset(root)
    with pytest.raises(InputError):
        datasets.prepare(dataset.scans[1], released(), modality="both")
