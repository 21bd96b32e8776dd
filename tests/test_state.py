"""What a run leaves while it is under way, who may write where, and what a full disk does."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from muscjax import config, files, inputs, shards, state, store
from muscjax.errors import InputError
from muscjax.extract import Held
from muscjax.requests import Request
from muscjax.run import run
from muscjax.streaming import Stages
from muscjax.types import PatchScores
from tests import layouts

ORDER = [0, 2, 4, 1, 3]
SHAPE = (2, 3, 4)


def sink(folder, *, lazy=False, always=True, dtype="float32"):
    fields = {shards.stage_field(s): store.Field(SHAPE[1:], dtype) for s in range(2)}
    fields["valid"] = store.Field((3,), "bool")
    samples = [f"scan {i}" for i in ORDER]
    opened = store.open_store(folder, {}, samples, fields, batch=2, batches=1)
    return shards.Shards(opened, 2, ("valid",), ORDER, lazy=lazy, always=always)


def of(ids):
    rng = np.random.default_rng(0)
    features, valid = rng.normal(size=(2, 5, 3, 4)).astype(np.float32), rng.random((5, 3)) > 0.5
    return features[:, list(ids)], {"valid": valid[list(ids)]}


def fill(into, parts=None):
    for ids in into.missing[:parts]:
        into.put(ids, *of(ids))
    return into.close() if parts is None else into._wait()


class TestShards:
    @pytest.mark.parametrize("lazy", [False, True])
    def test_samples_come_back_in_their_own_order(self, tmp_path, lazy):
        features, groups = fill(sink(tmp_path, lazy=lazy))
        expected, valid = of(range(5))
        assert isinstance(features, Stages) == lazy
        found = np.stack([features[s][:] for s in range(2)])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(groups["valid"], valid["valid"])
        np.testing.assert_array_equal(features[1][np.array([3, 0])], expected[1][[3, 0]])
        assert features.shape == (2, 5, 3, 4)

    @pytest.mark.parametrize("lazy", [False, True])
    def test_what_is_there_is_not_missing(self, tmp_path, lazy):
        assert sink(tmp_path).missing == [[0, 2], [4, 1], [3]]
        fill(sink(tmp_path), 2)
        again = sink(tmp_path, lazy=lazy)
        assert again.missing == [[3]]
        features, groups = fill(again)
        np.testing.assert_array_equal(np.stack([features[s][:] for s in range(2)]), of(range(5))[0])
        np.testing.assert_array_equal(groups["valid"], of(range(5))[1]["valid"])

    def test_half_precision_is_what_is_scored_the_first_time_too(self, tmp_path):
        first, _ = fill(sink(tmp_path, dtype="float16"))
        second, _ = fill(sink(tmp_path, dtype="float16"))
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, of(range(5))[0].astype(np.float16).astype(np.float32))
        large = sink(tmp_path / "large", dtype="float16")
        with pytest.raises(InputError, match=r"run\.features: found features beyond float16"):
            large.put([0, 2], of([0, 2])[0] * 1e6, of([0, 2])[1])

    def test_what_is_made_faster_than_it_is_kept_is_not_kept(self, tmp_path, monkeypatch):
        assert shards.worth(1 << 20, 0.0)
        assert not shards.worth(100 << 20, 1.0)
        assert shards.worth(100 << 20, 60.0)
        monkeypatch.setattr(shards, "worth", lambda nbytes, seconds: False)
        fill(sink(tmp_path, always=False))
        assert len(sink(tmp_path).missing) == 3
        fill(sink(tmp_path, lazy=True))
        assert sink(tmp_path).missing == []


def kept_state(folder, out):
    written = state.Written(folder / "written.jsonl", out)
    return state.State(folder, config.RunConfig(), ("a",), {}, False, written)


class TestState:
    def test_scores_are_remembered_and_damaged_ones_are_not(self, tmp_path):
        kept = kept_state(tmp_path, tmp_path)
        made = [np.arange(6, dtype=np.float32).reshape(2, 3), None]
        calls = []

        def make():
            calls.append(1)
            return made

        for _ in range(2):
            found = kept.remember("part 1/0/3", make)
            np.testing.assert_array_equal(found[0], made[0])
            assert found[1] is None
        assert len(calls) == 1
        (path,) = (tmp_path / "scores").iterdir()
        path.write_bytes(path.read_bytes()[:-1])
        kept.remember("part 1/0/3", make)
        assert len(calls) == 2

    def test_the_scores_of_a_set_replace_what_they_were_made_of(self, tmp_path):
        kept = kept_state(tmp_path, tmp_path)
        kept.remember("0", lambda: [np.ones(1), None])
        (tmp_path / "image").mkdir()
        assert kept.scored() is None
        given = state.Scored(PatchScores(np.ones((2, 4)), None, np.ones((2, 3))), None, (2, 2), (8, 8))  # pyright: ignore[reportArgumentType]
        kept.keep_scored(given)
        found = kept.scored()
        assert found is not None
        assert found.grid_hw == (2, 2)
        assert found.map_hw == (8, 8)
        assert found.groups is found.patch_scores.points is None
        np.testing.assert_array_equal(found.patch_scores.salient, np.ones((2, 3)))
        assert not (tmp_path / "image").exists()
        assert not (tmp_path / "scores").exists()

    def test_finished_files_are_written_once(self, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        calls = []

        def write(path, text):
            def now():
                calls.append(path.name)
                path.write_text(text)

            state.Written(tmp_path / "list", out).once(path, now)

        write(out / "a", "x")
        write(out / "b", "y")
        with (tmp_path / "list").open("a") as file:
            file.write('\n["c", "12')  # what a killed process leaves
        write(out / "c", "z")
        write(out / "a", "x")
        write(out / "c", "z")
        assert calls == ["a", "b", "c"]
        (out / "b").write_text("damaged")
        write(out / "b", "y")
        assert calls == ["a", "b", "c", "b"]


class TestLocks:
    def test_the_second_is_refused_until_the_first_is_gone(self, tmp_path):
        with state.claimed(tmp_path, None):
            for other in (None, tmp_path):
                with (
                    pytest.raises(InputError, match="another run is writing here"),
                    state.claimed(tmp_path, other),
                ):
                    pass
        with state.claimed(tmp_path, None) as root:
            assert root == tmp_path / ".unfinished"
        assert list(tmp_path.iterdir()) == []

    def test_a_kept_store_is_locked_too_and_stays(self, tmp_path):
        kept = tmp_path / "kept"
        with state.claimed(tmp_path / "..", kept) as root:
            (root / "x").touch()
            with pytest.raises(InputError, match="kept: another run"), state.claimed(tmp_path, kept):
                pass
        assert [path.name for path in kept.iterdir()] == ["x"]

    def test_a_killed_process_leaves_no_lock(self, tmp_path):
        code = (
            "import sys, time\nfrom muscjax.files import locked\n"
            "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
        )
        root = Path(__file__).resolve().parents[1]
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(InputError, match="another run"), files.locked(tmp_path):
                pass
            process.kill()
            process.wait()
        with files.locked(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_half_written_files_are_swept_away(self, tmp_path):
        stays = [tmp_path / "maps" / "a" / ".notes.tmp", tmp_path / "other" / f".{'0' * 16}.tmp"]
        goes = [tmp_path / f".{'a' * 16}.tmp", tmp_path / "maps" / "a" / f".{'0' * 16}.tmp"]
        for path in (*stays, *goes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with state.claimed(tmp_path, None):
            assert [path.exists() for path in (*stays, *goes)] == [True, True, False, False]


def test_durable_files_are_brought_to_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_mode))
    with files.replaced(tmp_path / "a") as file:
        file.write(b"x")
    assert synced == []
    with files.replaced(tmp_path / "a", durable=True) as file:
        file.write(b"x")
    assert [mode >> 12 for mode in synced] == [0o10, 0o4]  # the file, then its folder


class Silent:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.said: list[str] = []

    def __call__(self, stage, done, total):
        self.seconds[stage] = 0.0

    def say(self, message):
        self.said.append(message)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return layouts.write_mvtec(root, categories=("cable",)) / "cable"


def settings():
    return config.override(config.released(), "input.image_size=32")


def detect(scans, out, monkeypatch, tmp_path_factory, **given):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    observe = Silent()
    run(Request(path=scans, out=out, overlays=False, **given), settings(), observe)
    return observe


def contents(out):
    unlike = {"run.json", "report.html"}  # times
    return {
        path.relative_to(out): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in unlike
    }


@pytest.fixture(scope="module")
def finished(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        detect(scans, out, patch, tmp_path_factory)
    return contents(out)


def test_a_run_leaves_nothing_but_results(finished):
    assert not [path for path in finished if path.parts[0].startswith(".")]
    assert Path("scores.csv") in finished


# Every file is renamed to its place: the disk is full at the first, at each tenth, ...
@pytest.mark.parametrize("after", [0, 3, 4, 5, 7, 9, 14])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    scans, finished, tmp_path, tmp_path_factory, monkeypatch, after
):
    count, replace = [0], os.replace

    def full(source, target):
        if str(target).startswith(str(tmp_path)):
            count[0] += 1
            if count[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)") as caught:
            detect(scans, tmp_path, patch, tmp_path_factory)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".*.tmp"))
    detect(scans, tmp_path, monkeypatch, tmp_path_factory)
    assert contents(tmp_path) == finished


def interrupted(scans, out, monkeypatch, tmp_path_factory, stage, **given):
    """A run that ends, as if by Ctrl-C, when it has got so far."""

    class Stop(Silent):
        def __call__(self, now, done, total):
            if now == stage:
                raise KeyboardInterrupt

    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    with pytest.raises(KeyboardInterrupt):
        run(Request(path=scans, out=out, overlays=False, **given), settings(), Stop())


@pytest.mark.parametrize(
    "stage", ["loading", "image features", "symmetric scoring", "maps", "writing", "metrics"]
)
def test_an_interrupted_run_goes_on(scans, finished, tmp_path, tmp_path_factory, monkeypatch, stage):
    interrupted(scans, tmp_path, monkeypatch, tmp_path_factory, stage)
    maps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tiff")}
    observe = detect(scans, tmp_path, monkeypatch, tmp_path_factory)
    assert contents(tmp_path) == finished
    assert {path: path.stat().st_mtime_ns for path in maps} == maps  # not written again
    if stage in ("maps", "writing", "metrics"):
        assert "image features" not in observe.seconds
    assert not any("afresh" in line for line in observe.said)


def test_the_state_of_another_run_is_worth_nothing(scans, finished, tmp_path, tmp_path_factory, monkeypatch):
    interrupted(scans, tmp_path, monkeypatch, tmp_path_factory, "maps", metric_size="original")
    observe = detect(scans, tmp_path, monkeypatch, tmp_path_factory)
    assert len([line for line in observe.said if "begun afresh" in line]) == 1
    assert "image features" in observe.seconds
    assert contents(tmp_path) == finished


def test_a_kept_store_serves_the_next_run_and_refuses_another(
    scans, finished, tmp_path, tmp_path_factory, monkeypatch
):
    kept, given = tmp_path / "kept", {"store": tmp_path / "kept"}
    detect(scans, tmp_path / "first", monkeypatch, tmp_path_factory, **given)
    (folder,) = (path for path in kept.iterdir() if path.is_dir())
    assert store.missing(store.load(folder / "image"), verify=True) == []
    monkeypatch.setattr(Held, "__init__", None)  # nothing is to be computed in memory
    (folder / "scored.bin").unlink()
    detect(scans, tmp_path / "second", monkeypatch, tmp_path_factory, **given)
    assert contents(tmp_path / "first") == contents(tmp_path / "second") == finished
    manifest = json.loads((folder / "image" / "manifest.json").read_text())
    manifest["identity"]["of"] = "other"
    (folder / "image" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "scored.bin").unlink()
    with pytest.raises(InputError, match="holds another identity"):
        detect(scans, tmp_path / "third", monkeypatch, tmp_path_factory, **given)


def test_truth_is_no_part_of_features_and_tables_of_an_older_run_go(
    scans, tmp_path, tmp_path_factory, monkeypatch
):
    data, out, given = tmp_path / "cable", tmp_path / "out", {"store": tmp_path / "kept"}
    shutil.copytree(scans, data)
    detect(data, out, monkeypatch, tmp_path_factory, **given)
    assert "pixel" in (out / "metrics.json").read_text()
    shutil.rmtree(data / "ground_truth")
    with monkeypatch.context() as patch:
        patch.setattr(Held, "__init__", None)  # nothing is to be computed in memory
        observe = detect(data, out, patch, tmp_path_factory, **given)
    assert "image features" not in observe.seconds
    flat = tmp_path / "flat"
    flat.mkdir()
    for picture in (data / "test").rglob("*.png"):
        shutil.copy(picture, flat / f"{picture.parent.name}_{picture.name}")
    detect(flat, out, monkeypatch, tmp_path_factory)
    assert (out / "scores.csv").exists()
    assert not [name for name in ("metrics.json", "results.csv", "results.json") if (out / name).exists()]


def test_files_of_scans_that_a_run_did_not_have_go(scans, tmp_path, tmp_path_factory, monkeypatch):
    data, out = tmp_path / "cable", tmp_path / "out"
    shutil.copytree(scans, data)
    detect(data, out, monkeypatch, tmp_path_factory)
    mine = {path.relative_to(out) for path in out.rglob("*.tiff")}
    gone = sorted(mine)[-1]
    others = [out / "maps" / name for name in ("cable/test/.x.tiff", "cable/notes.txt", "other/test/a.tiff")]
    stale = [out / kind / "cable" / "test" / "old" / "9.png" for kind in ("masks", "overlays")]
    for path in (*others, *stale):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (data / gone.relative_to("maps/cable")).with_suffix(".png").unlink()
    detect(data, out, monkeypatch, tmp_path_factory)
    assert [path.exists() for path in (*others, *stale, out / gone)] == [True] * 3 + [False] * 3
    assert all((out / path).exists() for path in mine - {gone})


def test_a_refused_run_leaves_the_record_of_the_one_before(scans, tmp_path, tmp_path_factory, monkeypatch):
    data, out = tmp_path / "cable", tmp_path / "out"
    shutil.copytree(scans, data)
    detect(data, out, monkeypatch, tmp_path_factory)
    before = (out / "run.json").read_bytes()
    bad = next((data / "test").rglob("*.png"))
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(InputError):
        detect(data, out, monkeypatch, tmp_path_factory)
    assert (out / "run.json").read_bytes() == before


def test_a_table_that_cannot_be_removed_is_one_line(scans, tmp_path, tmp_path_factory, monkeypatch):
    flat, out = tmp_path / "flat", tmp_path / "out"
    flat.mkdir()
    for picture in (scans / "test").rglob("*.png"):
        shutil.copy(picture, flat / f"{picture.parent.name}_{picture.name}")
    (out / "metrics.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"metrics\.json: cannot be written"):
        detect(flat, out, monkeypatch, tmp_path_factory)


def test_images_of_a_cleaned_set_are_not_those_of_an_image_run(tmp_path, monkeypatch):
    """Beside points the background of a picture is blackened: the same files, other features."""
    root = layouts.write_mvtec3d(tmp_path / "data", categories=("part",)) / "part"
    found = []
    for kind in ("image", "both"):
        request = Request(path=root, out=tmp_path / kind, modality=kind, store=tmp_path / "kept")
        plan = inputs.plan(request, settings())
        loaded = inputs.load(plan.datasets[0], kind, request, plan.config, Silent(), print)
        work = state.open_state(tmp_path / kind, loaded, plan, request, print)
        found.append((work.samples, work.features_of["image"]))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_folder_that_another_run_writes_to_is_refused(scans, tmp_path, tmp_path_factory, monkeypatch):
    with files.locked(tmp_path), pytest.raises(InputError, match="another run is writing here"):
        detect(scans, tmp_path, monkeypatch, tmp_path_factory)
    assert not (tmp_path / "run.json").exists()
