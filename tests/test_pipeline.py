import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import muscjax
from muscjax import cae, config, extract, geometry, outputs, pipeline, scoring
from muscjax.errors import InputError
from muscjax.types import Features
from tests.budget import largest_intermediate
from tests.networks import golden_point_mae, golden_vit
from tests.reference import scoring as reference


def small(**changes):
    """The released configuration at sizes that compile in a moment."""
    base = config.released()
    ipg = dataclasses.replace(base.ipg, groups=16, group_size=8, initial_size=5)
    return dataclasses.replace(base, ipg=ipg, **changes)


def image_tokens(images):
    """A stand-in network: 4×4 patches of 8 pixels, two stages of six channels."""
    x = images.astype(jnp.float32).reshape(-1, 4, 8, 4, 8, 3)
    mean, spread = x.mean(axis=(2, 4)), x.std(axis=(2, 4))
    tokens = jnp.concatenate([mean, spread], axis=-1).reshape(len(images), 16, 6)
    return jnp.stack([tokens, jnp.sqrt(tokens + 1)])


def point_tokens(cloud, groups):
    """A stand-in descriptor: the spread of each group, one stage."""
    around = cloud.points[groups.indices] - groups.centers[:, None]
    return jnp.concatenate([around.std(axis=1), jnp.abs(around).max(axis=1)], axis=1)[None]


def scans(n, seed=0, side=32):
    rng = np.random.default_rng(seed)
    images = rng.random((n, side, side, 3)).astype(np.float32)
    row, column = np.meshgrid(*2 * [np.arange(side, dtype=np.float32)], indexing="ij")
    xyz = np.stack([(column - 15.5) * 1e-3, (row - 15.5) * 1e-3, np.full_like(row, 0.5)], axis=-1)
    clouds = xyz + rng.normal(size=(n, side, side, 3)).astype(np.float32) * np.float32(2e-4)
    clouds[:, :6] = 0
    return images, clouds.astype(np.float32)


def run(images, clouds, settings=None, **keywords):
    return muscjax.detect(
        images,
        clouds,
        image_backbone=None if images is None else image_tokens,
        point_backbone=None if clouds is None else point_tokens,
        config=settings or small(),
        **keywords,
    )


@pytest.fixture(scope="module")
def recorded(golden, tmp_path_factory):
    """The end-to-end golden run, once: our detection beside the arrays of the authors' code."""
    folder, arrays = tmp_path_factory.mktemp("networks"), golden("end_to_end")
    settings = config.override(config.released(), "ipg.groups=64", "ipg.group_size=32", "ipg.initial_size=20")
    images = np.moveaxis(arrays["images"], 1, -1)
    raw = np.moveaxis(arrays["xyz_raw"], 1, -1)
    clouds = [geometry.cloud_from_xyz(xyz) for xyz in raw]
    image, _ = extract.extract_images(images, golden_vit(golden("vit_dino"), folder), settings)
    points, _, groups = extract.extract_points(
        clouds, golden_point_mae(golden("point_mae"), folder), settings
    )
    shape = {"grid_hw": (14, 14), "map_hw": (112, 112)}
    per_stage = [
        pipeline.score(Features(image[s : s + 1], points[s : s + 1]), groups, settings, **shape)
        for s in range(3)
    ]
    scores = pipeline.score(Features(image, points), groups, settings, **shape)
    detection = pipeline.finish(scores, clouds, groups, settings, **shape)
    return arrays, image, points, groups, per_stage, detection


def test_golden_features(recorded, golden):
    _, image, points, _, _, _ = recorded
    features = golden("end_to_end_feats")
    for s, block in enumerate((3, 7, 11)):
        assert np.abs(image[s] - features[f"Z_2d_stage{block}"]).max() <= 1e-5
        assert np.abs(points[s] - features[f"Z_3d_stage{block}"]).max() <= 1e-5


def test_golden_groups(recorded):
    arrays, _, _, groups, _, _ = recorded
    np.testing.assert_array_equal(groups.center_index, arrays["center_idx"])
    np.testing.assert_array_equal(np.sort(groups.indices), np.sort(arrays["group_idx"]))
    np.testing.assert_array_equal(groups.pixel, arrays["center_pixel_index"])
    assert np.abs(groups.curvature - arrays["curvatures"]).max() <= 1e-5


