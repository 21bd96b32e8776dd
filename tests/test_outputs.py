"""muscjax.outputs: files read back, names stay inside, nothing half written, tables and records."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from muscjax import config, outputs
from muscjax.errors import InputError


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_map_reads_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=(37, 53)).astype(np.float32)
    path = outputs.map_path(tmp_path, "cable_gland/test/bent/007")
    outputs.write_map(path, values)
    assert path == tmp_path / "maps" / "cable_gland" / "test" / "bent" / "007.tiff"
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        found = file.asarray()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), values)


def test_map_accepts_a_jax_array_and_refuses_nan(tmp_path):
    outputs.write_map(tmp_path / "a.tiff", jnp.ones((3, 4)))
    assert tifffile.imread(tmp_path / "a.tiff").shape == (3, 4)
    for bad in (np.full((3, 4), np.nan), np.zeros((2, 3, 4))):
        with pytest.raises(ValueError, match="two axes of finite numbers"):
            outputs.write_map(tmp_path / "b.tiff", bad)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tiff"]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "a//b",
        "",
        ".",
        "a/./b",
        "a/..",
        "..\\x",
        "C:\\x",
        "C:x",
        "\\\\host\\x",
        "a\0b",
    ],
)
def test_names_cannot_leave_the_output_folder(tmp_path, name):
    for place in (outputs.map_path, outputs.overlay_path):
        with pytest.raises(InputError, match="scan name") as error:
            place(tmp_path, name)
        one_line(error)


@given(st.text(alphabet="ab./\\ :~$%=\n\0é", min_size=1, max_size=12))
def test_any_name_is_refused_or_stays_inside(name):
    home = os.path.realpath("runs")
    try:
        path = outputs.map_path("runs", name)
    except InputError:
        return
    assert os.path.realpath(path).startswith(home + os.sep + "maps" + os.sep)
    assert path.name.endswith(".tiff")


def test_a_symbolic_link_cannot_lead_out(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / "maps").mkdir(parents=True)
    elsewhere.mkdir()
    (out / "maps" / "cat").symlink_to(elsewhere)
    with pytest.raises(InputError, match="elsewhere") as error:
        outputs.map_path(out, "cat/test/good/000")
    one_line(error)
    # A link at the file itself is replaced, not followed.
    (elsewhere / "keep").write_text("mine")
    path = outputs.map_path(out, "other/000")
    path.parent.mkdir()
    path.symlink_to(elsewhere / "keep")
    outputs.write_map(path, np.zeros((2, 2)))
    assert (elsewhere / "keep").read_text() == "mine"
    assert not path.is_symlink()
    # The output folder itself may be a link: the user chose it.
    (tmp_path / "link").symlink_to(out)
    outputs.write_map(outputs.map_path(tmp_path / "link", "third/000"), np.zeros((2, 2)))
    assert (out / "maps" / "third" / "000.tiff").is_file()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (
        lambda: outputs.open_output(tmp_path / "file"),
        lambda: outputs.open_output(tmp_path / "file" / "below"),
        lambda: outputs.write_json(tmp_path / "file" / "x.json", {}),
        lambda: outputs.write_map(tmp_path / ("n" * 300 + ".tiff"), np.zeros((2, 2))),
    ):
        with pytest.raises(InputError, match="cannot be written") as error:
            call()
        assert str(tmp_path) in one_line(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        outputs.open_output(tmp_path)


def test_open_output_makes_the_folder_and_leaves_it_empty(tmp_path):
    out = outputs.open_output(tmp_path / "a" / "b")
    assert out.is_dir()
    assert list(out.iterdir()) == []
    assert outputs.open_output(out) == out


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "m.tiff"
    outputs.write_map(path, np.ones((2, 2)))
    before = path.read_bytes()

    def fail(file, *args, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", fail)
    with pytest.raises(InputError, match="No space left on device"):
        outputs.write_map(path, np.zeros((2, 2)))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.tiff"]


def test_a_name_of_full_length_can_be_written(tmp_path):
    path = outputs.map_path(tmp_path, "x" * 250)
    outputs.write_map(path, np.zeros((2, 2)))
    assert path.is_file()


def test_overlay_has_the_picture_and_a_legend(tmp_path):
    image = np.full((200, 160, 3), 128, np.uint8)
    heat = np.zeros((200, 160), np.float32)
    heat[20:60, 30:90] = 1.0
    outputs.write_overlay(tmp_path / "o.png", image, heat, limits=(0.2, 0.8))
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.mode == "RGB"
        assert picture.height == 200
        assert picture.width > 190
        found = np.asarray(picture).astype(int)
    # The hottest colour is pale yellow: red and green far above the grey around it.
    assert (found[40, 60, :2] > 220).all()
    assert np.ptp(found[150, 100]) == 0
    outputs.write_overlay(tmp_path / "bare.png", image[..., 0], heat, limits=(0.2, 0.8), legend=False)
    outputs.write_overlay(tmp_path / "small.png", image[:64, :64], heat[:64, :64], limits=(0.2, 0.8))
    for name, size in (("bare", (160, 200)), ("small", (64, 64))):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == size


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_scores_are_ranked_and_numbers_stay_numbers(tmp_path):
    scores = np.array([0.1, -0.5, 0.7, 0.1], np.float32)
    rows = outputs.score_rows(["a", "b", "c", "d"], scores, scores * 2, labels=[0, 1, 1, None])
    outputs.write_scores(tmp_path / "scores.csv", rows)
    assert read(tmp_path / "scores.csv") == [
        ["path", "rank", "score", "score_before_rscon", "label"],
        ["c", "1", "0.7", "1.4", "1"],
        ["a", "2", "0.1", "0.2", "0"],
        ["d", "3", "0.1", "0.2", ""],
        ["b", "4", "-0.5", "-1.0", "1"],
    ]
    outputs.write_scores(tmp_path / "plain.csv", outputs.score_rows(["a", "b"], scores[:2], scores[:2]))
    assert read(tmp_path / "plain.csv")[0] == ["path", "rank", "score", "score_before_rscon"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_escaped(tmp_path, start):
    row = {"path": start + "1+1", "rank": 1, "score": -1.0, "score_before_rscon": np.nan, "label": start}
    outputs.write_scores(tmp_path / "s.csv", [row])
    assert read(tmp_path / "s.csv")[1] == ["'" + start + "1+1", "1", "-1.0", "", "'" + start]


def test_names_with_quotes_line_ends_and_bad_bytes_survive(tmp_path):
    paths = ['a,"b"', "two\nlines", "bad\udcff", "größe"]
    outputs.write_scores(tmp_path / "s.csv", outputs.score_rows(paths, np.arange(4.0)[::-1], np.arange(4.0)))
    assert [r[0] for r in read(tmp_path / "s.csv")[1:]] == ['a,"b"', "two\nlines", "bad\\udcff", "größe"]


def test_json_holds_plain_values_only(tmp_path):
    obj = {
        "f32": np.float32(0.1),
        "nan": float("nan"),
        "npnan": np.float32("nan"),
        "inf": np.float64("inf"),
        "array": np.array([[1.5, np.nan]], np.float32),
        "jax": jnp.arange(3, dtype=jnp.int32),
        "bf16": jnp.asarray(jnp.nan, jnp.bfloat16),
        "bool": np.bool_(True),
        "path": tmp_path,
        "tuple": (1, None),
        "config": config.released().rscon,
        "text": "größe\udcff",
        3: np.int64(4),
    }
    outputs.write_json(tmp_path / "x.json", obj)

    def refuse(name):
        raise AssertionError(name)

    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert found == {
        "f32": 0.1,
        "nan": None,
        "npnan": None,
        "inf": None,
        "array": [[1.5, None]],
        "jax": [0, 1, 2],
        "bf16": None,
        "bool": True,
        "path": str(tmp_path),
        "tuple": [1, None],
        "config": {"enabled": True, "windows": [1, 7], "normalise": True, "form": "windows"},
        "text": "größe\udcff",
        "3": 4,
    }
    with pytest.raises(TypeError, match="complex"):
        outputs.write_json(tmp_path / "y.json", {"z": 1j})
    assert not (tmp_path / "y.json").exists()


def test_run_record_names_what_a_reader_needs(tmp_path):
    with outputs.count_compiles() as compiles:
        jax.jit(lambda x: x * 3 + 1)(jnp.arange(7, dtype=jnp.int32)).block_until_ready()
    programs = compiles["programs"]
    assert programs >= 1
    assert compiles["seconds"] > 0
    jax.jit(lambda x: x * 5 - 1)(jnp.arange(9, dtype=jnp.int32)).block_until_ready()
    assert compiles["programs"] == programs
    record = outputs.run_record(
        config.released(), seconds={"features": np.float32(1.23456)}, compiles=compiles, scans=3
    )
    outputs.write_json(tmp_path / "run.json", record)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["config"]["ipg"]["groups"] == 1024
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["device"]["platform"] == jax.devices()[0].platform
    assert found["device"]["kind"] == jax.devices()[0].device_kind
    assert found["seconds"] == {"features": 1.235}
    assert found["compile"]["programs"] == programs
    assert found["scans"] == 3
    assert found["peak_host_memory_mib"] > 10
    assert outputs.run_record(config.paper(), seconds={})["compile"] is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells the parent's as well")
def test_the_peak_of_memory_is_this_process_own():
    import subprocess
    import sys

    held = np.ones(400 << 20, np.uint8)  # what a process that starts another one may have
    code = "from muscjax import outputs; print(outputs.peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = outputs.peak_memory()
    assert own is not None
    assert 10 << 20 < int(done.stdout) < len(held) <= own


def test_no_heavy_import_before_it_is_needed():
    import subprocess
    import sys

    code = (
        "import sys, muscjax.outputs, muscjax.metrics, muscjax.colormap;"
        "print([m for m in ('jax', 'sklearn', 'scipy', 'PIL', 'tifffile', 'rich', 'matplotlib', 'torch')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
