import contextlib
import csv
import dataclasses
import io
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile

from muscjax import cae, cli, config, inputs, maps, pipeline, reference, scoring
from muscjax.datasets import synthetic
from muscjax.errors import InputError
from muscjax.extract import Bound
from muscjax.reference import Frozen, telling
from muscjax.types import Features, PointGroups
from tests.reference import rscon as by_loops

M, G, C, HW = 16, 8, 5, (32, 32)
SHAPE = {"grid_hw": (4, 4), "map_hw": HW}


def settings(*assignments, memory=None):
    chosen = config.override(config.released(), *assignments)
    if memory is not None:  # less than a configuration file may say, so that blocks are small
        chosen = dataclasses.replace(chosen, run=dataclasses.replace(chosen.run, memory_budget=memory))
    return chosen


def samples(n, seed, stages=2):
    """Features of both modalities and groups, of which some do not exist; the third cloud is empty."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(stages, n, M, C)).astype(np.float32)
    points = rng.normal(size=(1, n, G, C)).astype(np.float32)
    valid = rng.random((n, G)) > 0.2
    valid[2:3] = False
    pixel = rng.integers(0, HW[0] * HW[1], (n, G)).astype(np.int32)
    zeros = np.zeros((n, G), np.float32)
    groups = PointGroups(
        indices=np.zeros((n, G, 3), np.int32),
        centers=np.zeros((n, G, 3), np.float32),
        center_index=np.zeros((n, G), np.int32),
        curvature=zeros,
        pixel=pixel,
        valid=valid,
    )
    return image, points, groups


def against(queries, references, chosen, sides=(True, True), **more):
    (image, points, groups), (kept_image, kept_points, kept_groups) = queries, references
    return reference.score_against(
        Features(image if sides[0] else None, points if sides[1] else None),
        groups if sides[1] else None,
        Features(kept_image if sides[0] else None, kept_points if sides[1] else None),
        kept_groups.valid if sides[1] else None,
        chosen,
        **SHAPE,
        **more,
    )


@pytest.mark.parametrize("memory", [None, 300_000])
def test_single_modality_scores_are_those_of_score_against(memory):
    queries, references = samples(11, 0), samples(70, 1)
    chosen = settings(memory=memory)
    found = against(queries, references, chosen, sides=(True, False))
    stages = [scoring.score_against(q, r) for q, r in zip(queries[0], references[0], strict=True)]
    np.testing.assert_allclose(found.image, np.mean(stages, axis=0), rtol=1e-6)
    found = against(queries, references, chosen, sides=(False, True))
    valid = references[2].valid
    expected = scoring.score_against(queries[1][0], references[1][0], reference_valid=valid)
    expected = np.where(queries[2].valid, expected, 0)
    np.testing.assert_allclose(found.points, expected, rtol=1e-6)
    first = np.argmax(expected, axis=1)
    np.testing.assert_array_equal(found.salient, queries[1][0][np.arange(11), first])


def test_eq_10_and_11_rows_of_new_scans_are_enhanced_as_in_cae():
    queries, references, chosen = samples(9, 2), samples(12, 3), settings()

    @jax.jit
    def averages(*sample):
        return [scoring.interval_average(x, 0.3) for x in cae.enhance(*sample, chosen.cae)]

    found = against(queries, references, chosen)
    has_points = references[2].valid.any(axis=1)
    image, points = np.zeros((2, 9, M)), np.zeros((2, 9, G))
    for s in range(2):
        rows = scoring.min_distances(queries[0][s], references[0][s])
        point_rows = scoring.min_distances(
            queries[1][0], references[1][0], reference_valid=references[2].valid
        )
        for q in range(9):
            valid = queries[2].valid[q]
            patch = maps.patch_of_pixel(queries[2].pixel[q], HW, (4, 4))
            both = has_points & valid.any()
            image[s, q], points[s, q] = averages(rows[q], point_rows[q], patch, valid, both)
            points[s, q][~valid] = 0
    np.testing.assert_allclose(found.image, image.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.points, points.mean(axis=0), rtol=1e-6)


def test_scores_depend_on_no_other_new_scan_and_references_have_no_order():
    queries, references, chosen = samples(9, 4), samples(12, 5), settings()
    found = against(queries, references, chosen, sides=(True, False))
    alone = against(pick(queries, [4]), references, chosen, sides=(True, False))
    np.testing.assert_allclose(alone.image[0], found.image[4], rtol=1e-6)
    # With CAE, equal values are ranked by the place of their reference, as in ``detect``.
    order = np.random.default_rng(0).permutation(12)
    again = against(queries, pick(references, order), chosen, sides=(True, False))
    np.testing.assert_allclose(again.image, found.image, rtol=1e-6)


def pick(part, ids):
    image, points, groups = part
    chosen = {f.name: getattr(groups, f.name)[ids] for f in dataclasses.fields(groups)}
    return image[:, ids], points[:, ids], PointGroups(**chosen)


def test_a_kept_scan_against_the_others_scores_as_in_the_set():
    kept, chosen = samples(12, 6), settings()
    same = np.eye(12, dtype=bool)
    found = against(kept, kept, chosen, same=same)
    mutual = pipeline.score(Features(*kept[:2]), kept[2], chosen, **SHAPE)
    np.testing.assert_allclose(found.image, mutual.image, rtol=1e-6)
    np.testing.assert_allclose(found.points, mutual.points, rtol=1e-6)
    with pytest.raises(InputError, match="found none but the scan itself"):
        against(pick(kept, [0]), pick(kept, [0]), chosen, same=np.ones((1, 1), bool))


def test_what_does_not_fit_is_refused():
    queries, references = samples(3, 0), samples(4, 1)
    other = (queries[0][..., :4], *queries[1:])
    with pytest.raises(InputError, match=r"found .*16, 4.*, expected the references' .*16, 5"):
        against(other, references, settings())
    with pytest.raises(InputError, match=r"run\.memory_budget: .* too small for 8 samples"):
        against(queries, references, settings(memory=10_000))


@pytest.mark.parametrize(
    "assignments",
    [(), ("rscon.windows=[3]", "rscon.form=half", "rscon.normalise=false"), ("rscon.enabled=false",)],
)
def test_eq_12_to_15_with_frozen_numbers(assignments):
    rng = np.random.default_rng(7)
    kept, features = rng.random(9).astype(np.float32), rng.random((9, 4)).astype(np.float32)
    new, own = rng.random(3).astype(np.float32) * 2, rng.random((3, 4)).astype(np.float32)
    frozen, chosen = Frozen(tuple("abcdefghi"), kept, kept, features, (0.0, 1.0)), settings(*assignments)
    found = reference.frozen_rescore(new, own, frozen, chosen)
    expected = []
    for score, feature in zip(new, own, strict=True):
        everyone = np.append(kept, score).astype(np.float64)
        if not assignments:
            everyone = (everyone - kept.min()) / (kept.max() - kept.min())
        near = np.concatenate([features, feature[None]])
        one, _ = by_loops.rows(everyone, near, 1)
        if not assignments:
            expected.append((one[-1] + by_loops.rows(everyone, near, 7)[0][-1]) / 2)
        elif len(assignments) > 1:
            expected.append((everyone[-1] + by_loops.rows(everyone, near, 3)[0][-1]) / 2)
        else:
            expected.append(score)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(reference.frozen_rescore(new[1:2], own[1:2], frozen, chosen), found[1:2])


# -- on disk -------------------------------------------------------------------------------------------------

SMALL = [
    "--image-size",
    "32",
    "--modality",
    "both",
    "--set",
    "scoring.refine=true",
    "--set",
    "maps.balance=calm",
]
for _field in ("groups=16", "group_size=8", "initial_size=5", "expansion=none"):
    SMALL += ["--set", f"ipg.{_field}"]
SMALL += ["--set", "input.window=object"]  # the side of the first scans' window is that of all later ones
SMALL += ["--set", "snamd.degrees=[1]"]  # what is kept is pooled as ever; it compiles sooner


def image_tokens(images, config):
    """A stand-in network that compiles in a moment: 4×4 patches of 8 pixels, two stages of six channels."""
    x = images.astype(jnp.float32).reshape(-1, 4, 8, 4, 8, 3)
    mean, spread = x.mean(axis=(2, 4)), x.std(axis=(2, 4))
    tokens = config.gain * jnp.concatenate([mean, spread], axis=-1).reshape(len(images), 16, 6) / 255
    return jnp.stack([tokens, jnp.sqrt(tokens + 1)])


def point_tokens(cloud, groups, config):
    """A stand-in descriptor: the spread of each group, one stage."""
    around = (cloud.points[groups.indices] - groups.centers[:, None]) / config.feature_radius
    return jnp.concatenate([around.std(axis=1), jnp.abs(around).max(axis=1)], axis=1)[None]


@dataclasses.dataclass
class Line:
    first: str  # folders of scans
    second: str
    whole: str
    store: str  # the second half, then the first; both halves scored
    kept: str  # what `rescore --out` wrote
    set_at_once: str  # what `detect` of the whole wrote
    new: str  # scans that are not kept


@pytest.fixture(scope="module")
def muscjax(tmp_path_factory):
    """``muscjax ARGUMENTS`` -> (exit code, what was said)."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(inputs, "load_image_backbone", lambda name, config: Bound(image_tokens, config.texture))
    patch.setattr(inputs, "load_point_backbone", lambda name, config: Bound(point_tokens, config.fpfh))

    def call(*arguments):
        said = io.StringIO()
        patch.setattr(sys, "argv", ["muscjax", *map(str, arguments)])
        streams = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
        with streams[0], streams[1], pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, said.getvalue().strip()

    yield call
    patch.undo()