def test_golden_stage_scores(recorded):
    arrays, _, _, _, per_stage, _ = recorded
    for s in range(3):
        for found, name in ((per_stage[s].image, "msm_2d"), (per_stage[s].points, "msm_3d")):
            difference = np.abs(found - arrays[name][s])
            assert difference.max() <= 1.5e-3
            assert np.median(difference) <= 1e-6


def test_golden_stage_means(recorded):
    arrays, *_, detection = recorded
    image = arrays["patch_scores_2d_mean"].reshape(8, -1)
    assert np.abs(detection.patch_scores.image - image).max() <= 5e-4
    assert np.abs(detection.patch_scores.points - arrays["point_scores_3d_mean"]).max() <= 5e-4


def test_golden_maps_and_scores(recorded):
    arrays, *_, detection = recorded
    for i in range(8):
        quantum = arrays["map3d_preblur"][i].max() / 255
        limit = 5e-4 + 1.5 * quantum
        assert np.abs(detection.anomaly_map[i] - arrays["anomaly_maps"][i]).max() <= limit
    # ac_score is recorded before, scores_cls after RsCon
    normalised = (arrays["ac_score"] - arrays["ac_score"].min()) / np.ptp(arrays["ac_score"])
    ours = np.asarray(detection.map_max)
    assert np.abs((ours - ours.min()) / np.ptp(ours) - normalised).max() <= 1e-3
    assert np.abs(detection.pred_score - arrays["scores_cls"]).max() <= 1e-3


def test_golden_salient_features(recorded):
    arrays, *_, detection = recorded
    assert np.abs(detection.patch_scores.salient - arrays["salient_feats"]).max() <= 1e-5


@pytest.mark.parametrize("modality", ["image", "points", "both"])
@pytest.mark.parametrize("preset", [config.released, config.paper])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_few_samples_are_finite(n, preset, modality):
    images, clouds = scans(n)
    settings = dataclasses.replace(preset(), ipg=dataclasses.replace(preset().ipg, **_sizes()))
    found = run(images if modality != "points" else None, clouds if modality != "image" else None, settings)
    assert found.anomaly_map.shape == (n, 32, 32)
    for values in jax.tree.leaves(found):
        assert np.isfinite(values).all()


def _sizes():
    return {"groups": 16, "group_size": 8, "initial_size": 5}


