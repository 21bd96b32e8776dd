"""The command line as a user meets it: every run is a process of its own or the same entry point."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from safetensors.numpy import save_file

from muscjax import cli, outputs
from muscjax.backbones import params, vit
from tests import layouts

SMALL = ("--set", "ipg.groups=32", "--set", "ipg.group_size=16", "--set", "ipg.initial_size=10")
POINTS = ("--set", "fpfh.normal_neighbours=12", "--set", "fpfh.feature_neighbours=16")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny converted vision transformer with random weights; it stands for any image network here."""
    spec = vit.Spec(
        patch_size=8, width=16, depth=3, heads=2, image_size=32, input_size=32, taps=(0, 1, 2), family="dino"
    )
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in params.shapes(spec).items()
    }
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    params.save(path, values, params.header(spec))
    return path


def muscjax(capfd, monkeypatch, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of ``muscjax ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["muscjax", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capfd.readouterr()
    code = stopped.value.code
    return (0 if code is None else int(code)), out, err


@pytest.fixture
def run(capfd, monkeypatch):
    return lambda *arguments: muscjax(capfd, monkeypatch, *arguments)


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


def test_help_of_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0
    verbs = (
        "detect",
        "demo",
        "synth",
        "doctor",
        "convert",
        "backbones",
        "evaluate",
        "compare",
        "explain",
        "ablate",
        "profile",
        "reference",
    )
    for verb in verbs:
        assert verb in out
        assert run(verb, "--help")[0] == 0


def test_detect_both_modalities_writes_everything(run, weights, tmp_path):
    root = layouts.write_mvtec3d(tmp_path / "data", splits=("test",))
    before = digest(root)
    out = tmp_path / "out"
    code, printed, err = run(
        "detect", root, "--out", out, "--image-backbone", weights, "--modality", "both", *SMALL, *POINTS
    )
    assert code == 0, err
    assert digest(root) == before, "the data set was written to"
    assert "part" in printed
    names = {f"part/test/{d}/{i:03d}" for d in ("good", "bent") for i in range(2)}
    for name in names:
        found = tifffile.imread(out / "maps" / f"{name}.tiff")
        assert found.shape == (layouts.SIDE, layouts.SIDE)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        with Image.open(out / "overlays" / f"{name}.png") as overlay:
            assert overlay.size[1] == layouts.SIDE
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4]
    assert sorted(int(row["label"]) for row in rows) == [0, 0, 1, 1]
    assert [float(r["score"]) for r in rows] == sorted((float(r["score"]) for r in rows), reverse=True)
    metrics = json.loads((out / "metrics.json").read_text())["part"]
    assert set(metrics["pixel"]) >= {"auroc", "f1_max", "ap", "aupro_musc", "aupro_mvtec", "hit_rate"}
    assert [yardstick["name"] for yardstick in metrics["yardsticks"]] == ["foreground mask", "blurred mask"]
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["input"]["image_size"] == 32
    assert record["versions"]["jax"]
    assert record["compile"]["seconds"] >= 0
    assert (out / "report.html").stat().st_size > 10_000
    assert not [p for p in out.rglob("*") if ".tmp" in p.name]


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_the_page_tells_of_rescoring_where_there_is_some(run, weights, tmp_path, enabled):
    root, out = layouts.write_mvtec(tmp_path / "data", categories=("bottle",)), tmp_path / "out"
    given = ("--image-backbone", weights, "--set", f"rscon.enabled={enabled}", "--quiet")
    assert run("detect", root, "--out", out, *given)[0] == 0
    page = (out / "report.html").read_text()
    assert ("before re-scoring" in page) == (enabled == "true")
    assert ("after re-scoring" in page) == (enabled == "true")


def test_a_second_category_compiles_nothing(run, weights, tmp_path):
    root = layouts.write_mvtec(tmp_path / "data", categories=("bottle", "cable"))
    options = ("--image-backbone", weights, "--quiet")
    assert run("detect", root, "--category", "bottle", "--out", tmp_path / "first", *options)[0] == 0
    with outputs.count_compiles() as compiles:
        code, _, err = run("detect", root, "--category", "cable", "--out", tmp_path / "second", *options)
    assert code == 0, err
    assert compiles["programs"] == 0


def test_a_second_category_of_scans_compiles_nothing(run, tmp_path):
    root = layouts.write_mvtec3d(tmp_path / "data", splits=("test",), categories=("bolt", "nut"))
    options = ("--quiet", "--image-size", "32", *SMALL, *POINTS)
    assert run("detect", root, "--category", "bolt", "--out", tmp_path / "first", *options)[0] == 0
    with outputs.count_compiles() as compiles:
        code, _, err = run("detect", root, "--category", "nut", "--out", tmp_path / "second", *options)
    assert code == 0, err
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["modality"] == {"nut": "both"}
    assert compiles["programs"] == 0


def test_all_categories_of_a_root(run, weights, tmp_path):
    root = layouts.write_mvtec(tmp_path / "data", categories=("bottle", "cable"))
    code, printed, err = run("detect", root, "--image-backbone", weights, "--out", tmp_path / "out")
    assert code == 0, err
    assert "bottle" in printed
    assert "cable" in printed
    assert "mean" in printed
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 9


def test_plain_folder_of_images_without_labels(run, weights, tmp_path):
    layouts.write_folder(tmp_path / "photos", names=("=cmd.png", "b.png", "c.png"))
    out = tmp_path / "out"
    code, printed, err = run("detect", tmp_path / "photos", "--image-backbone", weights, "--out", out)
    assert code == 0, err
    assert "most anomalous" in printed
    assert not (out / "metrics.json").exists()
    with open(out / "scores.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["path", "rank", "score", "score_before_rscon"]
    assert not any(row[0].startswith("=") for row in rows)
    for name in ("=cmd", "b", "c"):
        assert list(out.rglob(f"{name}.tiff"))


def test_quiet_says_nothing(run, weights, tmp_path):
    layouts.write_folder(tmp_path / "photos", names=("a.png", "b.png"))
    code, out, err = run(
        "detect", tmp_path / "photos", "--image-backbone", weights, "--out", tmp_path / "out", "--quiet"
    )
    assert (code, out, err) == (0, "", "")


def test_the_same_run_gives_the_same_bytes(run, weights, tmp_path):
    layouts.write_folder(tmp_path / "photos", names=("a.png", "b.png", "c.png"))
    for name in ("one", "two"):
        arguments = ("detect", tmp_path / "photos", "--image-backbone", weights, "--out", tmp_path / name)
        assert run(*arguments)[0] == 0
    first, second = ([p.read_bytes() for p in sorted((tmp_path / o).rglob("*.tiff"))] for o in ("one", "two"))
    assert len(first) == 3
    assert first == second
    assert (tmp_path / "one" / "scores.csv").read_bytes() == (tmp_path / "two" / "scores.csv").read_bytes()


def broken(root: Path, case: str) -> None:
    folder = root / "part" / "test" / "good"
    rgb, xyz = folder / "rgb" / "001.png", folder / "xyz" / "001.tiff"
    if case == "unreadable PNG":
        rgb.write_bytes(rgb.read_bytes()[:200])
    elif case == "unreadable TIFF":
        xyz.write_bytes(b"II*\0 not a tiff")
    elif case == "XYZ of another shape":
        tifffile.imwrite(xyz, np.zeros((8, 8), np.float32))
    elif case == "XYZ all zero":
        layouts.save_xyz(xyz, np.zeros((64, 64, 3), np.float32))
    elif case == "NaN coordinates":
        array = layouts.xyz_scan()
        array[3, 4] = np.nan
        layouts.save_xyz(xyz, array)
    elif case == "unpaired":
        xyz.unlink()


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("unreadable PNG", "001.png"),
        ("unreadable TIFF", "001.tiff"),
        ("XYZ of another shape", "001.tiff"),
        ("XYZ all zero", "001.tiff"),
        ("NaN coordinates", "001.tiff"),
        ("unpaired", "001"),
    ],
)
def test_broken_files_are_named_in_one_line(run, weights, tmp_path, case, named):
    root = layouts.write_mvtec3d(tmp_path / "data", splits=("test",))
    broken(root, case)
    code, _, err = run(
        "detect",
        root,
        "--image-backbone",
        weights,
        "--modality",
        "both",
        "--out",
        tmp_path / "out",
        "--quiet",
    )
    assert code == 2
    assert named in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_bad_options_end_in_one_line(run, weights, tmp_path):
    layouts.write_folder(tmp_path / "photos", names=("a.png", "b.png"))
    layouts.write_folder(tmp_path / "single", names=("a.png",))
    (tmp_path / "file").write_text("")
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, other)
    photos = tmp_path / "photos"
    scans = layouts.write_mvtec3d(tmp_path / "scans", splits=("test",))
    given = ("--image-backbone", weights, "--out", tmp_path / "out")
    cases = [
        (("detect", tmp_path / "absent", *given), "absent"),
        (("detect", tmp_path / "single", *given), "at least 2"),
        (("detect", photos, *given, "--set", "cae.confidance=false"), "cae.confidance is unknown"),
        (("detect", photos, *given, "--preset", "papers"), "choose one of released, paper"),
        (("detect", photos, *given, "--memory-budget", "many"), "--memory-budget"),
        (("detect", photos, *given, "--layout", "mvtec4d"), "mvtec4d"),
        (("detect", photos, *given, "--modality", "sound"), "--modality"),
        (("detect", photos, *given, "--subsets", "2"), "run.subsets"),
        (("detect", photos, "--modality", "points", "--out", tmp_path / "out"), "points"),
        (("detect", photos, "--image-backbone", other, "--out", tmp_path / "out"), "other.safetensors"),
        (("detect", photos, "--image-backbone", tmp_path / "no", "--out", tmp_path / "out"), "no such"),
        (("detect", photos, "--image-backbone", weights, "--out", tmp_path / "file" / "out"), "file"),
        (("detect", photos, *given, "--seed", "-1"), "run.seed"),
        (("detect", photos, *given, "--memory-budget", "infGiB"), "--memory-budget"),
        (("detect", scans, "--point-backbone", weights, "--out", tmp_path / "out"), "tiny.safetensors"),
        (("convert", tmp_path / "absent.pth", tmp_path / "x.safetensors"), "absent.pth"),
        (("synth", "--out", tmp_path / "line", "--part", "spoon"), "spoon"),
    ]
    for arguments, named in cases:
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert named in err, (arguments, err)
        assert len(err.strip().splitlines()) == 1, err