@pytest.fixture(scope="module")
def line(tmp_path_factory, muscjax):
    home = tmp_path_factory.mktemp("line")
    made = synthetic.write_line(home / "whole", part="cap", scans=16, defective=0.25, seed=3, size=64)
    for i, image in enumerate(sorted(made.glob("test/*/rgb/*.png"))):
        half = home / ("first" if i % 2 else "second") / "cap" / "test" / image.parts[-3]
        for kind in ("rgb", "xyz", "gt"):
            for file in (made / "test" / image.parts[-3] / kind).glob(f"{image.stem}.*"):
                (half / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, half / kind / file.name)
    found = Line(
        *(str(home / name) for name in ("first", "second", "whole", "store", "kept", "at-once", "new"))
    )
    synthetic.write_line(found.new, part="cap", scans=2, defective=0.0, seed=4, size=64)
    for half in (found.second, found.first):
        code, said = muscjax("reference", "add", found.store, half, *SMALL)
        assert code == 0, said
        assert "added 8 scans" in said
        assert "next: muscjax reference rescore" in said
    code, said = muscjax("reference", "rescore", found.store, "--out", found.kept)
    assert code == 0, said
    # The first scans that were added have decided how wide the windows are.
    side = reference.open_kept(found.store).origin["config"]["input"]["window_side"]
    same_window = ("--set", f"input.window_side={side}")
    code, said = muscjax("detect", found.whole, "--out", found.set_at_once, *SMALL, *same_window)
    assert code == 0, said
    return found