def test_image_only_equals_the_reference():
    # Random directions lie far enough apart for a float32 product; near-duplicates have a bound of their own.
    features = np.random.default_rng(0).normal(size=(2, 6, 16, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    found = pipeline.score(Features(features, None), None, small(), grid_hw=(4, 4), map_hw=(32, 32))
    expected = np.mean([reference.mutual_scores(stage) for stage in features], axis=0)
    np.testing.assert_allclose(found.image, expected, atol=2e-6)


def test_identical_samples_score_alike():
    images, clouds = scans(1)
    found = run(np.repeat(images, 4, axis=0), np.repeat(clouds, 4, axis=0))
    assert np.ptp(found.pred_score) == 0
    assert np.asarray(found.anomaly_map).max() <= 2e-3


def test_a_scan_without_foreground_is_scored_by_its_image():
    images, clouds = scans(5)
    clouds[2] = 0
    found = run(images, clouds)
    alone = run(images, None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    np.testing.assert_allclose(found.anomaly_map[2], alone.anomaly_map[2], atol=1e-5)
    np.testing.assert_array_equal(found.patch_scores.points[2], 0)


def test_all_scans_without_foreground_equal_the_image_run():
    images, clouds = scans(4)
    found = run(images, np.zeros_like(clouds))
    np.testing.assert_allclose(found.anomaly_map, run(images, None).anomaly_map, atol=1e-5)


def test_a_cloud_smaller_than_its_groups():
    images, clouds = scans(4)
    clouds[1, 9:] = 0
    clouds[1, :, 3:] = 0
    found = run(images, clouds)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_one_patch():
    images, _ = scans(4)
    found = muscjax.detect(
        images, image_backbone=lambda x: x.mean(axis=(1, 2))[None, :, None], config=small()
    )
    assert np.ptp(found.anomaly_map[0]) == 0
    assert np.isfinite(found.pred_score).all()


def test_permuting_the_scans_permutes_the_results():
    images, clouds = scans(6)
    order = np.random.default_rng(1).permutation(6)
    there, here = run(images, clouds), run(images[order], clouds[order])
    # Near-ties of CAE's ranks may flip, so the bulk is compared tightly and the rest loosely.
    difference = np.abs(np.asarray(here.anomaly_map) - np.asarray(there.anomaly_map)[order])
    assert np.median(difference) <= 1e-6
    single = run(images, None).anomaly_map
    np.testing.assert_allclose(run(images[order], None).anomaly_map, np.asarray(single)[order], atol=1e-5)


def test_plans_agree():
    images, clouds = scans(6)
    symmetric = run(images, clouds)
    plan = scoring.plan
    try:
        scoring.plan = lambda *a, **k: dataclasses.replace(plan(*a, **k), kind="rows")
        rows = run(images, clouds)
    finally:
        scoring.plan = plan
    np.testing.assert_array_equal(symmetric.anomaly_map, rows.anomaly_map)


def test_one_stage_of_points_is_measured_once(monkeypatch):
    """The distances of a descriptor that meets every stage of the image are found once, to the same bits."""
    images, clouds = scans(6)
    found = pipeline.extract(
        images, clouds, image_backbone=image_tokens, point_backbone=point_tokens, config=small()
    )
    shape = {"grid_hw": found.grid_hw, "map_hw": found.map_hw}
    repeated = dataclasses.replace(found.features, points=np.repeat(found.features.points, 2, axis=0))
    expected = pipeline.score(repeated, found.groups, small(), **shape)
    measured, plain = [], pipeline.measure_stage
    monkeypatch.setattr(
        pipeline, "measure_stage", lambda x, *a, **k: measured.append(x.shape) or plain(x, *a, **k)
    )
    scored = pipeline.score(found.features, found.groups, small(), **shape)
    assert len(measured) == 1
    assert measured[0][1:] == found.features.points.shape[2:]
    np.testing.assert_array_equal(scored.image, expected.image)
    np.testing.assert_array_equal(scored.points, expected.points)


def test_a_stage_is_replaced_by_an_argument():
    images, clouds = scans(5)
    settings = small()
    seen = []

    def no_fusion(image, points, patch, group_valid, ref_valid, cae_config):
        seen.append((image.shape, points.shape))
        return image, points

    replaced = run(images, clouds, settings, fuse=no_fusion)
    off = run(images, clouds, config.override(settings, "cae.enabled=false"))
    np.testing.assert_allclose(replaced.anomaly_map, off.anomaly_map, atol=1e-6)
    assert seen
    averaged = run(images, None, settings, average=scoring.plain_average)
    mean = run(images, None, config.override(settings, "scoring.average=mean"))
    np.testing.assert_array_equal(averaged.anomaly_map, mean.anomaly_map)
    raw = run(images, clouds, settings, rescore=lambda scores, features, **_: scores)
    np.testing.assert_allclose(raw.pred_score, raw.map_max)


def test_subsets_score_within_their_parts():
    images, _ = scans(7)
    settings = config.override(small(), "run.subsets=3", "run.seed=5")
    parts = pipeline.subset_ids(7, 3, 5)
    assert sorted(map(len, parts)) == [2, 2, 3]
    assert sorted(np.concatenate(parts)) == list(range(7))
    found = run(images, None, settings)
    for ids in parts:
        alone = run(images[ids], None)
        np.testing.assert_allclose(np.asarray(found.anomaly_map)[ids], alone.anomaly_map, atol=1e-6)
    with pytest.raises(InputError, match="fewer than two"):
        run(images, None, config.override(small(), "run.subsets=4"))


def test_a_second_set_of_the_same_size_compiles_nothing():
    first, second = scans(6, seed=1), scans(7, seed=2)
    run(*first)
    with outputs.count_compiles() as compiles:
        run(*first)
        run(second[0][:6], second[1][:6])
    assert compiles["programs"] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda i, c: run(i[:1], c[:1]), "at least two scans"),
        (lambda i, c: run(i, c[:3]), "4 images and 3 clouds"),
        (lambda i, c: run(None, None), "neither images nor clouds"),
        (lambda i, c: muscjax.detect(i), "image data needs image_backbone"),
        (lambda i, c: run(None, [*c[:3], c[3][:16]]), r"clouds\[3\]: found shape"),
        (lambda i, c: run(None, [geometry.cloud_from_xyz(x) for x in c]), "need config.input.map_size"),
        (
            lambda i, c: run(
                None,
                [geometry.cloud_from_xyz(x) for x in c],
                config.override(small(), "input.map_size=16"),
            ),
            "expected less than 16·16",
        ),
        (
            lambda i, c: muscjax.detect(i * np.nan, image_backbone=image_tokens),
            r"images\[0\]: found NaN or infinity",
        ),
        (
            lambda i, c: muscjax.detect((65535 * i).astype(np.uint16), image_backbone=image_tokens),
            r"images\[0\]: found .* uint16, expected .* uint8",
        ),
        (
            lambda i, c: muscjax.detect(255 * i, image_backbone=image_tokens),
            r"images\[0\]: found floats up to \d+",
        ),
        (
            lambda i, c: muscjax.detect(i[..., 0], image_backbone=image_tokens),
            r"images\[0\]: found \(\d+, \d+\) ",
        ),
    ],
)
def test_bad_arguments_are_named(change, named):
    with pytest.raises(InputError, match=named):
        change(*scans(4))