def test_a_harmful_or_cut_checkpoint_ends_in_one_line(run, tmp_path):
    torch = pytest.importorskip("torch")
    trap = tmp_path / "trap"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    torch.save(Harmful(), tmp_path / "harmful.pth")
    torch.save({"x": torch.zeros(99)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:300])
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    for name in ("harmful.pth", "cut.pth", "cut.safetensors"):
        code, _, err = run("convert", tmp_path / name, tmp_path / "out.safetensors")
        assert code == 2
        assert name in err
        assert len(err.strip().splitlines()) == 1
    assert not trap.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_what_was_finished_before_an_error_stays(run, weights, tmp_path):
    root = layouts.write_mvtec(tmp_path / "data", categories=("bottle", "cable"))
    bad = root / "cable" / "test" / "good" / "001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    out = tmp_path / "out"
    code, _, err = run("detect", root, "--image-backbone", weights, "--out", out, "--quiet")
    assert code == 2
    assert "cable" in err
    assert "bottle" in json.loads((out / "metrics.json").read_text())
    assert len(list((out / "maps" / "bottle").rglob("*.tiff"))) == 4


def test_doctor_names_faults_and_exits_with_1(run, tmp_path):
    root = layouts.write_mvtec3d(tmp_path / "data", splits=("test",))
    assert run("doctor", root, "--quiet")[0] == 0
    broken(root, "unreadable PNG")
    code, out, _ = run("doctor", root, "--quiet")
    assert code == 1
    assert "001.png" in out


def test_a_broken_file_that_the_run_does_not_use_stops_nothing(run, tmp_path):
    root = layouts.write_mvtec3d(tmp_path / "data", splits=("test",))
    broken(root, "unreadable PNG")
    options = ("--modality", "points", "--out", tmp_path / "out", "--quiet")
    code, _, err = run("detect", root, *options, *SMALL, *POINTS)
    assert code == 0, err
    assert (tmp_path / "out" / "overlays" / "part" / "test" / "good" / "001.png").exists()


def test_module_entry_point_in_a_process_of_its_own(tmp_path):
    environment = {**os.environ, "MUSCJAX_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "muscjax", "detect", str(tmp_path / "absent")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(cli.__file__).parents[2],
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
