import csv
import dataclasses
import json
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from muscjax import cli, config, inputs, maps, pipeline, report, results, scoring
from muscjax.detection import units_of
from muscjax.errors import InputError
from muscjax.explain import explain, picture, sides
from muscjax.explain import place as places
from muscjax.requests import recorded
from muscjax.types import Features, Frame
from tests import layouts
from tests.test_pipeline import image_tokens, point_tokens, scans, small

BACKGROUND = (2, 20)  # ``scans`` leaves the first rows without points


@pytest.fixture(scope="module")
def both():
    images, clouds = scans(7)
    return pipeline.extract(
        images, clouds, image_backbone=image_tokens, point_backbone=point_tokens, config=small()
    )


def only(found, kind):
    """The same scans with one modality."""
    features = found.features
    if kind == "image":
        return found._replace(features=Features(features.image, None), clouds=None, groups=None)
    return found._replace(features=Features(None, features.points), grid_hw=None)


def detected(found, settings):
    scored = pipeline.score_subsets(found, settings)
    shape = {"grid_hw": found.grid_hw, "map_hw": found.map_hw}
    return pipeline.finish(scored, found.clouds, found.groups, settings, **shape)


# All on the same features: what differs is how they are scored.
CASES = {
    "released": small(),
    "paper": dataclasses.replace(config.paper(), ipg=small().ipg),
    "muscjax": dataclasses.replace(config.muscjax(), ipg=small().ipg),
    "subsets": config.override(
        small(), "cae.enabled=false", "run.subsets=2", "maps.neighbours=2", "rscon.enabled=false"
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, both):
    settings = CASES[request.param]
    return settings, both, detected(both, settings)


def test_scores_are_those_of_the_pipeline(case):
    settings, found, detection = case
    for sample, yx in ((0, (9, 20)), (5, (30, 3)), (6, None)):
        told = explain(found, settings, sample, yx, detection=detection)
        if told.place.point is None:  # the map's peak may lie beside the object
            assert yx is None
            assert told.points is None
            continue
        scores = detection.patch_scores
        assert abs(told.image.score - scores.image[sample, told.place.patch]) <= 1e-5
        assert abs(told.points.score - scores.points[sample, told.place.group]) <= 1e-5
        held = maps.patch_of_pixel(found.groups.pixel, found.map_hw, found.grid_hw)
        on_object = np.concatenate([np.asarray(scores.image[i])[np.unique(held[i])] for i in range(7)])
        assert abs(told.image.typical - np.median(on_object)) <= 1e-6
        assert abs(told.points.typical - np.median(scores.points)) <= 1e-6
        for side in (told.image, told.points):
            for stage in side.stages:
                assert abs(np.mean(stage.final[stage.inside]) - stage.score) <= 1e-5
                assert (np.diff(stage.final) >= 0).all()
                assert sample not in stage.references


def test_contributions_add_up_to_the_map(case):
    settings, found, detection = case
    for yx in ((9, 20), (30, 3), BACKGROUND, (31, 31)):
        told = explain(found, settings, 3, yx, detection=detection)
        c = told.contributions
        assert c.value == detection.anomaly_map[3][yx]
        assert abs(c.image + c.points + c.blur - c.value) <= 1e-5 * max(1, c.value)
        assert abs(c.cell_weights.sum() - 1) <= 1e-6
        image = np.sum(c.cell_weights * c.cell_scores)
        if settings.maps.balance == "none":
            assert abs(image - c.image) <= 1e-5
            assert abs(np.sum(told.place.group_weights * c.group_scores) - c.points) <= 1e-5
        else:  # the image's share of the value is its squared excess over what is usual
            shape = {"grid_hw": found.grid_hw, "map_hw": found.map_hw}
            usual = units_of(detection.patch_scores, found.groups, settings, **shape)
            excess = max(0, image - usual.centre[0]) / usual.reach[0]
            assert abs(excess**2 - c.image * c.value) <= 1e-4 * max(1, c.value**2)


def test_the_scan_score_is_the_mix_of_its_neighbours(case):
    settings, found, detection = case
    for sample in range(7):
        scan = explain(found, settings, sample, (9, 20), detection=detection).scan
        mixed = scan.base + np.sum(scan.weights * (scan.scores - scan.base))
        assert abs(mixed - detection.pred_score[sample]) <= 1e-6
        assert scan.map_max == detection.map_max[sample]
        assert detection.anomaly_map[sample][scan.peak_yx] == scan.map_max
        assert scan.rank == 1 + (np.asarray(detection.pred_score) > scan.pred_score).sum()
    if settings.rscon.normalise and settings.rscon.enabled:
        highest = np.asarray(detection.map_max)
        assert abs(scan.base - (highest[6] - highest.min()) / np.ptp(highest)) <= 1e-6


def test_the_nearest_patch_is_looked_for_where_the_kernel_looks():
    """Inside the window, among those that count; everywhere where the window holds none."""
    tokens = np.asarray([[0.0], [3.0], [1.0], [9.0]], np.float32)
    cells = np.asarray([[[0, 0], [0, 1], [1, 0], [1, 1]]] * 2, np.int32)
    near = sides._near(cells, (1, 3), 0)
    assert near.tolist() == [[False, False, False, True]] * 2
    query = np.zeros(1, np.float32)
    assert sides._nearest(query, tokens, None, None) == 0
    assert sides._nearest(query, tokens, None, near[0]) == 3
    counts = np.asarray([False, True, True, False])
    assert sides._nearest(query, tokens, counts, near[0]) == 2
    assert sides._near(None, (0, 0), 1) is None


def test_the_matched_patch_has_the_distance_that_is_shown():
    rng = np.random.default_rng(11)
    image = rng.normal(size=(1, 3, 4, 5)).astype(np.float32)
    settings = config.override(config.released(), "scoring.window=0")
    extracted = pipeline.Extracted(Features(image, None), None, None, (2, 2), (8, 8))
    scores = pipeline.score(extracted.features, None, settings, grid_hw=(2, 2), map_hw=(8, 8))
    frames = [Frame(source_hw=(8, 8), working_hw=(8, 8))] * 3
    place = places.locate((1, 1), frames[0], grid_hw=(2, 2), cloud=None, groups=None, neighbours=3)
    found, _ = sides.sides(extracted, settings, 0, place, frames, scores, lambda *_: None)
    for j, row, distance in zip(
        found.stages[0].references, found.stages[0].nearest, found.stages[0].own, strict=True
    ):
        assert abs(np.linalg.norm(image[0, 0, 0] - image[0, j, row]) - distance) < 1e-5


def test_ranks_of_equal_scores_are_those_of_the_table(case):
    settings, found, detection = case
    equal = dataclasses.replace(detection, pred_score=np.zeros_like(np.asarray(detection.pred_score)))
    ranks = [explain(found, settings, i, (20, 11), detection=equal).scan.rank for i in (0, 2)]
    assert ranks == [1, 3]


def test_distances_and_nearest_patches_by_brute_force(case):
    settings, found, detection = case
    told = explain(found, settings, 2, (20, 11), detection=detection)
    sides = ((told.image, found.features.image), (told.points, found.features.points))
    for side, features in sides:
        for number, stage in enumerate(side.stages):
            x = np.asarray(features[min(number, len(features) - 1)], np.float64)
            for place, j in enumerate(stage.references):
                distance = np.linalg.norm(x[j] - x[2, side.row], axis=1)
                # a float32 product leaves 4·ε·(|x|² + |y|²) on the square
                assert abs(distance.min() ** 2 - stage.own[place] ** 2) <= 1e-5
                assert distance[stage.nearest[place]] - distance.min() <= 1e-6
    parts = pipeline.subset_ids(7, settings.run.subsets, settings.run.seed)
    part = next(set(ids.tolist()) for ids in parts if 2 in ids)
    assert set(told.image.stages[0].references.tolist()) == part - {2}
    averaged = len(part) - 1
    if settings.scoring.average == "interval":
        averaged = max(1, int(settings.scoring.interval * averaged))
    assert [stage.inside.sum() for stage in told.image.stages] == [averaged, averaged]


def test_eq_11_from_its_parts(case):
    settings, found, detection = case
    told = explain(found, settings, 4, (20, 11), detection=detection)
    for stage in (*told.image.stages, *told.points.stages):
        if not settings.cae.enabled:
            assert stage.confidence is stage.matched is None
            np.testing.assert_array_equal(stage.final, stage.own)
            assert stage.score == stage.score_before
            continue
        enhanced = stage.confidence * np.maximum(stage.own, stage.rescaled)
        np.testing.assert_allclose(stage.enhanced, enhanced, rtol=1e-6)
        final = stage.own + stage.enhanced
        if settings.cae.combine == "rank_mean":
            final = (stage.own + stage.matched) / 2
        np.testing.assert_allclose(stage.final, final, rtol=1e-6)


@pytest.mark.parametrize("kind", ["image", "points"])
def test_one_modality(kind, both):
    settings, found = small(), only(both, kind)
    detection = detected(found, settings)
    told = explain(found, settings, 1, (20, 11), detection=detection)
    side, other = (told.image, told.points) if kind == "image" else (told.points, told.image)
    scores = detection.patch_scores.image if kind == "image" else detection.patch_scores.points
    assert other is None
    assert abs(side.score - scores[1, side.row]) <= 1e-5
    assert abs(side.typical - np.median(scores)) <= 1e-6
    c = told.contributions
    assert abs(c.image + c.points + c.blur - detection.anomaly_map[1, 20, 11]) <= 1e-5
    if kind == "points":
        with pytest.raises(InputError, match="background"):
            explain(found, settings, 0, BACKGROUND, detection=detection)


def test_without_a_detection_it_makes_one(both):
    told = explain(both, small(), 0, BACKGROUND)
    assert told.scan.pred_score == detected(both, small()).pred_score[0]
    assert told.points is None
    assert told.contributions.points == 0
    assert "no point of the cloud lies at 2,20" in told.notes[0]


def test_a_scan_without_points_is_explained_by_its_image(both):
    settings, valid, points = small(), np.array(both.groups.valid), np.array(both.features.points)
    valid[2], points[:, 2] = False, 0
    clouds = list(both.clouds)
    clouds[2] = dataclasses.replace(clouds[2], valid=np.zeros_like(clouds[2].valid))
    found = both._replace(
        features=dataclasses.replace(both.features, points=points),
        groups=dataclasses.replace(both.groups, valid=valid),
        clouds=clouds,
    )
    detection = detected(found, settings)
    alone = explain(found, settings, 2, (20, 11), detection=detection)
    assert alone.points is None
    assert [stage.confidence for stage in alone.image.stages] == [None, None]
    beside = explain(found, settings, 1, (20, 11), detection=detection)
    stage = beside.points.stages[0]
    assert stage.references[-1] == 2
    assert np.isinf(stage.own[-1])
    assert abs(beside.points.score - detection.patch_scores.points[1, beside.place.group]) <= 1e-5


@pytest.mark.parametrize(("kind", "tile"), [("rows", 2), ("symmetric", 3)])
def test_every_plan_gives_its_own_numbers(kind, tile, both, monkeypatch):
    plan = scoring.plan
    monkeypatch.setattr(
        scoring, "plan", lambda *a, **k: dataclasses.replace(plan(*a, **k), kind=kind, tile=tile, block=3)
    )
    settings, found = small(), only(both, "image")
    detection = detected(found, settings)
    for sample in (0, 6):
        told = explain(found, settings, sample, detection=detection)
        assert abs(told.image.score - detection.patch_scores.image[sample, told.place.patch]) <= 1e-6


@pytest.mark.parametrize("sample", [-1, 7])
def test_a_sample_that_is_not_there_is_refused(sample, both):
    with pytest.raises(InputError, match=f"sample: found {sample}, expected a number from 0 to 6"):
        explain(both, small(), sample, detection=detected(both, small()))


@pytest.mark.parametrize("yx", [(-1, 0), (32, 0), (0, 32)])
def test_a_place_outside_is_refused(yx, both):
    with pytest.raises(
        InputError, match=f"--at {yx[0]},{yx[1]}: outside of the image, expected y,x below 32,32"
    ):
        explain(both, small(), 0, yx, progress=lambda *done: pytest.fail(f"worked on {done}"))


SMALL = ("--image-size", "32", "--map-size", "32", "--set", "ipg.groups=16", "--set", "ipg.group_size=8")
SMALL += ("--set", "ipg.initial_size=5")


@pytest.fixture(scope="module", autouse=True)
def _stand_ins():
    """Every run here is made with the stand-in networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "load_image_backbone", lambda name, config: image_tokens)
        patch.setattr(inputs, "load_point_backbone", lambda name, config: point_tokens)
        yield


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A run on disk: the category, and the folder of its results."""
    folder = tmp_path_factory.mktemp("explain")
    root = layouts.write_mvtec3d(folder / "data", splits=("test",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSCJAX_CACHE", str(folder / "cache"))
        patch.setattr(report, "available", lambda: "no report")
        patch.setattr(results, "evaluate", lambda *_: None)
        patch.setattr(
            sys, "argv", ["muscjax", "detect", str(root), "--out", str(folder / "run"), "-q", *SMALL]
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code
    return root, folder / "run"


@pytest.fixture
def run(capfd, monkeypatch, tmp_path_factory):
    def call(*arguments):
        monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        monkeypatch.setattr(sys, "argv", ["muscjax", "explain", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return call


def test_a_scan_of_a_run_by_name(line, run):
    _, folder = line
    code, printed, err = run("part/test/bent/001", "--run", folder, "--at", "20,24")
    assert code == 0, err
    assert "part/test/bent/001 at y=20, x=24" in printed
    assert "block 2 of 2" in printed
    assert "pairing 2 of 2" in printed  # the stand-in for points has one block
    out = folder / "explain" / "part" / "test" / "bent" / "001@20,24"
    told = json.loads((out / "explanation.json").read_text())
    parts = told["explanation"]["contributions"]
    full = tifffile.imread(folder / "maps" / "part" / "test" / "bent" / "001.tiff")
    # the file's map is resampled to the image's size
    assert abs(full[20, 24] - parts["value"]) <= 0.1 * full.max()
    assert abs(parts["image"] + parts["points"] + parts["blur"] - parts["value"]) <= 1e-5
    with open(folder / "scores.csv", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["path"].endswith("bent/rgb/001.png")]
    assert abs(float(row["score"]) - told["explanation"]["scan"]["pred_score"]) <= 1e-6
    assert int(row["rank"]) == told["explanation"]["scan"]["rank"]
    assert not [note for note in told["explanation"]["notes"] if "run" in note]
    with Image.open(out / "explanation.png") as picture:
        assert picture.size[0] > 1000


def test_a_file_finds_its_data_set(line, run, tmp_path, monkeypatch):
    root, folder = line
    file = root / "part" / "test" / "bent" / "xyz" / "001.tiff"
    monkeypatch.setattr(picture, "available", lambda: "no matplotlib")
    code, printed, err = run(file, "--out", tmp_path / "out", *SMALL)
    assert code == 0, err
    assert "no matplotlib" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["explanation.json"]
    told = json.loads((tmp_path / "out" / "explanation.json").read_text())
    with open(folder / "scores.csv", newline="") as table:
        (row,) = [row for row in csv.DictReader(table) if row["path"].endswith("bent/rgb/001.png")]
    assert abs(float(row["score_before_rscon"]) - told["explanation"]["scan"]["map_max"]) <= 1e-6


@pytest.mark.parametrize(
    ("arguments", "line_of_error"),
    [
        (("part/test/bent/777", "--run", "RUN"), "part/test/bent/777: no scan of the run in"),
        (("part/test/bent/001", "--run", "RUN", "--at", "999,3"), "--at 999,3: outside of the image"),
        (("part/test/bent/001", "--run", "RUN", "--at", "3"), "--at '3': expected y,x, two whole numbers"),
        (("part/test/bent/001", "--run", "RUN", "--set", "cae.enabled=false"), "--set: the run in"),
        (("part/test/bent/001", "--run", "ROOT"), "expected results of detect"),
        (("part/test/bent/001",), "needs --run"),
        (("ROOT/part/test/bent/gt/001.png",), "belongs to no data set"),
        (("ROOT/part/test/bent/rgb/001.png", "--layout", "attic"), "layout: found 'attic'"),
        (("ROOT/part/test/bent/rgb/001.png", "--layout", "mvtec3d", "--split", "train"), "(split 'train')"),
    ],
)
def test_bad_requests_end_in_one_line(line, run, tmp_path, monkeypatch, arguments, line_of_error):
    monkeypatch.chdir(tmp_path)
    root, folder = line
    code, _, err = run(*(a.replace("ROOT", str(root)).replace("RUN", str(folder)) for a in arguments))
    assert code == 2
    assert line_of_error in err
    assert err.strip().count("\n") == 0
    assert not list(tmp_path.rglob("*.json"))


def test_a_pixel_that_the_window_cuts_away_is_refused_before_any_features(line, run, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("features were computed")

    monkeypatch.setattr(pipeline, "extract", never)
    file = line[0] / "part" / "test" / "bent" / "rgb" / "001.png"
    window = ("--set", "input.window=object", "--set", "input.window_side=16")
    code, _, err = run(file, "--at", "0,0", "--out", tmp_path, "-q", *SMALL, *window)
    assert code == 2
    assert err.strip() == "muscjax: --at 0,0: in a part of the image that was cut away"


def test_an_unfinished_or_foreign_record_is_refused(tmp_path):
    for content, said in (
        ('{"unfinished": true}', "no request"),
        ("{", "not a JSON"),
        ('{"request": {}}', "path"),
    ):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(InputError, match=said):
            recorded(tmp_path)
