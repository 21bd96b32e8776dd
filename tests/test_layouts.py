"""Every layout on real files on disk: recognised as itself, read whole, prepared; faults told at once."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from muscjax import datasets, names
from muscjax.config import Config, InputConfig
from muscjax.datasets import folder, visa
from muscjax.errors import InputError
from tests import layouts
from tests.conftest import shared

SMALL = Config(input=InputConfig(image_size=32))
TREES = {
    "mvtec3d": (layouts.write_mvtec3d, {}, "part"),
    "eyecandies": (layouts.write_eyecandies, {}, "Lollipop"),
    "visa": (layouts.write_visa, {}, "pcb1"),
    "visa 1cls": (layouts.write_visa_1cls, {}, "pcb1"),
    "visa ok ko": (layouts.write_visa_1cls, {"folders": ("ok", "ko")}, "pcb1"),
    "mpdd": (layouts.write_mpdd, {}, "tubes"),
    "btad": (layouts.write_btad, {}, "03"),
    "btad _mask": (layouts.write_btad, {"suffix": "_mask"}, "01"),
    "mvtec": (layouts.write_mvtec, {}, "bottle"),
    "folder": (layouts.write_folder, {}, None),
    "folder tiff": (layouts.write_clouds, {"kind": ".tiff"}, None),
    "folder rgb xyz": (layouts.write_clouds, {"kind": ".tiff", "separate": True}, None),
    "folder npy": (layouts.write_clouds, {"kind": ".npy"}, None),
    "folder points": (layouts.write_clouds, {"kind": "points.npy"}, None),
    "folder ply": (layouts.write_clouds, {"kind": ".ply", "separate": True}, None),
}
WITH_POINTS = {"mvtec3d", "eyecandies", *(tree for tree in TREES if tree.startswith("folder "))}


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Each tree, written once; tests that change one write their own."""
    written = {}

    def tree(name):
        if name not in written:
            write, options, _ = TREES[name]
            written[name] = write(tmp_path_factory.mktemp("tree") / "set", **options)
        return written[name]

    return tree


def opened(root, **options):
    return datasets.open_dataset(root, **options)