def scores_of(folder, stem=str):
    with open(f"{folder}/scores.csv", newline="") as file:
        return {stem(row["path"]): row for row in csv.DictReader(file)}


def scan_name(path):
    """``cap/test/good/000`` of the path of its image."""
    category, split, defect, _, file = path.split("/")[-5:]
    return "/".join((category, split, defect, file.removesuffix(".png")))


def test_rescore_equals_the_set_at_once_in_any_order(line):
    found, expected = scores_of(line.kept), scores_of(line.set_at_once, scan_name)
    assert found.keys() == expected.keys()
    assert len(found) == 16
    for name, row in found.items():
        same(row, expected[name])


def test_new_scans_against_the_kept_ones(line, muscjax, tmp_path):
    """Two new scans and one that is kept; then one of the new ones alone."""
    kept = "cap/test/good/000"
    for name in ("one", "few"):
        folder = tmp_path / name / "cap" / "test" / "good"
        for kind, suffix in (("rgb", "png"), ("xyz", "tiff")):
            (folder / kind).mkdir(parents=True)
            for stem in ("000", "001") if name == "few" else ("000",):
                shutil.copy(f"{line.new}/cap/test/good/{kind}/{stem}.{suffix}", folder / kind)
            if name == "few":
                shutil.copy(
                    f"{line.whole}/{kept.replace('good', f'good/{kind}')}.{suffix}",
                    folder / kind / f"k.{suffix}",
                )
        code, said = muscjax(
            "detect", tmp_path / name, "--reference", line.store, "--out", tmp_path / f"out-{name}"
        )
        assert code == 0, said
        assert "scored against the 16 scans of" in said
    one, few = (scores_of(tmp_path / f"out-{name}", scan_name) for name in ("one", "few"))
    assert list(one) == ["cap/test/good/000"]
    same(one["cap/test/good/000"], few["cap/test/good/000"])
    maps_of = [
        tifffile.imread(f"{tmp_path}/out-{name}/maps/cap/test/good/000.tiff") for name in ("one", "few")
    ]
    np.testing.assert_allclose(*maps_of, rtol=1e-5, atol=1e-6)
    same(few["cap/test/good/k"], scores_of(line.kept)[kept])
    record = json.loads((tmp_path / "out-few" / "run.json").read_text())
    assert record["reference"] == {
        "path": line.store,
        "digest": reference.open_kept(line.store).digest,
        "scans": 16,
        "frozen_scans": 16,
        "stale": False,
    }
    assert record["config"]["ipg"]["groups"] == 16  # nobody repeated it
    assert 32 < record["config"]["input"]["window_side"] < 64
    assert (tmp_path / "out-few" / "report.html").exists()
    code, said = muscjax("explain", "cap/test/good/000", "--run", tmp_path / "out-few")
    assert code == 2
    assert "scored against the reference set" in said
    assert "\n" not in said


