"""muscjax.compare: paired intervals, the scans that moved, settings that differ, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from muscjax import compare, datasets, evaluate, intervals, metrics, outputs
from muscjax.cli import app
from muscjax.config import override, released
from muscjax.errors import InputError
from tests import layouts
from tests.test_evaluate import Silent

COUNTS = (("good", 4), ("bent", 3), ("hole", 2))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    root = tmp_path_factory.mktemp("truth")
    return layouts.write_mvtec(root, counts=COUNTS, hw=(48, 40))


def scans_of(root):
    return [scan for d in datasets.open_dataset(root) for scan in d.scans]


def write_run(folder, root, *, seed: int, gain: float, config=None, modality: str = "image", drop: int = 0):
    """A folder as detect leaves it: maps that show the defects by ``gain``, and scores of their maxima."""
    rng = np.random.default_rng(seed)
    scans = scans_of(root)[drop:]
    scores = []
    for scan in scans:
        values = rng.random((48, 40)).astype(np.float32)
        if scan.label:
            values += np.float32(gain) * (layouts.defect_mask(48, 40) > 0)
            values[26, 30] += gain
        outputs.write_map(outputs.map_path(folder, scan.name), values)
        scores.append(float(values.max()))
    rows = outputs.score_rows([scan.image for scan in scans], scores, scores, [scan.label for scan in scans])
    outputs.write_scores(folder / "scores.csv", rows)
    request = {"path": root, "out": folder, "layout": "auto", "category": None, "split": "test"}
    record = {"request": {**request, "modality": modality}, "config": config or released(), "versions": {}}
    outputs.write_json(folder / "run.json", record)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, truth):
    place = tmp_path_factory.mktemp("runs")
    weak = write_run(place / "weak", truth, seed=1, gain=0.1)
    changed = override(released(), "cae.confidence=false", "snamd.degrees=[1,3]")
    return weak, write_run(place / "strong", truth, seed=2, gain=3.0, config=changed, modality="both")


def result(a, b, **options):
    return compare.compare(a, b, truth=options.pop("truth", None), observe=Silent(), resamples=200, **options)


def test_metrics_and_their_differences_are_those_of_the_maps(runs, truth):
    found = result(*runs)
    scans = sorted(scans_of(truth), key=lambda scan: scan.name)
    labels = np.array([scan.label for scan in scans])
    masks = [datasets.load_truth(scan) for scan in scans]
    rows = {row["metric"]: row for row in found.metrics}
    draws = []
    for side, run in zip("ab", runs, strict=True):
        maps = [evaluate.load_map(outputs.map_path(run, scan.name)) for scan in scans]
        scores = np.array([m.max() for m in maps], np.float64)
        image, pixel = metrics.image_metrics(labels, scores), metrics.pixel_metrics(masks, maps)
        for name in ("auroc", "f1_max", "ap"):
            assert rows[f"image {name}"][side] == pytest.approx(image[name], abs=1e-9)
            assert rows[f"pixel {name}"][side] == pytest.approx(pixel[name], abs=1e-9)
        assert rows["pixel aupro_mvtec"][side] == pytest.approx(pixel["aupro_mvtec"], abs=1e-9)
        assert rows["pixel hit_rate"][side] == pytest.approx(metrics.hit_rate(masks, maps), abs=1e-9)
        draws.append(intervals.resampled(labels, scores, masks, maps, resamples=200)["pixel"]["ap"])
    differences = (draws[1] - draws[0])[np.isfinite(draws[0])]
    low, high = np.quantile(differences, [0.025, 0.975])
    assert (rows["pixel ap"]["low"], rows["pixel ap"]["high"]) == (pytest.approx(low), pytest.approx(high))
    for row in found.metrics:
        assert row["difference"] == pytest.approx(row["b"] - row["a"])
        assert row["low"] <= row["high"]
    assert rows["pixel ap"]["low"] > 0
    assert "pixel foreground_ap" not in rows  # images alone: no foreground
    assert found.notes == ()


def test_a_run_against_itself_differs_by_nothing_at_all(runs):
    found = result(runs[0], runs[0])
    assert found.differs == ()
    for row in found.metrics:
        assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
    assert all(row["quantile_change"] == 0 for row in found.scans)
    assert list(found.rank_correlation.values()) == [pytest.approx(1.0)]
    assert all(row["map_correlation"] == pytest.approx(1.0) for row in found.scans)


def test_other_way_round_changes_the_signs(runs):
    there, back = result(*runs), result(*reversed(runs))
    for a, b in zip(there.metrics, back.metrics, strict=True):
        assert a["difference"] == pytest.approx(-b["difference"])
        assert a["low"] == pytest.approx(-b["high"])
    changes = [{row["scan"]: row["quantile_change"] for row in found.scans} for found in (there, back)]
    assert changes[0] == {name: -value for name, value in changes[1].items()}


def test_settings_that_differ_are_named_field_by_field(runs):
    found = {field: values for field, *values in result(*runs).differs}
    assert found == {
        "request.modality": ["image", "both"],
        "cae.confidence": [True, False],
        "snamd.degrees": [[1, 3, 5], [1, 3]],
    }


def test_scans_are_ranked_within_their_set_and_the_largest_change_is_first(runs, truth):
    found = result(*runs)
    rows = found.scans
    n = len(scans_of(truth))
    assert sorted(row["rank_b"] for row in rows) == list(range(1, n + 1))
    for row in rows:
        assert row["quantile_change"] == pytest.approx((row["rank_a"] - row["rank_b"]) / (n - 1))
    changes = [abs(row["quantile_change"]) for row in rows]
    assert changes == sorted(changes, reverse=True)
    ranks = np.array([[row["rank_a"], row["rank_b"]] for row in rows])
    correlation = np.corrcoef(ranks.T)[0, 1]
    assert found.rank_correlation == {rows[0]["category"]: pytest.approx(correlation)}


def test_equal_scores_share_their_rank():
    rows, correlation = compare.figures._changes(
        "part", list("abcd"), [None] * 4, [np.array([1.0, 1, 0, 0]), np.ones(4)], [None] * 4
    )
    assert [row["rank_a"] for row in rows] == [1.5, 1.5, 3.5, 3.5]
    assert [row["rank_b"] for row in rows] == [2.5] * 4
    assert correlation is None


def test_without_the_data_set_the_labels_of_the_scores_serve(runs, truth, tmp_path):
    gone = tmp_path / "gone"
    sides = []
    for run in runs:
        side = tmp_path / run.name
        side.mkdir()
        (side / "maps").symlink_to(run / "maps", target_is_directory=True)
        record = json.loads((run / "run.json").read_text())
        record["request"]["path"] = str(gone)
        (side / "run.json").write_text(json.dumps(record))
        text = (run / "scores.csv").read_text().replace(str(truth.resolve().parent), str(gone))
        (side / "scores.csv").write_text(text)
        sides.append(side)
    found = result(*sides)
    assert {row["metric"] for row in found.metrics} == {"image auroc", "image f1_max", "image ap"}
    assert found.notes == (f"{gone}: no such folder; without --truth there are no metrics of pixels",)
    assert result(*sides, truth=truth).metrics == result(*runs).metrics
    for side in sides:  # and without labels the scans alone
        lines = [row[:4] for row in csv.reader((side / "scores.csv").read_text().splitlines())]
        (side / "scores.csv").write_text("\n".join(",".join(line) for line in lines))
    blind = result(*sides)
    assert blind.metrics == ()
    assert [row["scan"] for row in blind.scans] == [row["scan"] for row in found.scans]
    with pytest.raises(InputError, match="no such folder"):
        result(*runs, truth=gone)


def test_other_scans_and_missing_files_are_refused_in_one_line(runs, truth, tmp_path):
    short = write_run(tmp_path / "short", truth, seed=1, gain=0.1, drop=2)
    with pytest.raises(InputError, match=r"short: found no map of .* \(of 2 such scans\) that .*weak has"):
        result(runs[0], short)
    with pytest.raises(InputError, match=r"weak"):
        result(short, runs[0])
    with pytest.raises(InputError, match=r"run.json: no such file"):
        result(runs[0], tmp_path)
    (short / "scores.csv").write_text("path,score\n")
    with pytest.raises(InputError, match=r"scores.csv: found no score of "):
        result(short, short)
    (short / "scores.csv").unlink()
    with pytest.raises(InputError, match=r"scores.csv: no such file"):
        result(short, short)
    outputs.write_json(short / "run.json", {"unfinished": True})
    with pytest.raises(InputError, match=r"run.json: found no request"):
        result(short, short)


def test_means_of_several_categories_come_from_their_common_draws():
    rows = [
        {"category": c, "metric": "image ap", "a": a, "b": b, "difference": b - a, "scans": 5}
        for c, a, b in (("x", 0.2, 0.4), ("y", 0.6, 0.5))
    ]
    draws = {("image", "ap"): [np.linspace(0.1, 0.3, 101), np.linspace(-0.2, 0.0, 101)]}
    (mean,) = compare.figures._means(rows, draws, 2, 0.95)
    assert (mean["category"], mean["scans"]) == ("mean", 10)
    assert (mean["a"], mean["b"], mean["difference"]) == (0.4, 0.45, pytest.approx(0.05))
    assert (mean["low"], mean["high"]) == (pytest.approx(-0.045), pytest.approx(0.145))
    assert compare.figures._means(rows[:1], {("image", "ap"): draws["image", "ap"][:1]}, 1, 0.95) == []


def test_the_verb_prints_writes_and_stops_in_one_line(runs, tmp_path):
    arguments = ["compare", *map(str, runs), "--out", str(tmp_path / "o"), "--resamples", "50", "--top", "3"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    for text in ("cae.confidence", "image AUROC", "PRO mvtec", "scans that changed most", "rank correlation"):
        assert text in done.output
    written = json.loads((tmp_path / "o" / "compare.json").read_text())
    assert {row["metric"] for row in written["metrics"]} >= {"image auroc", "pixel aupro_mvtec"}
    rows = list(csv.DictReader((tmp_path / "o" / "compare.csv").read_text().splitlines()))
    assert tuple(rows[0]) == compare.COLUMNS
    assert len(rows) == len(written["scans"]) == 9
    refused = CliRunner().invoke(app, ["compare", *map(str, runs), "--resamples", "1"])
    assert isinstance(refused.exception, InputError)


def test_without_metrics_the_tables_still_print(runs):
    bare = compare.Comparison(runs[0], runs[1], (), (), (), {"part": None}, ("a note [b]",))
    console = Console(record=True, width=100)
    compare.print_comparison(console, bare)
    text = console.export_text()
    assert "settings: no difference" in text
    assert "a note [b]" in text