class TestRecognition:
    def test_names_are_known_without_importing_the_readers(self):
        assert tuple(datasets.LAYOUTS) == names.LAYOUTS
        code = "import sys, muscjax.names; print({'numpy', 'muscjax.datasets'} & set(sys.modules))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "set()"
        assert all(name in names.LAYOUT_HELP for name in names.LAYOUTS)

    @pytest.mark.parametrize("name", TREES)
    def test_each_tree_is_its_own_and_no_earlier_one(self, trees, name):
        root, own = trees(name), name.split()[0]
        places = [root] if TREES[name][2] is None else [root, root / TREES[name][2]]
        for place in places:
            first = next(key for key, reader in datasets.LAYOUTS.items() if reader.matches(place))
            assert first == own
            assert {dataset.layout for dataset in opened(place)} == {own}

    @pytest.mark.parametrize("name", TREES)
    def test_healthy_and_prepared(self, trees, name, tmp_path):
        points = name in WITH_POINTS
        for dataset in opened(trees(name)):
            assert dataset.problems == ()
            assert dataset.has_images
            assert dataset.has_points == points
            kind = "both" if points else "image"
            _, size = datasets.working_sizes(dataset.scans, SMALL, modality=kind)
            for scan in dataset.scans[::2]:
                got = datasets.prepare(scan, SMALL, modality=kind, cache_dir=tmp_path, map_size=size)
                assert got.image.shape == (32, 32, 3)
                assert got.image.dtype == np.uint8
                assert got.frame.working_hw == (size, size) == (32, 32)
                assert (got.mask is None) == (scan.label is None)
                if scan.label is not None:
                    assert got.mask.shape == (32, 32)
                    assert got.mask.any() == bool(scan.label)
                if points:
                    assert np.asarray(got.cloud.valid).sum() > 20
                    assert np.asarray(got.cloud.points_m).dtype == np.float32

    @pytest.mark.parametrize("name", TREES)
    def test_category_all_and_one(self, trees, name):
        root, (_, _, one) = trees(name), TREES[name]
        every = opened(root, category="all")
        assert every == opened(root)
        chosen = every[0].category if one is None else one
        assert [d.category for d in opened(root, category=chosen)] == [chosen]
        with pytest.raises(InputError) as error:
            opened(root, category="nothing")
        one_line(error, "category", "nothing", chosen)

    @pytest.mark.parametrize("name", [tree for tree in TREES if tree not in WITH_POINTS])
    def test_points_asked_of_images(self, trees, name):
        for modality in ("points", "both"):
            with pytest.raises(InputError) as error:
                opened(trees(name), modality=modality)
            one_line(error, trees(name), modality)

    def test_the_same_tree_by_another_name(self, trees, tmp_path):
        for name in ("mpdd", "visa"):
            for dataset in opened(trees("mvtec"), layout=name):
                assert (dataset.layout, dataset.problems) == (name, ())
                assert {scan.label for scan in dataset.scans} == {0, 1}
        # a part whose name is anybody's, with a defect that MPDD has not
        other = layouts.write_mvtec(tmp_path, categories=("tubes",))
        assert opened(other)[0].layout == "mvtec"
        layouts.write_mvtec(tmp_path / "b", categories=("candle",))
        assert opened(tmp_path / "b")[0].layout == "mvtec"

    def test_insides_are_no_folders_of_images(self, trees):
        data = trees("eyecandies") / "CandyCane" / "test_public" / "data"
        for inside in (data, data.parent, trees("visa") / "candle" / "Data"):
            with pytest.raises(InputError) as error:
                opened(inside)
            one_line(error, inside, "no known layout")

    @pytest.mark.parametrize("name", datasets.LAYOUTS)
    def test_another_tree_is_refused_by_name(self, trees, name, tmp_path):
        (tmp_path / "note.txt").write_text("")
        with pytest.raises(InputError) as error:
            opened(tmp_path, layout=name)
        one_line(error, tmp_path, "found no")


class TestBtad:
    @pytest.mark.parametrize(("name", "ending"), [("btad", ""), ("btad _mask", "_mask")])
    def test_formats_and_both_names_of_masks(self, trees, name, ending):
        found = {dataset.category: dataset for dataset in opened(trees(name))}
        assert list(found) == ["01", "02", "03"]
        for product, (image, mask) in {
            "01": (".bmp", ".png"),
            "02": (".png", ".png"),
            "03": (".bmp",) * 2,
        }.items():
            scans = found[product].scans
            assert [scan.name for scan in scans] == [
                *(f"{product}/test/ko/{i:04d}" for i in range(3)),
                *(f"{product}/test/ok/{i:04d}" for i in range(2)),
            ]
            assert [scan.label for scan in scans] == [1, 1, 1, 0, 0]
            root = trees(name) / product
            assert scans[1].image == root / f"test/ko/0001{image}"
            assert scans[1].mask == root / f"ground_truth/ko/0001{ending}{mask}"
            assert scans[3].mask is None

    def test_train(self, trees):
        assert {len(d.scans) for d in opened(trees("btad"), split="train")} == {2}