def same(row, other):
    """Two rows of scores.csv say the same of a scan, but for the rounding of distances."""
    for column, tolerance in (("score_before_rscon", {"rtol": 1e-5}), ("score", {"atol": 2e-5})):
        np.testing.assert_allclose(float(row[column]), float(other[column]), **{"rtol": 0, **tolerance})
    assert row.get("pred_label") == other.get("pred_label")


def test_a_scan_is_kept_once_and_known_by_one_name(line, muscjax, tmp_path):
    code, said = muscjax("reference", "add", line.store, line.first)
    assert code == 0, said
    assert "added 0 scans, 8 were there already" in said
    assert "keeps 16" in said
    kept = reference.open_kept(line.store)
    assert len(set(kept.names)) == 16
    assert not kept.stale


def test_what_is_taken_out_is_gone_and_the_numbers_are_stale(line, muscjax, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(line.store, store)
    before = reference.open_kept(store)
    whole = reference.kept.Rows(before, "points0")[:]
    code, said = muscjax("reference", "prune", store, "--drop", before.names[3], "--drop", before.names[9])
    assert code == 0, said
    assert "took out 2 scans" in said, said
    assert "rescore" in said, said
    kept = reference.open_kept(store)
    assert kept.names == tuple(n for i, n in enumerate(before.names) if i not in (3, 9))
    rows = reference.kept.Rows(kept, "points0")
    np.testing.assert_array_equal(rows[:], np.delete(whole, [3, 9], axis=0))
    np.testing.assert_array_equal(rows[np.asarray([12, 0, 7])], rows[:][[12, 0, 7]])
    kept, gone = reference.prune(store, keep=5)
    assert kept.names == before.names[11:]
    assert len(gone) == 9
    assert len(list(store.glob("*/"))) == 2
    assert kept.stale
    assert kept.digest != before.digest
    code, said = muscjax("reference", "info", store, "--scans", "--examine")
    assert code == 0, said
    assert "keeps 5 scans, its frozen numbers are of 16 (5 of them kept)" in said
    assert all(name in said for name in kept.names)
    for arguments, line_of_error in (
        (["--keep", "0"], "no scan of 5 would be left"),
        (["--drop", "cap/test/x"], "keeps no scan 'cap/test/x'"),
        ([], "give either --keep or --drop"),
    ):
        code, said = muscjax("reference", "prune", store, *arguments)
        assert code == 2
        assert line_of_error in said
        assert "\n" not in said


def test_the_newest_that_stay_are_counted_without_those_that_are_named(line, tmp_path):
    shutil.copytree(line.store, tmp_path / "store")
    names = reference.open_kept(tmp_path / "store").names
    kept, gone = reference.prune(tmp_path / "store", keep=4, drop=[names[-1]])
    assert kept.names == names[-5:-1]
    assert len(gone) == 12


def test_what_is_told_of_scores_is_on_the_scale_of_the_threshold(line):
    kept = reference.open_kept(line.store)
    frozen = reference.kept.read_frozen(kept)
    for score, word, numbers in (
        ("map_max", "maxima", frozen.map_max),
        ("pred_score", "scores", frozen.pred_score),
    ):
        settings_of = {**kept.origin["config"], "decision": {"score": score}}
        changed = dataclasses.replace(kept, origin={**kept.origin, "config": settings_of})
        said = telling.told(changed, scans=True)
        assert any(f"{word} {numbers.min():.4g} to {numbers.max():.4g}, threshold" in text for text in said)
        by_content = dict(zip(frozen.contents, numbers, strict=True))
        for name, content in zip(kept.names, kept.contents, strict=True):
            assert f"{name}  {by_content[content]:.4g}" in said


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--image-size", "64"], "made with input.image_size 32, this run has 64"),
        (["--modality", "image"], "made with modality both, this run has image"),
        (["--set", "cae.confidence=false"], "made with cae.confidence True, this run has False"),
        (["--set", "texture.gain=1"], "image backbone texture, this run has texture with other"),
        (["--set", "run.subsets=2"], "made with run.subsets 1, this run has 2"),
        (["--no-clean"], "made with clean True, this run has False"),
        (["--preset", "paper"], "made with "),
    ],
)
def test_contradictions_are_one_line_that_names_both(line, muscjax, tmp_path, arguments, error):
    for verb in (
        ["detect", line.first, "--reference", line.store],
        ["reference", "add", line.store, line.first],
    ):
        code, said = muscjax(*verb, *arguments, *(["--out", tmp_path / "o"] if verb[0] == "detect" else []))
        assert code == 2, said
        assert error in said, said
        assert "\n" not in said, said


