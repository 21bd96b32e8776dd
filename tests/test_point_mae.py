"""The Point-MAE encoder against recorded arrays, a float64 NumPy reference and its own invariances."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from muscjax.backbones import params, point_mae
from muscjax.types import Cloud, PointGroups
from tests.reference import point_mae as reference
from tests.test_vit import nested, random_flat
from weights_convert import convert

TOLERANCE = 1e-5
SMALL = point_mae.Spec(width=24, depth=3, heads=3, taps=(0, 2))
MODES = ("running", "cloud")


def scene(groups: int = 7, size: int = 5, points: int = 40, seed: int = 0, valid=None):
    """A random cloud and random groups of it."""
    rng = np.random.default_rng(seed)
    xyz = jnp.asarray(rng.standard_normal((points, 3)), jnp.float32)
    pixels = jnp.arange(points, dtype=jnp.int32)
    cloud = Cloud(xyz, xyz, jnp.ones(points, bool), pixels)
    centre = rng.integers(0, points, groups)
    return cloud, PointGroups(
        jnp.asarray(rng.integers(0, points, (groups, size)), jnp.int32),
        xyz[centre],
        jnp.asarray(centre, jnp.int32),
        jnp.zeros(groups),
        jnp.asarray(centre, jnp.int32),
        jnp.ones(groups, bool) if valid is None else jnp.asarray(valid),
    )


@pytest.fixture(scope="module")
def small():
    flat = random_flat(SMALL, point_mae.shapes)
    runs = {mode: jax.jit(partial(point_mae.features, spec=SMALL, batch_norm=mode)) for mode in MODES}
    return flat, nested(flat), runs


@pytest.mark.parametrize(("mode", "prefix"), [("running", ""), ("cloud", "trainBN_")])
def test_golden(golden, tmp_path, mode, prefix):
    arrays = golden("point_mae")
    source = {key[3:]: np.ascontiguousarray(a) for key, a in arrays.items() if key.startswith("sd/")}
    save_file(source, tmp_path / "source.safetensors")
    convert(tmp_path / "source.safetensors", tmp_path / "mae.safetensors", heads=3)
    loaded = params.load(tmp_path / "mae.safetensors", kind="points")
    xyz = jnp.asarray(arrays["xyz"])
    cloud = Cloud(xyz, xyz, jnp.ones(len(xyz), bool), jnp.arange(len(xyz), dtype=jnp.int32))
    index = jnp.asarray(arrays["center_idx"][0])
    groups = PointGroups(
        jnp.asarray(arrays["group_idx"][0]),
        jnp.asarray(arrays["center"][0]),
        index,
        jnp.asarray(arrays["curvatures"]),
        index,
        jnp.ones(len(index), bool),
    )
    run = jax.jit(
        partial(point_mae.features, spec=loaded.spec, batch_norm=mode), static_argnames="final_norm"
    )
    out = run(loaded.params, cloud, groups)
    for stage, tap in enumerate((3, 7, 11)):
        np.testing.assert_allclose(out[stage], arrays[f"{prefix}stage{tap}"][0], rtol=0, atol=TOLERANCE)
    if mode == "running":
        raw = run(loaded.params, cloud, groups, final_norm=False)
        for stage, tap in enumerate((3, 7, 11)):
            np.testing.assert_allclose(raw[stage], arrays[f"stage{tap}_prenorm"][0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_equals_float64_reference_jitted_and_not(small, mode):
    flat, tree, runs = small
    cloud, groups = scene(valid=[True] * 5 + [False] * 2)
    local = (
        np.asarray(cloud.points, np.float64)[groups.indices] - np.asarray(groups.centers, np.float64)[:, None]
    )
    wanted = reference.features(
        flat, local, np.asarray(groups.centers, np.float64), np.asarray(groups.valid), SMALL, mode
    )
    outs = [runs[mode](tree, cloud, groups)]
    if mode == "cloud":
        outs.append(point_mae.features(tree, cloud, groups, spec=SMALL, batch_norm=mode))
    for out in outs:
        np.testing.assert_allclose(out[:, :5], np.stack(wanted)[:, :5], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@given(st.permutations(range(7)))
def test_order_of_groups_is_only_an_order(small, mode, order):
    _, tree, runs = small
    cloud, groups = scene()
    shuffled = jax.tree.map(lambda a: a[jnp.asarray(order)], groups)
    out, moved = runs[mode](tree, cloud, groups), runs[mode](tree, cloud, shuffled)
    np.testing.assert_allclose(moved, out[:, jnp.asarray(order)], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 100), kept=st.integers(1, 6))
def test_invalid_groups_touch_no_other(small, mode, seed, kept):
    _, tree, runs = small
    valid = np.arange(7) < kept
    cloud, groups = scene(valid=valid)
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(~valid)
    garbage = dataclasses.replace(
        groups,
        indices=jnp.where(mask[:, None], jnp.asarray(rng.integers(0, 40, (7, 5)), jnp.int32), groups.indices),
        centers=jnp.where(
            mask[:, None], jnp.asarray(9 * rng.standard_normal((7, 3)), jnp.float32), groups.centers
        ),
    )
    out, other = runs[mode](tree, cloud, groups), runs[mode](tree, cloud, garbage)
    np.testing.assert_allclose(other, out, rtol=0, atol=TOLERANCE)
    assert not np.any(out[:, kept:])


@pytest.mark.parametrize("mode", MODES)
def test_padding_equals_fewer_groups(small, mode):
    _, tree, runs = small
    cloud, groups = scene(valid=[True] * 4 + [False] * 3)
    few = jax.tree.map(lambda a: a[:4], groups)
    wanted = runs[mode](tree, cloud, few)
    np.testing.assert_allclose(runs[mode](tree, cloud, groups)[:, :4], wanted, rtol=0, atol=TOLERANCE)


def test_no_valid_group_gives_zeros_not_nan(small):
    _, tree, runs = small
    cloud, groups = scene(valid=[False] * 7)
    for mode in MODES:
        np.testing.assert_array_equal(runs[mode](tree, cloud, groups), 0)


def test_points_of_a_group_have_no_order_and_repeats_no_weight(small):
    _, tree, runs = small
    cloud, groups = scene()
    shuffled = dataclasses.replace(groups, indices=groups.indices[:, ::-1])
    np.testing.assert_allclose(
        runs["running"](tree, cloud, shuffled), runs["running"](tree, cloud, groups), rtol=0, atol=TOLERANCE
    )
    first = dataclasses.replace(groups, indices=groups.indices.at[:, 4].set(groups.indices[:, 3]))
    second = dataclasses.replace(groups, indices=groups.indices.at[:, 4].set(groups.indices[:, 0]))
    np.testing.assert_allclose(
        runs["running"](tree, cloud, first), runs["running"](tree, cloud, second), rtol=0, atol=TOLERANCE
    )


def test_batch_norm_modes_differ_and_cloud_ignores_stored_statistics(small):
    _, tree, runs = small
    cloud, groups = scene()
    norm = tree["encoder"]["first_norm"]
    changed = {**tree, "encoder": {**tree["encoder"], "first_norm": {**norm, "mean": norm["mean"] + 1}}}
    assert np.abs(runs["running"](tree, cloud, groups) - runs["cloud"](tree, cloud, groups)).max() > 0.01
    assert np.abs(runs["running"](changed, cloud, groups) - runs["running"](tree, cloud, groups)).max() > 0.01
    np.testing.assert_array_equal(runs["cloud"](changed, cloud, groups), runs["cloud"](tree, cloud, groups))


def test_vmap_over_clouds(small):
    _, tree, runs = small
    scenes = [scene(seed=seed, valid=[True] * (7 - seed) + [False] * seed) for seed in range(3)]
    clouds, groups = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scenes)
    for mode in MODES:
        out = jax.vmap(runs[mode], in_axes=(None, 0, 0))(tree, clouds, groups)
        for i, (cloud, group) in enumerate(scenes):
            np.testing.assert_allclose(out[i], runs[mode](tree, cloud, group), rtol=0, atol=TOLERANCE)


def test_bfloat16_runs_and_stays_near(small):
    _, tree, runs = small
    cloud, groups = scene()
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    out = jax.jit(partial(point_mae.features, spec=SMALL, dtype=jnp.bfloat16))(half, cloud, groups)
    assert out.dtype == jnp.bfloat16
    assert np.abs(out.astype(np.float32) - runs["running"](tree, cloud, groups)).mean() < 0.03


def test_the_global_half_of_the_encoder_runs_once_per_group(small):
    _, tree, _ = small
    cloud, groups = scene()
    jaxpr = jax.make_jaxpr(partial(point_mae.features, spec=SMALL))(tree, cloud, groups).jaxpr
    wide = [e.invars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert (7, 256) in wide
    assert not any(shape[-1] == 512 and shape != (7, 5, 512) for shape in wide)


@pytest.mark.parametrize(("option", "value"), [("batch_norm", "train"), ("taps", (3,)), ("taps", ())])
def test_unknown_options_are_refused(small, option, value):
    with pytest.raises(ValueError, match=option if option == "batch_norm" else "3 blocks"):
        point_mae.features(small[1], *scene(), spec=SMALL, **{option: value})
