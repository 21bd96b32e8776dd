import csv
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from muscjax import config, geometry, inputs, pipeline
from muscjax.ablate import bench as benches
from muscjax.ablate import cells, runner, show
from muscjax.ablate.tables import SEEDS, TABLES, TIME, Draw, Pooling, Table, Variant
from muscjax.backbones import descriptors
from muscjax.cli import app
from muscjax.console import Stages
from muscjax.datasets import Dataset, Prepared, Scan
from muscjax.errors import InputError
from muscjax.extract import Bound, extract_points
from muscjax.requests import Request
from muscjax.types import Frame
from tests.conftest import shared

SIDE, N, DEFECTIVE = 32, 8, 4  # one bucket of samples for the whole set and for its parts
CALLS = {"image": 0}


class Network:
    """A stand-in with a class feature: 4×4 patches of 8 pixels, two stages of six channels."""

    def __call__(self, images):
        return self.with_class_token(images)[0]

    def with_class_token(self, images):
        CALLS["image"] += 1
        x = images.astype(jnp.float32).reshape(-1, 4, 8, 4, 8, 3) / 255
        tokens = jnp.concatenate([x.mean(axis=(2, 4)), x.std(axis=(2, 4))], axis=-1).reshape(-1, 16, 6)
        return jnp.stack([tokens, jnp.sqrt(tokens + 1)]), tokens.mean(axis=1)


def describe(cloud, groups):
    around = cloud.points[groups.indices] - groups.centers[:, None]
    return jnp.concatenate([around.std(axis=1), jnp.abs(around).max(axis=1)], axis=1)[None]


def small():
    return config.override(config.released(), "ipg.groups=16", "ipg.group_size=8", "ipg.initial_size=5")


@pytest.fixture(scope="module")
def scene():
    """A set with a dent and a dark spot in its defective scans, as ``inputs.plan`` and ``load`` give it."""
    rng = np.random.default_rng(0)
    settings = dataclasses.replace(small(), input=config.InputConfig(image_size=SIDE, map_size=SIDE))
    row, column = np.meshgrid(*2 * [np.arange(SIDE, dtype=np.float32)], indexing="ij")
    images, prepared, scans = [], [], []
    for i in range(N):
        image = rng.integers(90, 130, (SIDE, SIDE, 3)).astype(np.uint8)
        xyz = np.stack([(column - 15.5) * 1e-3, (row - 15.5) * 1e-3, np.full_like(row, 0.5)], axis=-1)
        xyz += rng.normal(size=xyz.shape).astype(np.float32) * np.float32(5e-5)
        mask = np.zeros((SIDE, SIDE), bool)
        if i < DEFECTIVE:
            mask[12:20, 8 + i : 14 + i] = True
            image[mask] //= 3
            xyz[mask, 2] += np.float32(3e-3)
        xyz[:3] = 0
        images.append(image)
        frame = Frame((SIDE, SIDE), (SIDE, SIDE))
        prepared.append(Prepared(None, geometry.cloud_from_xyz(xyz), frame, mask, (xyz != 0).all(axis=-1)))
        scans.append(
            Scan("part", "test", "dent" if i < DEFECTIVE else "good", f"{i:03d}", label=int(i < DEFECTIVE))
        )
    dataset = Dataset(None, "mvtec3d", "part", tuple(scans))
    clouds = [item.cloud for item in prepared]
    loaded = inputs.Inputs(dataset, "both", settings, tuple(prepared), np.stack(images), clouds)
    return loaded, inputs.Plan((dataset,), ("both",), Network(), describe, settings)


@pytest.fixture
def run(scene, monkeypatch):
    loaded, plan = scene
    monkeypatch.setattr(inputs, "plan", lambda request, settings: plan)
    monkeypatch.setattr(inputs, "load", lambda *given: loaded)

    def go(out, *tables, said=None):
        observe = Stages(lambda *step: None, lambda line: None if said is None else said.append(line))
        return runner.run(Request(path=out, out=out), small(), tables, observe)

    return go


@pytest.fixture(scope="module")
def bench(scene, tmp_path_factory):
    observe = Stages(lambda *step: None, lambda line: None)
    return benches.open_bench(*scene, tmp_path_factory.mktemp("features"), observe)


MIXED = Table(
    "mixed",
    "a row of every kind",
    (
        Variant("Ours"),
        Variant("w/o IA", ("scoring.average=mean",)),
        Variant("LNAMD", pooling=Pooling("uniform", apart=True)),
        Variant("w/o IPG", ("ipg.expansion=none",)),
        Variant("k=2", ("rscon.windows=[2]",)),
        Variant("batch=4", draw=Draw(batch=4), seeds=2),
        Variant("normals 1/2", draw=Draw(cut=2), seeds=2),
        Variant("no normals", draw=Draw(cut=0)),
        Variant("MuSc", modality="image", method="MuSc", timed=True),
        Variant("impossible", ("ipg.initial_size=80",)),
    ),
    (*TABLES["III"].metrics, "ap_seg_defective", *TIME),
)