class TestVisa:
    def test_the_table_chooses(self, trees):
        candle, _ = opened(trees("visa"))
        assert [scan.name for scan in candle.scans] == [
            *(f"candle/test/Anomaly/{i:03d}" for i in range(2)),
            *(f"candle/test/Normal/{i:04d}" for i in (1, 2)),
        ]
        assert candle.scans[1].mask == trees("visa") / "candle/Data/Masks/Anomaly/001.png"
        assert datasets.load_truth(candle.scans[1]).sum() == 48  # any class of defect
        train, _ = opened(trees("visa"), split="train", strict=False)
        assert [scan.name for scan in train.scans] == ["candle/train/Normal/0000"]

    def test_one_object_finds_the_table_beside_it(self, trees):
        assert opened(trees("visa") / "candle") == opened(trees("visa"), category="candle")

    def test_without_the_table_all_are_used(self, tmp_path):
        root = layouts.write_visa(tmp_path, objects=("candle",))
        (root / visa.SPLIT).unlink()
        (dataset,) = opened(root)
        assert len(dataset.scans) == 5
        assert dataset.fatal == ()
        (line,) = dataset.problems
        assert str(visa.SPLIT) in line

    def test_every_fault_at_once(self, tmp_path):
        root = layouts.write_visa(tmp_path, objects=("candle",))
        table = root / visa.SPLIT
        text = table.read_text().replace("Anomaly/001.JPG", "Anomaly/009.JPG")
        text = text.replace(
            "test,normal,candle/Data/Images/Normal/0001.JPG", "test,fine,candle/x/Normal/0001.JPG"
        )
        text = text.replace(
            "test,normal,candle/Data/Images/Normal/0002.JPG", "test,anomaly,a\\Normal\\0002.JPG"
        )
        table.write_text("\ufeff" + text + "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,\n")
        (root / "candle/Data/Masks/Anomaly/000.png").rename(root / "candle/Data/Masks/Anomaly/007.png")
        (dataset,) = opened(root, strict=False)
        for text in (
            "line 3: label: found 'fine'",
            "0002.JPG of candle/Normal under the other label",
            "line 7: found candle/Data/Images/Anomaly/000.JPG a second time",
            "found no image Anomaly/009",
        ):
            assert sum(text in line for line in dataset.fatal) == 1, text
        assert len(dataset.fatal) == 4
        assert sum("mask" in line for line in dataset.problems) == 2

    @pytest.mark.parametrize("content", [b"object;split;label;image\n", b"\xff\xfe\x00", b""])
    def test_a_table_that_is_none(self, tmp_path, content):
        root = layouts.write_visa(tmp_path, objects=("candle",))
        (root / visa.SPLIT).write_bytes(content)
        with pytest.raises(InputError) as error:
            opened(root)
        one_line(error, root / visa.SPLIT, "problems")

    def test_converted(self, trees):
        candle, pcb1 = opened(trees("visa 1cls"))
        assert [scan.defect for scan in candle.scans] == ["bad", "bad", "good", "good"]
        assert pcb1.scans[0].mask == trees("visa 1cls") / "pcb1/ground_truth/bad/0000.png"
        assert [scan.label for scan in opened(trees("visa ok ko"))[0].scans] == [1, 1, 0, 0]


