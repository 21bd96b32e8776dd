"""The doctor names every fault of a data set at once, and nothing in a healthy one."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from muscjax import cae, datasets, doctor, outputs, pipeline, scoring
from muscjax.backbones import texture
from muscjax.config import override, released
from muscjax.doctor import files, machine
from muscjax.errors import InputError
from muscjax.types import PointGroups
from tests import layouts
from tests.conftest import shared

SIDE = layouts.SIDE


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MUSCJAX_CACHE", str(folder))
    return folder


def printed(examination: doctor.Examination, *, width: int = 80) -> str:
    stream = io.StringIO()
    doctor.print_examination(Console(file=stream, width=width), examination)
    return stream.getvalue()


def fingerprint(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# --- planted faults: each returns the file that must be named, and whether a run would stop there


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def missing_mask(root: Path) -> tuple[Path, str, bool]:
    (root / "test/bent/gt/001.png").unlink()
    return root / "test/bent/rgb/001.png", "found no mask", False


def mask_without_a_scan(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/bent/gt/017.png"
    layouts.save_image(path, layouts.defect_mask())
    return path, "mask without a scan", False


def mask_of_wrong_size(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/bent/gt/002.png"
    layouts.save_image(path, layouts.defect_mask(40))
    return path, "found a mask of 40×40 pixels, expected 64×64 as 002.png", True


def xyz_of_wrong_size(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/bent/xyz/002.tiff"
    layouts.save_xyz(path, layouts.xyz_scan()[:, :48])
    return path, "found 64×48 points, expected the aspect ratio of 64×64", True


def odd_image(root: Path) -> tuple[Path, str, bool]:
    place = root / "test/bent"
    layouts.save_image(place / "rgb/003.png", layouts.rgb_scan(96))
    layouts.save_image(place / "gt/003.png", layouts.defect_mask(96))
    return place / "rgb/003.png", "found an image of 96×96, expected 64×64", False


def truncated_png(root: Path) -> tuple[Path, str, bool]:
    return truncate(root / "test/bent/rgb/000.png"), "not a readable image", True


def truncated_mask(root: Path) -> tuple[Path, str, bool]:
    return truncate(root / "test/bent/gt/000.png"), "not a readable image", True


def truncated_xyz(root: Path) -> tuple[Path, str, bool]:
    return truncate(root / "test/bent/xyz/000.tiff"), "XYZ map", True


def empty_image(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/rgb/001.png"
    path.write_bytes(b"")
    return path, "found an empty file (0 bytes), expected an image", True


def empty_xyz(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/xyz/001.tiff"
    path.write_bytes(b"")
    return path, "found an empty file (0 bytes), expected an XYZ map", True


def zero_xyz(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/xyz/001.tiff"
    layouts.save_xyz(path, np.zeros((SIDE, SIDE, 3), np.float32))
    return path, "found no point", True


def nan_xyz(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/xyz/001.tiff"
    xyz = layouts.xyz_scan()
    xyz[3, 4] = np.nan
    layouts.save_xyz(path, xyz)
    return path, "found NaN or infinite coordinates in 1 pixels", True


def jpeg_named_png(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/rgb/000.png"
    Image.fromarray(layouts.rgb_scan()).save(path, format="JPEG")
    return path, "found JPEG content, expected PNG", False


def xyz_named_image(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/rgb/000.png"
    shutil.copy(root / "test/good/xyz/000.tiff", path)
    return path, "its content is TIFF, its name says PNG", True


def numpy_named_tiff(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/xyz/000.tiff"
    with path.open("wb") as file:
        np.save(file, layouts.xyz_scan())
    return path, "its content is NumPy, its name says TIFF", True


def duplicate_stem(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/rgb/002.png"
    layouts.save_image(path.with_suffix(".bmp"), layouts.rgb_scan())
    return path, "found the same stem as 002.bmp", True


def image_without_xyz(root: Path) -> tuple[Path, str, bool]:
    (root / "test/good/xyz/002.tiff").unlink()
    return root / "test/good/rgb/002.png", "found no xyz/002.tiff to pair with", True


def xyz_without_image(root: Path) -> tuple[Path, str, bool]:
    layouts.save_xyz(root / "test/good/xyz/017.tiff", layouts.xyz_scan())
    return root / "test/good/xyz/017.tiff", "found no rgb/017.png to pair with", True


def xyz_left_out(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/xyz/old.png"
    shutil.copy(root / "test/good/xyz/000.tiff", path)
    return path, "found a TIFF file that its ending leaves out, expected .npy .tif .tiff", False


def empty_defect(root: Path) -> tuple[Path, str, bool]:
    (root / "test/cut/rgb").mkdir(parents=True)
    return root / "test/cut", "found no scan in this folder", False


def mask_of_good_scan(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/good/gt/000.png"
    layouts.save_image(path, layouts.defect_mask())
    return path, "found 48 defect pixels, expected none in a good scan", False


def mask_without_defect(root: Path) -> tuple[Path, str, bool]:
    path = root / "test/bent/gt/000.png"
    layouts.save_image(path, layouts.defect_mask(value=0))
    return path, "found no defect pixel", False


FAULTS: tuple[Callable[[Path], tuple[Path, str, bool]], ...] = (
    missing_mask,
    mask_without_a_scan,
    mask_of_wrong_size,
    xyz_of_wrong_size,
    odd_image,
    truncated_png,
    truncated_mask,
    truncated_xyz,
    empty_image,
    empty_xyz,
    zero_xyz,
    nan_xyz,
    jpeg_named_png,
    xyz_named_image,
    numpy_named_tiff,
    duplicate_stem,
    image_without_xyz,
    xyz_without_image,
    xyz_left_out,
    empty_defect,
    mask_of_good_scan,
    mask_without_defect,
)


def a_run_stops(root: Path) -> bool:
    """Does opening the data set or preparing a scan raise?"""
    try:
        for dataset in datasets.open_dataset(root):
            for scan in dataset.scans:
                datasets.prepare(scan, released(), modality="both", clean=False)
    except InputError:
        return True
    return False


def write(root: Path) -> Path:
    layouts.write_mvtec3d(root, counts=(("good", 4), ("bent", 4)), splits=("test",))
    return root / "part"


class TestDataSet:
    @pytest.mark.parametrize("layout", ["mvtec3d", "mvtec", "folder"])
    def test_a_healthy_one_has_no_problem(self, tmp_path, layout):
        getattr(layouts, f"write_{layout}")(tmp_path / "set")
        before = fingerprint(tmp_path)
        examination = doctor.examine(tmp_path / "set")
        assert examination.problems == ()
        assert examination.exit_code == 0
        assert fingerprint(tmp_path) == before
        (category,) = examination.categories
        assert category.layout == layout
        expected = {"mvtec3d": {"good": 2, "bent": 2}, "mvtec": {"good": 2, "broken": 2}}
        assert category.counts == expected.get(layout, {"": 2, "line 2": 1})
        assert "no problem found" in printed(examination)

    def test_counts_and_sizes(self, tmp_path):
        layouts.write_mvtec3d(tmp_path, categories=("a", "b"), rgb_hw=(96, 128), xyz_hw=(48, 64))
        examination = doctor.examine(tmp_path)
        assert [item.name for item in examination.categories] == ["a", "b"]
        for item in examination.categories:
            assert (item.scans, item.images, item.clouds, item.masks) == (4, 4, 4, 4)
            assert item.image_sizes == {(96, 128): 4}
            assert item.xyz_sizes == {(48, 64): 4}
            assert item.xyz_side == 100  # the image is padded to a square of 200, its XYZ map to one of 100
        text = printed(examination)
        for line in (
            "category   a, layout mvtec3d",
            "scans      4 (bent 2, good 2)",
            "images     4, 96×128",
            "XYZ maps   4, 48×64",
        ):
            assert line in text

    @pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
    def test_one_fault_is_one_line_that_names_the_file(self, tmp_path, plant):
        root = write(tmp_path)
        path, text, fatal = plant(root)
        examination = doctor.examine(tmp_path)
        (problem,) = examination.problems
        assert problem.startswith(f"{path}: "), problem
        assert text in problem
        assert "\n" not in problem
        assert bool(examination.fatal) == fatal == a_run_stops(root)
        assert examination.exit_code == int(fatal)
        assert problem in printed(examination)
        assert ("error: " in printed(examination)) == fatal

    def test_the_planted_faults_are_all_named_at_once(self, tmp_path):
        root = write(tmp_path)
        planted = [
            plant(root)
            for plant in (missing_mask, mask_of_wrong_size, truncated_png, jpeg_named_png, duplicate_stem)
        ]
        (tmp_path / "foam/test/good/rgb").mkdir(parents=True)
        planted.append((tmp_path / "foam", "found no scan, expected at least 2", True))
        (tmp_path / "peach/test").mkdir(parents=True)
        planted.append((tmp_path / "peach", "found no scan in this category", False))
        examination = doctor.examine(tmp_path)
        assert len(examination.problems) == len(planted)
        text = printed(examination)
        for path, reason, fatal in planted:
            (problem,) = [line for line in examination.problems if line.startswith(f"{path}: ")]
            assert reason in problem
            assert (problem in examination.fatal) == fatal
            assert text.count(problem) == 1
        assert examination.problems[: len(examination.fatal)] == examination.fatal
        assert examination.exit_code == 1
        assert f"7 problems, {len(examination.fatal)} of which stop a run" in text

    def test_empty_category_of_images(self, tmp_path):
        layouts.write_mvtec(tmp_path)
        (tmp_path / "cable/test/good").mkdir(parents=True)
        (problem,) = doctor.examine(tmp_path).problems
        assert problem.startswith(f"{tmp_path / 'cable'}: found no scan in this category")

    def test_results_beside_the_categories_are_no_category(self, tmp_path):
        layouts.write_mvtec(tmp_path)
        layouts.save_image(tmp_path / "out" / "overlays" / "a.png", layouts.rgb_scan(8))
        (tmp_path / "out" / "run.json").write_text("{}")
        assert doctor.examine(tmp_path).problems == ()

    def test_sizes_that_vary_are_not_odd(self, tmp_path):
        for i in range(6):
            layouts.save_image(tmp_path / f"{i}.png", layouts.rgb_scan(20 + i // 2))
        assert doctor.examine(tmp_path).problems == ()

    def test_several_images_of_one_folder(self, tmp_path):
        layouts.write_folder(tmp_path, names=("a.png", "b.png", "c.png"))
        truncate(tmp_path / "b.png")
        (tmp_path / "c.png").write_bytes(b"")
        (tmp_path / "notes.txt").write_text("BMW")
        examination = doctor.examine(tmp_path)
        assert len(examination.fatal) == 2
        assert examination.problems == examination.fatal

    def test_nothing_recognised_is_a_finding(self, tmp_path):
        examination = doctor.examine(tmp_path)
        (problem,) = examination.fatal
        assert problem.startswith(f"{tmp_path}: found no known layout")
        assert examination.exit_code == 1
        assert problem in printed(examination)

    def test_what_cannot_be_asked_for_is_an_error(self, tmp_path):
        with pytest.raises(InputError, match="no such folder"):
            doctor.examine(tmp_path / "absent")
        root = write(tmp_path)
        with pytest.raises(InputError, match="found a file"):
            doctor.examine(root / "test/good/rgb/000.png")
        with pytest.raises(InputError, match="expected auto or one of"):
            doctor.examine(root, layout="coco")
        with pytest.raises(InputError, match="expected one of: part, all"):
            doctor.examine(tmp_path, category="foam")

    def test_images_alone_need_not_fit(self, tmp_path):
        root = write(tmp_path)
        xyz_of_wrong_size(root)
        assert doctor.examine(root).exit_code == 1
        assert doctor.examine(root, modality="image").exit_code == 0

    def test_progress_counts_every_scan(self, tmp_path):
        root = write(tmp_path)
        steps = []
        doctor.examine(root, progress=lambda *step: steps.append(step))
        assert steps == [("reading", done, 8) for done in range(1, 9)]


class TestMachine:
    def test_without_a_data_set(self, cache):
        (cache / "backbones").mkdir()
        (cache / "backbones" / "dino-vits16.safetensors").write_bytes(b"x" * (3 << 20))
        (cache / "hashes.json").write_text("{}")
        examination = doctor.examine()
        found = examination.machine
        assert found.versions["jax"] == jax.__version__
        assert found.versions["numpy"] == np.__version__
        assert found.device is not None
        assert found.device["count"] == len(jax.devices())
        assert found.total is not None
        assert found.available is not None
        assert 1 << 28 < found.available <= found.total
        assert found.cache == cache
        assert found.cache_sizes == {"": 2, "backbones": 3 << 20}
        assert found.cached == ("dino-vits16",)
        assert set(found.missing) == {"report", "convert"}
        assert examination.categories == examination.problems == ()
        text = printed(examination)
        assert f"jax {jax.__version__}" in text
        assert "weights cached: dino-vits16" in text
        assert "problem" not in text

    def test_extras_that_are_not_installed_say_how(self, monkeypatch):
        monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None if name == "torch" else 1)
        examination = doctor.examine()
        assert examination.machine.missing == {"report": (), "convert": ("torch",)}
        text = printed(examination, width=200)
        assert "report: installed" in text
        assert "pip install 'muscjax[convert]'" in text

    def test_jax_without_a_device_is_a_finding(self, monkeypatch):
        def fails(*_, **__):
            raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

        monkeypatch.setattr(outputs, "run_record", fails)
        examination = doctor.examine()
        assert examination.fatal == ("jax: cannot be used: Unable to initialize backend 'cuda'",)
        assert examination.exit_code == 1
        assert "error: jax: cannot be used" in printed(examination)

    def test_limit_of_a_container(self, tmp_path, monkeypatch):
        total, _ = machine.host_memory()
        assert total is not None
        monkeypatch.setattr(machine, "_CGROUP", tmp_path)
        (tmp_path / "memory.max").write_text("300000000\n")
        (tmp_path / "memory.current").write_text("100000000\n")
        assert machine.host_memory() == (300000000, 200000000)
        (tmp_path / "memory.max").write_text("max\n")
        assert machine.host_memory()[0] == total

    def test_torch_is_looked_for_but_not_imported(self):
        code = (
            "import sys\nfrom muscjax import doctor\nfrom rich.console import Console\n"
            "doctor.print_examination(Console(), doctor.examine())\n"
            "assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


class TestPrinting:
    @pytest.mark.parametrize("name", ["[red]a[/red].png", "[/].png", ":smile:.png", "a 'b' \"c\".png"])
    def test_markup_in_names_is_printed_literally(self, tmp_path, name):
        folder = tmp_path / "[bold]set"
        layouts.write_folder(folder, names=("ok.png", "also.png", name.replace("/", "∕")))
        path = truncate(folder / name.replace("/", "∕"))
        assert f"error: {path}: not a readable image" in printed(doctor.examine(folder))

    def test_control_characters_cannot_break_the_line(self, tmp_path):
        layouts.write_folder(tmp_path, names=("ok.png", "also.png"))
        (tmp_path / "x\ny\x1b[2J\u202e.png").write_bytes(b"")
        (tmp_path / "häß 部品.png").write_bytes(b"")
        text = printed(doctor.examine(tmp_path))
        assert r"x\ny\x1b[2J\u202e.png: found an empty file" in text
        assert "häß 部品.png: found an empty file" in text
        assert "\x1b" not in text

    def test_a_narrow_console_keeps_the_lines_whole(self, tmp_path):
        root = write(tmp_path)
        path, text, _ = truncated_png(root)
        assert f"{path}: {text}" in printed(doctor.examine(root), width=30)


class TestNeeds:
    @staticmethod
    def category(scans: int, *, xyz_side: int | None = 224) -> files.Category:
        clouds = 0 if xyz_side is None else scans
        return files.Category(
            Path(), "mvtec3d", "part", {"good": scans}, scans, clouds, 0, {}, {}, xyz_side, (), ()
        )

    def needs(self, scans: int, *assignments: str, available: int | None = None, xyz_side: int | None = 224):
        config = override(released(), *assignments)
        tokens = doctor.default_tokens(config, ("dino-vitb8",))
        category = self.category(scans, xyz_side=xyz_side)
        return {n.backbones: n for n in doctor.run_needs(category, tokens, config, available=available)}

    def test_the_published_workload(self):
        """150 scans, ViT-B/8 at 224: 31.65 TFLOP of mutual scoring, 156 GFLOP per image in the network."""
        need = self.needs(150)[("dino-vitb8",)]
        assert need.modality == "image"
        assert need.plan == "symmetric"
        assert need.features == 3 * 150 * 784 * 768 * 4
        assert need.scoring_flop == pytest.approx(31.65e12, rel=1e-3)
        assert need.backbone_flop == pytest.approx(150 * 156e9, rel=0.02)

    @pytest.mark.parametrize(
        ("backbones", "mib"), [(("tiny",), 639), (("fpfh",), 1136), (("tiny", "fpfh"), 1636)]
    )
    def test_peak_of_the_real_runs(self, backbones, mib):
        """What `detect` reported of 108 real scans at 224 on two cores, DeiT-Ti and FPFH."""
        tiny = doctor.Tokens("tiny", "image", 3, 196, 192, 224, None, 22 << 20)
        tokens = (*doctor.default_tokens(released(), ())[:1], tiny)
        found = doctor.run_needs(self.category(108), tokens, released(), available=None)
        (peak,) = [need.peak for need in found if need.backbones == backbones]
        assert peak / 2**20 == pytest.approx(mib, rel=0.2)

    def test_rows_cost_twice(self):
        wide, narrow = self.needs(150), self.needs(150, "run.memory_budget=67108864")
        one, other = wide[("dino-vitb8", "fpfh")], narrow[("dino-vitb8", "fpfh")]
        assert (one.plan, other.plan) == ("symmetric", "rows")
        assert other.scoring_flop == 2 * one.scoring_flop
        assert other.distances < 67108864 < one.distances
        assert other.features == one.features

    def test_subsets_need_less(self):
        whole, parts = self.needs(400)[("fpfh",)], self.needs(400, "run.subsets=4")[("fpfh",)]
        assert parts.distances == pytest.approx(whole.distances / 16, rel=0.1)
        assert parts.scoring_flop == pytest.approx(whole.scoring_flop / 4, rel=0.02)

    def test_too_small_a_budget_or_memory_is_said(self):
        small = self.needs(3000, "run.memory_budget=67108864")[("fpfh",)]
        assert small.plan is None
        assert "too small for" in small.note
        assert "more memory than is available" in self.needs(108, available=1 << 30)[("fpfh",)].note
        assert self.needs(108, available=8 << 30)[("fpfh",)].note == ""

    def test_map_size(self):
        assert self.needs(4, xyz_side=64)[("fpfh",)].map_size == 64
        assert self.needs(4, xyz_side=400)[("fpfh",)].map_size == 224
        assert self.needs(4, xyz_side=64)[("dino-vitb8",)].map_size == 224
        assert set(self.needs(4, xyz_side=None)) == {("texture",), ("dino-vitb8",)}
        assert self.needs(1) == {}

    def test_cached_backbones_stand_beside_the_weight_free_ones(self):
        names = [t.name for t in doctor.default_tokens(released(), ("dinov2-vits14", "point-mae"))]
        assert names == ["fpfh", "texture", "dinov2-vits14", "point-mae"]

    def test_the_texture_descriptor_is_counted_as_it_is_made(self):
        (tokens,) = (t for t in doctor.default_tokens(released(), ()) if t.name == "texture")
        images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)
        made = jax.eval_shape(lambda x: texture.describe(x, config=released().texture), images)
        assert made.shape == (tokens.stages, 2, tokens.patches, tokens.channels)

    @pytest.mark.parametrize("budget", [4 << 30, 256 << 20])
    def test_distances_bound_what_the_compiled_stage_holds(self, budget):
        """XLA's own count of temporary bytes of ``score_stage``, at full size, without running it."""
        n, m, c, g, k, d = 320, 784, 768, 1024, 128, 33
        config = override(released(), f"run.memory_budget={budget}")

        def array(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct(shape, dtype)

        groups = PointGroups(
            indices=array(n, g, k, dtype=jnp.int32),
            centers=array(n, g, 3),
            center_index=array(n, g, dtype=jnp.int32),
            curvature=array(n, g),
            pixel=array(n, g, dtype=jnp.int32),
            valid=array(n, g, dtype=jnp.bool_),
        )
        lowered = pipeline.score_stage.lower(
            array(n, m, c),
            array(n, g, d),
            groups,
            array(dtype=jnp.int32),
            plan=scoring.plan(n, (m, g), memory_budget=budget),
            scoring_config=config.scoring,
            cae_config=config.cae,
            grid_hw=(28, 28),
            map_hw=(224, 224),
            fuse=cae.enhance,
            average=scoring.interval_average,
        )
        held = lowered.compile().memory_analysis().temp_size_in_bytes
        need = self.needs(n, f"run.memory_budget={budget}")[("dino-vitb8", "fpfh")]
        assert held <= need.distances + scoring.TILE_BYTES
        if need.plan == "symmetric":
            assert need.distances < 1.1 * held


@pytest.mark.real
@pytest.mark.parametrize(("place", "scans", "side"), [("mvtec3d", 108, 224), ("mvtec3d_native", 10, 400)])
def test_real_scans_are_healthy(place, scans, side):
    examination = doctor.examine(shared("data", place))
    assert examination.problems == ()
    (category,) = examination.categories
    assert category.scans == category.images == category.clouds == category.masks == scans
    assert category.image_sizes == {(400, 400): scans}
    assert category.xyz_sizes == {(side, side): scans}