@pytest.fixture(scope="module")
def mixed(scene, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("mixed"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "plan", lambda request, settings: scene[1])
        patch.setattr(inputs, "load", lambda *given: scene[0])
        observe = Stages(lambda *step: None, said.append)
        results = runner.run(Request(path=out, out=out), small(), (MIXED,), observe)
    return out, results, said


def value(results, setting, metric):
    return next(row for row in results if (row.setting, row.metric) == (setting, metric))


def test_every_row_is_there_with_its_yardstick(mixed):
    _, results, said = mixed
    settings = list(dict.fromkeys(row.setting for row in results))
    assert settings == [*(v.setting for v in MIXED.variants[:-1]), "blurred mask"]
    assert said == [
        "Table mixed: impossible is left out: --set: ipg.initial_size must lie in 1..ipg.group_size"
    ]
    assert {row.setting for row in results if row.yardstick} == {"blurred mask"}
    assert all(0 <= row.value <= 100 for row in results if row.metric not in TIME)
    assert all(value(results, "MuSc", metric).value > 0 for metric in TIME)


def test_a_row_is_what_the_pipeline_says(scene, mixed):
    loaded, _ = scene
    settings = config.override(loaded.config, "scoring.average=mean")
    detection = pipeline.detect(
        loaded.images, loaded.clouds, image_backbone=Network(), point_backbone=describe, config=settings
    )
    expected = cells.measured(
        np.array([scan.label for scan in loaded.dataset.scans]),
        np.asarray(detection.pred_score),
        [item.mask for item in loaded.prepared],
        list(np.asarray(detection.anomaly_map)),
        [item.foreground for item in loaded.prepared],
    )
    for metric in MIXED.metrics[:7]:
        assert value(mixed[1], "w/o IA", metric).value == pytest.approx(100 * expected[metric], abs=1e-3)
    assert value(mixed[1], "w/o IA", "ap_seg").value != value(mixed[1], "Ours", "ap_seg").value


def test_differences_and_intervals(mixed):
    _, results, _ = mixed
    ours, other = value(results, "Ours", "ap_seg"), value(results, "w/o IA", "ap_seg")
    assert (ours.difference, ours.difference_low, ours.difference_high) == (0, 0, 0)
    assert other.difference == pytest.approx(other.value - ours.value)
    assert other.difference_low <= other.difference_high
    assert ours.low <= ours.value <= ours.high
    seeds = value(results, "batch=4", "ap_seg")
    assert seeds.seeds == 2
    assert seeds.std is not None
    assert seeds.low is None
    assert seeds.difference_low is None
    cut = value(results, "normals 1/2", "ap_seg")  # another set of scans: no difference to the whole one
    assert cut.difference is None
    assert {row.metric for row in results if row.setting == "no normals"} >= {"ap_seg", "ap_seg_defective"}
    assert not any(row.metric.endswith("_cls") for row in results if row.setting == "no normals")


def test_the_csv_holds_what_was_returned(mixed):
    out, results, _ = mixed
    with (out / "mixed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == runner.COLUMNS
    assert len(rows) == len(results)
    for row, result in zip(rows, results, strict=True):
        assert (row["setting"], row["metric"]) == (result.setting, result.metric)
        assert float(row["value"]) == pytest.approx(result.value, abs=1e-3)
    assert (out / "mixed.png").read_bytes()[:4] == b"\x89PNG"
    assert str(out) not in (out / "mixed.csv").read_text()


def test_a_second_call_computes_nothing_and_says_the_same(mixed, run, monkeypatch):
    out, results, _ = mixed
    before, calls = sorted(out.rglob("*.json")), CALLS["image"]

    def never(*given):
        raise AssertionError("computed again")

    monkeypatch.setattr(cells, "evaluate", never)
    again = run(out, MIXED)
    assert [dataclasses.replace(row, seconds=None) for row in again] == [
        dataclasses.replace(row, seconds=None) for row in results
    ]
    assert sorted(out.rglob("*.json")) == before
    assert CALLS["image"] == calls


def test_only_what_is_missing_is_computed(mixed, run, monkeypatch):
    out, results, _ = mixed
    finished = {path: json.loads(path.read_text()) for path in (out / ".cells").iterdir()}
    gone = next(path for path, cell in finished.items() if (cell["setting"], cell["seed"]) == ("batch=4", 1))
    gone.unlink()
    done, whole = [], cells.evaluate
    monkeypatch.setattr(cells, "evaluate", lambda b, cell: done.append(cell) or whole(b, cell))
    again = run(out, MIXED)
    assert [(cell.variant.setting, cell.seed) for cell in done] == [("batch=4", 1)]
    expected = value(results, "batch=4", "ap_seg")
    assert value(again, "batch=4", "ap_seg").value == pytest.approx(expected.value, abs=1e-3)
    gone.write_text("{")
    with pytest.raises(InputError, match="not a finished row"):
        run(out, MIXED)
    gone.unlink()


def test_features_come_from_the_store(bench):
    first = benches.image_tokens(bench, "MuSc-V2")
    calls = CALLS["image"]
    fresh = dataclasses.replace(bench, memory=benches.Memory(1 << 20))
    assert benches.image_tokens(fresh, "MuSc-V2") == first
    tokens = Network()(jnp.asarray(bench.inputs.images))
    stored = benches.column(first, "tokens")[:]
    np.testing.assert_allclose(np.moveaxis(stored, 1, 0), tokens, atol=1e-6)
    assert CALLS["image"] <= calls + 2  # a trace for the shapes and the one above
    np.testing.assert_allclose(benches.class_features(bench), tokens[0].mean(axis=1), atol=1e-6)


def test_descriptors_of_points_serve_every_grouping(bench, tmp_path, monkeypatch):
    """FPFH is computed per point, once; a grouping only averages it. Its histograms are stood in for here."""

    def per_point(cloud, settings):
        return jnp.concatenate([cloud.points, cloud.points**2], axis=1)

    monkeypatch.setattr(descriptors, "cloud_fpfh", per_point)
    fpfh = Bound(descriptors.fpfh, config.FpfhConfig(normal_radius=0.123))
    plan = dataclasses.replace(bench.plan, point_backbone=fpfh)
    fresh = dataclasses.replace(bench, plan=plan, folder=tmp_path, memory=benches.Memory(1 << 30))
    settings = config.override(bench.config, "ipg.expansion=none", "snamd.points=false")
    part = benches.point_part(fresh, settings, Pooling())
    expected, _, groups = extract_points(bench.inputs.clouds, fpfh, settings)
    np.testing.assert_allclose(part.features, expected, atol=1e-6)
    np.testing.assert_array_equal(part.groups.pixel, groups.pixel)
    kept = fresh.memory.get("per point", lambda: pytest.fail("computed again"))
    assert [len(rows) for rows in kept] == [len(cloud.points) for cloud in bench.inputs.clouds]


def test_the_same_computation_has_one_key(bench):
    def key(variant, seed=0):
        return cells.cell_key(bench, cells.cell_of(bench, variant, seed))

    by_name = {variant.setting: variant for variant in TABLES["V"].variants}
    assert key(by_name["LNA+SWPooling"]) == key(by_name["SNAMD (r=3)"])
    assert key(by_name["SNAMD (Ours)"]) == key(Variant("Ours")) == key(Variant("w IPG", need="points"))
    keys = {key(variant) for variant in TABLES["V"].variants}
    assert len(keys) == 9
    draws = {key(Variant("x", draw=Draw(batch=5)), seed) for seed in range(3)}
    assert len(draws | keys) == 12


def test_rows_that_would_differ_from_nothing_are_left_out(bench, scene):
    loaded, plan = scene
    image = dataclasses.replace(bench, inputs=dataclasses.replace(loaded, kind="image"))
    for table, setting in (("III", "w/o IPG"), ("IV", "w/o CAE"), ("fig11", "K_iter=20")):
        variant = next(v for v in TABLES[table].variants if v.setting == setting)
        assert "differs from nothing" in cells.cell_of(image, variant, 0)
        assert isinstance(cells.cell_of(bench, dataclasses.replace(variant, overrides=()), 0), cells.Cell)
    assert "the run uses image only" in cells.cell_of(image, Variant("g=1", modality="points"), 0)
    textured = dataclasses.replace(bench, plan=dataclasses.replace(plan, image_backbone=describe))
    musc = Variant("MuSc", modality="image", method="MuSc")
    assert "class feature of a network" in cells.cell_of(textured, musc, 0)


def test_labels_are_needed(bench, scene):
    loaded, _ = scene
    scans = (dataclasses.replace(loaded.dataset.scans[0], label=None), *loaded.dataset.scans[1:])
    blind = dataclasses.replace(loaded, dataset=dataclasses.replace(loaded.dataset, scans=scans))
    with pytest.raises(InputError, match=r"ablations need labels, part/test/dent/000 has none"):
        cells.labels_of(dataclasses.replace(bench, inputs=blind))


@pytest.mark.parametrize(
    ("n", "batch", "sizes"), [(108, 5, {4, 5}), (108, 9, {9}), (11, 5, {3, 4}), (3, 2, {3})]
)
def test_batches_are_balanced_and_never_of_one(n, batch, sizes):
    parts = cells.parts_of(n, Draw(batch=batch), seed=1)
    assert {len(part) for part in parts} == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


def test_normals_are_cut_and_defects_stay():
    labels = np.array([0, 1, 0, 0, 1, 0, 0])
    assert len(cells.kept_scans(labels, Draw(cut=2), 0)) == 2 + 3
    np.testing.assert_array_equal(cells.kept_scans(labels, Draw(cut=0), 0), [1, 4])
    np.testing.assert_array_equal(cells.kept_scans(labels, Draw(), 0), np.arange(7))
    drawn = {tuple(cells.kept_scans(labels, Draw(cut=3), seed)) for seed in range(8)}
    assert len(drawn) > 1


def test_memory_keeps_what_was_used_last():
    memory, made = benches.Memory(budget=100), []

    def get(key, size=40):
        return memory.get(key, lambda: made.append(key) or np.zeros(size, np.uint8))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]  # b was dropped for c
    get("large", 500)
    get("large", 500)
    assert made[-1] == "large"


def test_every_published_cell_belongs_to_a_row():
    """Each setting of the packaged numbers is a row of its table, and they are the paper's values."""
    rows = {
        (table.name, variant.modality, variant.setting)
        for table in TABLES.values()
        for variant in table.variants
    }
    for table, _, modality, setting in runner._published():
        assert (table, None, setting) in rows or (table, modality, setting) in rows
    with shared("published.csv").open(newline="") as file:
        stated = [
            row for row in csv.DictReader(file) if row["table"] in TABLES and "ViT-L" not in row["backbone"]
        ]
    ours = [row for row in stated if row["method"] in ("MuSc", "MuSc-V2")]
    assert len(ours) > 200
    for row in ours:
        setting = "MuSc" if row["method"] == "MuSc" else row["setting"]
        found = runner.published_value(row["table"], row["dataset"], row["modality"], setting, row["metric"])
        assert found == float(row["value"])
    assert runner.published_value("III", None, "both", "w IPG", "ap_seg") is None


def test_seeds_of_the_paper():
    for table in TABLES.values():
        for variant in table.variants:
            drawn = variant.draw.parts > 1 or variant.draw.batch
            assert (variant.seeds == SEEDS) == bool(drawn), variant.setting


def test_the_weight_without_exp_prefers_the_less_similar():
    weight = benches._WEIGHTS["distance"]
    found = np.asarray(weight(jnp.asarray([0.0, 0.5, 2.0])))
    assert found[0] > 0  # a window of one is divided by it
    assert found[2] / found[1] == pytest.approx(4, rel=1e-3)


def test_tables_are_printed_with_published_numbers_beside(mixed):
    _, results, _ = mixed
    rows = [dataclasses.replace(row, table="III", published=54.7) for row in results]
    console = Console(width=140, record=True)
    show.print_table(console, TABLES["III"], rows)
    text = console.export_text()
    assert "Table III: iterative point grouping, part" in text
    assert "54.7" in text
    assert "both batch=4" in text
    assert "±" in text
    assert "blurred mask" in text
    assert "published: mean of the whole data set with ViT-B/8 and Point-MAE" in text


def test_means_over_categories_need_every_category(mixed):
    _, results, _ = mixed
    other = [
        dataclasses.replace(row, category="b", value=row.value + 2)
        for row in results
        if row.setting == "Ours"
    ]
    rows = runner.of_table([*results, *other], MIXED)
    means = [row for row in rows if row.category == "mean"]
    assert {row.setting for row in means} == {"Ours"}
    assert value(means, "Ours", "ap_seg").value == pytest.approx(value(results, "Ours", "ap_seg").value + 1)


def test_an_unknown_table_is_one_line(tmp_path):
    with pytest.raises(
        InputError, match="--table: found 'IX', expected one of III, IV, V, VI, VII, VIII, fig10"
    ):
        runner.chosen_tables(["IX"])
    assert [table.name for table in runner.chosen_tables(["fig10", "III"])] == ["III", "fig10"]
    assert len(runner.chosen_tables(["all"])) == len(TABLES)
    result = CliRunner().invoke(app, ["ablate", str(tmp_path), "--table", "IX"])
    assert isinstance(result.exception, InputError)