def test_stores_that_are_none(line, muscjax, tmp_path):
    code, said = muscjax("detect", line.first, "--reference", tmp_path)
    assert code == 2
    assert "found no reference.json" in said
    code, said = muscjax("reference", "add", line.first, line.first, *SMALL)
    assert code == 2
    assert "found cap and no reference.json" in said
    store = tmp_path / "store"
    shutil.copytree(line.store, store)
    path = store / "reference.json"
    record = json.loads(path.read_text())
    for change in (
        {"version": 2},
        {"parts": [{**record["parts"][0], "folder": "../elsewhere"}]},
        {"parts": 3},
        {"frozen": {"folder": "x"}},
        {"parts": [record["parts"][0]] * 2},
        {"parts": []},
        {"origin": {k: v for k, v in record["origin"].items() if k != "version"}},
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(InputError, match=r"reference\.json: (found version|damaged)"):
            reference.open_kept(store)
    path.write_text(json.dumps(record | {"frozen": None}))
    code, said = muscjax("detect", line.first, "--reference", store)
    assert code == 2
    assert "16 scans were never scored by each other; call muscjax reference" in said
    path.write_text(json.dumps(record))
    part = store / record["parts"][0]["folder"] / "000000.h5"
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(content)
    code, said = muscjax("detect", line.second, "--reference", store, "--out", tmp_path / "out")
    assert code == 2, said
    assert "not the bytes that its digest is of" in said.splitlines()[-1], said


def test_an_add_that_was_stopped_goes_on(line, muscjax, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise InputError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(reference.kept, "append", refuse)
        assert muscjax("reference", "add", tmp_path / "store", line.first, *SMALL)[0] == 2
    assert not (tmp_path / "store" / "reference.json").exists()
    written = [p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.h5")]
    code, said = muscjax("reference", "add", tmp_path / "store", line.first, *SMALL)
    assert code == 0, said
    assert written == [p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.h5")], said
