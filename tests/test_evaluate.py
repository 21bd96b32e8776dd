"""muscjax.evaluate: maps made by anyone, found, checked, fitted, and held against the ground truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from muscjax import datasets, evaluate, metrics
from muscjax.errors import InputError
from muscjax.evaluate import Given, Unusable
from tests import layouts

COUNTS = (("good", 2), ("bent", 2), ("hole", 1))


class Silent:
    def __init__(self):
        self.seconds = {}

    def __call__(self, stage, done, total):
        pass

    def say(self, message):
        pass


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    root = tmp_path_factory.mktemp("truth")
    return layouts.write_mvtec3d(root, categories=("bolt", "nut"), counts=COUNTS, splits=("test",))


@pytest.fixture(scope="module")
def flat_truth(tmp_path_factory):
    """Images without depth, 48×40."""
    return layouts.write_mvtec(tmp_path_factory.mktemp("flat"), counts=COUNTS[:2], hw=(48, 40))


def scans_of(root, category=None):
    return [scan for d in datasets.open_dataset(root, category=category) for scan in d.scans]


def anomaly_map(i: int, hw=(layouts.SIDE, layouts.SIDE)) -> np.ndarray:
    rng = np.random.default_rng(i)
    return (rng.random(hw) + 0.4 * (layouts.defect_mask(*hw) > 0)).astype(np.float32)


def write(path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values, photometric="minisblack")


def write_maps(folder, scans, name=lambda scan: scan.name, suffix=".tiff", hw=(layouts.SIDE, layouts.SIDE)):
    for i, scan in enumerate(scans):
        write(folder / f"{name(scan)}{suffix}", anomaly_map(i, hw))
    return folder


def result(maps, truth, **options):
    return evaluate.evaluate(Given(maps, truth, intervals=False, **options), Silent())


def test_official_scheme_gives_the_metrics_of_the_arrays(tmp_path, truth):
    scans = scans_of(truth)
    out, notes = result(write_maps(tmp_path / "maps", scans), truth)
    assert list(out) == ["bolt", "nut"]
    assert notes == []
    bolt = scans[:5]
    maps = [anomaly_map(i) for i in range(5)]
    masks = [datasets.load_truth(scan) for scan in bolt]
    expected = metrics.summary(
        labels=np.array([scan.label for scan in bolt]),
        scores=np.array([m.max() for m in maps]),
        masks=masks,
        maps=maps,
        foreground=[evaluate.foreground(scan) for scan in bolt],
        intervals=False,
    )
    assert out["bolt"] == expected
    assert expected["defective"] == 3
    assert [y["name"] for y in expected["yardsticks"]] == ["foreground mask", "blurred mask"]


@pytest.mark.parametrize(
    "name",
    [
        lambda s: f"{s.category}/{s.defect}/{s.stem}",
        lambda s: f"test/{s.defect}/{s.stem}",
        lambda s: f"{s.defect}/{s.stem}",
    ],
)
@pytest.mark.parametrize("suffix", [".tiff", ".npy"])
def test_simpler_schemes_mean_the_same(tmp_path, truth, name, suffix):
    scans = scans_of(truth, "bolt")
    official, _ = result(write_maps(tmp_path / "a", scans), truth, category="bolt")
    simple, notes = result(write_maps(tmp_path / "b", scans, name, suffix), truth, category="bolt")
    assert simple == official
    assert notes == []


def test_flat_names_only_where_they_are_unambiguous(tmp_path, truth, flat_truth):
    scans = scans_of(truth, "bolt")
    write_maps(tmp_path / "flat", scans, lambda s: s.stem)
    with pytest.raises(InputError, match=r"names like NNN stand for several scans, expected .*bolt/test"):
        result(tmp_path / "flat", truth, category="bolt")
    one = [scan for scan in scans if scan.defect == "bent"]
    paths, left = evaluate.find_maps(tmp_path / "flat", one)
    assert [paths[scan.name][0].name for scan in one] == ["000.tiff", "001.tiff"]
    assert left == []
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="found no map of any of the 4 scans"):
        result(tmp_path / "none", flat_truth)


def test_a_run_folder_means_its_maps(tmp_path, truth):
    scans = scans_of(truth, "bolt")
    write_maps(tmp_path / "run" / "maps", scans)
    (tmp_path / "run" / "run.json").write_text("{}")
    paths, _ = evaluate.find_maps(tmp_path / "run", scans)
    assert paths[scans[0].name] == [tmp_path / "run" / "maps" / f"{scans[0].name}.tiff"]


def test_left_over_files_and_categories_without_maps_are_said(tmp_path, truth):
    folder = write_maps(tmp_path, scans_of(truth, "nut"))
    write(folder / "nut" / "test" / "bent" / "099.tiff", anomaly_map(0))
    out, notes = result(folder, truth)
    assert list(out) == ["nut"]
    assert any("099.tiff: belongs to no scan (1 such" in note for note in notes)
    assert any(note.startswith("bolt: found no map") for note in notes)


def test_all_faults_are_told_at_once_one_line_each(tmp_path, truth):
    scans = scans_of(truth)
    folder = write_maps(tmp_path, scans)
    paths = {scan.name: folder / f"{scan.name}.tiff" for scan in scans}
    names = list(paths)
    paths[names[0]].unlink()
    paths[names[1]].write_bytes(b"no tiff")
    bad = anomaly_map(2)
    bad[3, :4] = np.nan
    write(paths[names[2]], bad)
    write(paths[names[3]], np.zeros((5, 4, 3), np.float32))
    write(paths[names[4]].with_suffix(".npy"), anomaly_map(4))
    paths[names[5]].unlink()
    write(paths[names[5]].with_suffix(".png"), layouts.rgb_scan())
    with pytest.raises(Unusable) as error:
        result(folder, truth)
    expected = (
        f"{names[0]}: found no map in",
        "not a readable map",
        "NaN or infinity in 4 pixels",
        "(5, 4, 3), expected (height, width) scores",
        "found 000.tiff and 000.npy, expected one map per scan",
        "found a colour picture",
    )
    assert len(error.value.problems) == len(expected)
    for line, words in zip(error.value.problems, expected, strict=True):
        assert words in line
        assert "\n" not in line
    assert "first of 6 problems" in str(error.value)


def test_a_picture_beside_the_numbers_is_not_the_map(tmp_path, truth):
    scans = scans_of(truth, "bolt")
    folder = write_maps(tmp_path / "maps", scans)
    alone, _ = result(folder, truth)
    for scan in scans:
        write(folder / f"{scan.name}.png", layouts.rgb_scan())
    assert result(folder, truth)[0] == alone


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_png_maps(tmp_path, flat_truth, dtype):
    scans = scans_of(flat_truth)
    values = [np.round(anomaly_map(i, (48, 40)) * 170).astype(dtype) for i in range(4)]
    for scan, grey in zip(scans, values, strict=True):
        write(tmp_path / f"{scan.name}.png", grey)
    out, _ = result(tmp_path, flat_truth)
    expected = metrics.pixel_metrics([datasets.load_truth(scan) for scan in scans], values)
    assert out["bottle"]["pixel"]["ap"] == expected["ap"]
    assert out["bottle"]["yardsticks"][0]["name"] == "picture centre"


def test_maps_of_another_size_are_resized_with_a_remark_or_refused(tmp_path, flat_truth):
    folder = write_maps(tmp_path, scans_of(flat_truth), hw=(24, 24))
    out, notes = result(folder, flat_truth)
    assert out["bottle"]["size"] == (48, 40)
    assert any("4 of 4 maps were resized to their masks (24×24 to 48×40, bilinear)" in note for note in notes)
    assert any("another aspect ratio" in note for note in notes)
    with pytest.raises(Unusable, match="found a map of 24×24 pixels, expected 48×40") as error:
        result(folder, flat_truth, strict_size=True)
    assert len(error.value.problems) == 4


def test_fit_map_is_bilinear_between_pixel_centres():
    values = np.array([[0.0, 4.0]], np.float32)
    np.testing.assert_allclose(evaluate.fit_map(values, (1, 4)), [[0, 1, 3, 4]])
    assert evaluate.fit_map(values, (1, 2)) is values


def test_scores_come_from_the_file_or_from_the_maximum(tmp_path, truth):
    scans = scans_of(truth, "bolt")
    folder = write_maps(tmp_path / "maps", scans)
    table = tmp_path / "scores.csv"
    lines = [
        f"{scans[0].image},5",
        *(f"elsewhere/{s.category}/test/{s.defect}/rgb/{s.stem}.png,{i}" for i, s in enumerate(scans[1:])),
    ]
    table.write_text("\n".join(["path,score", *lines]))
    out, _ = result(folder, truth, category="bolt", scores=table)
    labels = np.array([scan.label for scan in scans])
    assert out["bolt"]["image"] == metrics.image_metrics(labels, np.array([5.0, 0, 1, 2, 3]))
    table.write_text("\n".join(["path,score", *lines[1:-1], f"{scans[-1].name},none"]))
    with pytest.raises(Unusable) as error:
        result(folder, truth, category="bolt", scores=table)
    assert [line.split(": ", 1)[1] for line in error.value.problems] == [
        f"found no score of {scans[0].name}",
        f"found the score 'none' of {scans[-1].name}, expected a finite number",
    ]
    table.write_text("name,value\na,1\n")
    with pytest.raises(InputError, match="found the columns name, value; expected path and score"):
        result(folder, truth, category="bolt", scores=table)


def test_a_score_that_could_be_of_several_rows_is_refused(tmp_path):
    table, problems = tmp_path / "scores.csv", []
    scans = [datasets.Scan("", "", "", "000"), datasets.Scan("", "", "good", "001")]
    table.write_text("path,score\ngood/000.png,1\nbad/000.png,9\ngood/001.png,2\nx/good/001.png,3\n")
    assert evaluate.read_scores(table, scans, problems) == {"good/001": 2}  # a whole name before an ending
    assert problems == [f"{table}: found 2 scores of 000, expected one"]


def test_scores_are_asked_only_of_categories_that_have_maps(tmp_path, truth):
    scans = scans_of(truth, "nut")
    folder, table = write_maps(tmp_path / "maps", scans), tmp_path / "scores.csv"
    table.write_text("\n".join(["path,score", *(f"{s.name}.png,{i}" for i, s in enumerate(scans))]))
    out, notes = result(folder, truth, scores=table)
    assert list(out) == ["nut"]
    assert any(note.startswith("bolt: found no map") for note in notes)


def test_truth_without_labels_or_masks(tmp_path, flat_truth):
    plain = layouts.write_folder(tmp_path / "plain")
    with pytest.raises(InputError, match="has no label"):
        result(tmp_path, plain)
    root = layouts.write_mvtec(tmp_path / "data", counts=COUNTS[:2])
    for path in (root / "bottle" / "ground_truth").rglob("*.png"):
        path.unlink()
    out, notes = result(write_maps(tmp_path / "maps", scans_of(root), hw=(48, 48)), root)
    assert out["bottle"]["pixel"] is None
    assert out["bottle"]["image"]["auroc"] is not None
    assert any("found no masks" in note for note in notes)
    with pytest.raises(InputError, match="no such folder of maps"):
        result(tmp_path / "absent", flat_truth)


def test_foreground_in_the_geometry_of_the_source_and_of_the_maps(tmp_path):
    root = layouts.write_mvtec3d(tmp_path, splits=("test",), rgb_hw=(96, 64), xyz_hw=(96, 64))
    scan = scans_of(root)[0]
    inside = evaluate.foreground(scan)
    assert inside.shape == (96, 64)
    box = layouts.box_mask(96, 64)
    assert (inside & box).sum() / (inside | box).sum() > 0.8
    small = evaluate.foreground(scan, map_size=50)
    assert small.shape == (50, 50)
    assert 0.7 < small.mean() * 100 * 100 / inside.sum() < 1.3
    top, bottom, left, right = datasets.frame_of(scan, 1).pad
    part = evaluate.foreground(scan, map_size=32, crop=(40, 30, 32, 32))
    padded = np.pad(inside, ((top, bottom), (left, right)))
    np.testing.assert_array_equal(part, padded[40:72, 30:62])
    assert 0 < part.mean() < 1
    image_only = datasets.Scan("a", "test", "good", "000", image=scan.image)
    assert evaluate.foreground(image_only) is None


def test_the_verb_prints_and_writes(tmp_path, truth):
    from typer.testing import CliRunner

    from muscjax.cli import app

    folder = write_maps(tmp_path / "maps", scans_of(truth))
    options = ["evaluate", "--maps", str(folder), "--truth", str(truth), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    for word in ("bolt", "nut", "mean", "95 %", "foreground", "blurred", "by chance"):
        assert word in done.output
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(found) == ["bolt", "nut"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"metrics.json", "results.csv", "results.json"}
    (folder / "bolt" / "test" / "good" / "000.tiff").unlink()
    (folder / "nut" / "test" / "good" / "001.tiff").unlink()
    broken = CliRunner().invoke(app, options)
    assert isinstance(broken.exception, Unusable)
    assert [line for line in broken.output.splitlines() if "found no map" in line] == list(
        broken.exception.problems
    )


def test_a_run_on_images_and_its_maps_have_the_same_metrics(tmp_path, truth):
    """The maps that ``detect`` leaves, evaluated by the other verb: every number is the same."""
    from typer.testing import CliRunner

    from muscjax.cli import app

    run, again = tmp_path / "run", tmp_path / "again"
    sizes = ["--metric-size", "original", "--image-size", "32", "--quiet"]
    done = CliRunner().invoke(app, ["detect", str(truth), "--out", str(run), "--modality", "image", *sizes])
    assert done.exit_code == 0, done.output
    options = ["--scores", str(run / "scores.csv"), "--out", str(again), "--quiet"]
    done = CliRunner().invoke(app, ["evaluate", "--maps", str(run), "--truth", str(truth), *options])
    assert (done.exit_code, done.output) == (0, "")
    for name in ("metrics.json", "results.csv", "results.json"):
        assert (run / name).read_text() == (again / name).read_text()
    found = json.loads((again / "metrics.json").read_text())
    assert found["bolt"]["size"] == [layouts.SIDE, layouts.SIDE]
    # The run saw images only; the yardsticks know the object from the depth all the same.
    assert [y["name"] for y in found["nut"]["yardsticks"]] == ["foreground mask", "blurred mask"]