@pytest.mark.parametrize(("n", "channels"), [(112, 768), (640, 64)])
def test_no_intermediate_of_a_stage_outgrows_the_budget(n, channels):
    """Both modalities with the patches of DINO ViT-B/8 and Point-MAE, in both plans."""
    settings = config.override(config.released(), f"run.memory_budget={1 << 30}")
    budget = settings.run.memory_budget
    plan = scoring.plan(n, (784, 1024), memory_budget=budget)
    image = jax.ShapeDtypeStruct((n, 784, channels), jnp.float32)
    points = jax.ShapeDtypeStruct((n, 1024, channels // 2), jnp.float32)
    fields = {
        "indices": ((n, 1024, 128), jnp.int32),
        "centers": ((n, 1024, 3), jnp.float32),
        "center_index": ((n, 1024), jnp.int32),
        "curvature": ((n, 1024), jnp.float32),
        "pixel": ((n, 1024), jnp.int32),
        "valid": ((n, 1024), jnp.bool),
    }
    groups = muscjax.PointGroups(**{k: jax.ShapeDtypeStruct(*v) for k, v in fields.items()})
    stage = functools.partial(
        pipeline.score_stage,
        plan=plan,
        scoring_config=settings.scoring,
        cae_config=settings.cae,
        grid_hw=(28, 28),
        map_hw=(224, 224),
        fuse=cae.enhance,
        average=scoring.interval_average,
    )
    program = jax.make_jaxpr(stage)(image, points, groups, jax.ShapeDtypeStruct((), jnp.int32))
    assert plan.kind == ("symmetric" if n == 112 else "rows")
    assert largest_intermediate(program.jaxpr) <= budget // 2


def test_features_beyond_the_budget_are_streamed(monkeypatch):
    """640 scans of ViT-B/8 hold 1.4 GiB per stage; nothing is allocated here to say so."""
    features = Features(np.broadcast_to(np.float32(0), (3, 640, 784, 768)), None)
    settings = config.override(config.released(), f"run.memory_budget={1 << 30}")
    with pytest.raises(InputError, match=r"640 scans take 1\.4 GiB, more than 1\.0 GiB"):
        pipeline.plan_of(features, settings)
    monkeypatch.setattr(
        pipeline.streaming, "score_stage", lambda *given, **settings: [np.zeros((640, 784), np.float32), None]
    )
    found = pipeline.score(features, None, settings, grid_hw=(28, 28), map_hw=(224, 224))
    assert found.salient.shape == (640, 768)