class TestEyecandies:
    def test_files_of_a_scan(self, trees):
        candy, _ = opened(trees("eyecandies"))
        assert [(scan.name, scan.label) for scan in candy.scans] == [
            ("CandyCane/test_public/bumps_dents/02", 1),
            ("CandyCane/test_public/dents/03", 1),
            ("CandyCane/test_public/good/00", 0),
            ("CandyCane/test_public/good/01", 0),
        ]
        data = trees("eyecandies") / "CandyCane/test_public/data"
        scan = candy.scans[0]
        assert (scan.image, scan.mask) == (data / "02_image_0.png", data / "02_mask.png")
        assert scan.xyz_files == (data / "02_depth.png", data / "02_info_depth.yaml", data / "02_pose.txt")
        assert scan.cleaning == "eyecandies"

    def test_splits(self, trees):
        root = trees("eyecandies") / "CandyCane"
        assert opened(root, split="test_public") == opened(root)
        (private,) = opened(root, split="test_private")
        assert {(scan.label, scan.defect, scan.mask) for scan in private.scans} == {(None, "", None)}
        assert private.problems == ()
        (train,) = opened(root, split="train")
        assert [(scan.stem, scan.label) for scan in train.scans] == [("000", 0), ("001", 0)]

    def test_labels_from_masks_where_metadata_is_missing(self, tmp_path):
        root = layouts.write_eyecandies(tmp_path, categories=("Lollipop",), splits=("test_public",))
        for path in root.rglob("*_metadata.yaml"):
            path.unlink()
        (dataset,) = opened(root)
        assert [(scan.defect, scan.label) for scan in dataset.scans] == [("bad", 1)] * 2 + [("good", 0)] * 2

    def test_the_object_is_found(self, trees, tmp_path):
        scan = opened(trees("eyecandies"))[0].scans[0]
        config = Config(input=InputConfig(image_size=64))
        got = datasets.prepare(scan, config, modality="both", cache_dir=tmp_path)
        ball = layouts.candy().ball
        assert (np.asarray(got.foreground) != ball).sum() <= 0.03 * ball.sum()  # its lowest rim

    def test_every_fault_at_once(self, tmp_path):
        root = layouts.write_eyecandies(tmp_path, categories=("Lollipop",), splits=("test_public",))
        data = root / "Lollipop/test_public/data"
        (data / "00_image_0.png").unlink()
        (data / "01_depth.png").unlink()
        (data / "02_pose.txt").unlink()
        (data / "03_info_depth.yaml").unlink()
        (data / "03_mask.png").unlink()
        (data / "02_metadata.yaml").write_text("a: [")
        (dataset,) = opened(root, strict=False)
        for name, text in (
            ("00_depth.png", "found no 00_image_0.png to pair with"),
            ("01_image_0.png", "found no 01_depth.png to pair with"),
            ("02_depth.png", "found no 02_pose.txt"),
            ("03_depth.png", "found no 03_info_depth.yaml"),
            ("02_metadata.yaml", "not a readable YAML"),
        ):
            assert sum(line.startswith(f"{data / name}: ") and text in line for line in dataset.fatal) == 1, (
                text
            )
        assert len(dataset.fatal) == 5
        assert any("03_image_0.png: found no mask" in line for line in dataset.problems)
        assert opened(root, modality="image", strict=False)[0].fatal == dataset.fatal[:1]


class TestMvtec3d:
    def test_real_names_do_not_change_the_layout(self, tmp_path):
        layouts.write_mvtec3d(tmp_path, categories=("CandyCane",))  # Eyecandies as others converted it
        (dataset,) = opened(tmp_path)
        assert (dataset.layout, dataset.scans[0].cleaning) == ("mvtec3d", "plane")

    def test_pairs_and_masks_of_all_categories_at_once(self, tmp_path):
        root = layouts.write_mvtec3d(tmp_path, categories=("a", "b"))
        for category in "ab":
            (root / category / "test/bent/xyz/000.tiff").unlink()
        found = opened(root, strict=False)
        assert [len(dataset.fatal) for dataset in found] == [1, 1]
        with pytest.raises(InputError) as error:
            opened(root)
        one_line(error, "first of 2 problems")


def test_a_run_folder_is_never_input(tmp_path):
    root = layouts.write_clouds(tmp_path / "set")
    shutil.copytree(root, root / "out")
    (root / "out" / folder.RESULTS).write_text("{}")
    assert len(opened(root)[0].scans) == 3


@pytest.mark.real
@pytest.mark.parametrize(("place", "scans"), [("mvtec3d", 108), ("mvtec3d_native", 10)])
def test_real_scans_still_open(place, scans):
    (dataset,) = opened(shared("data", place))
    assert (dataset.layout, dataset.category, dataset.problems) == ("mvtec3d", "cable_gland", ())
    assert len(dataset.scans) == scans
    side = 400 if place == "mvtec3d_native" else 224
    xyz = datasets.load_scan_xyz(dataset.scans[-1])
    assert xyz.shape == (side, side, 3) == (*datasets.scan_xyz_hw(dataset.scans[-1]), 3)
    assert 0.6 < np.median(xyz[xyz[..., 2] > 0, 2]) < 0.7
