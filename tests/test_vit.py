"""The vision transformer against recorded arrays, a float64 NumPy reference and its own invariances."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from muscjax.backbones import layers, params, vit
from tests.reference import vit as reference
from weights_convert import convert

TOLERANCE = 1e-5
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SMALL = vit.Spec(4, 32, 3, 4, 16, taps=(0, 2))
VARIANTS = {
    "dino": SMALL,
    "clip": dataclasses.replace(
        SMALL,
        activation="quick_gelu",
        pre_norm=True,
        patch_bias=False,
        eps=1e-5,
        interpolation="half_pixel",
        projection=20,
        final_norm=False,
        mean=vit.CLIP_MEAN,
        std=vit.CLIP_STD,
    ),
    "dinov2": dataclasses.replace(SMALL, layer_scale=True, registers=3),
}


def random_flat(spec, shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters with norms and biases away from their neutral values, float64."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        if name.endswith(".var"):
            return 0.5 + rng.random(shape)
        if name.endswith(("scale", "scale1", "scale2")):
            return 1 + 0.3 * values
        return values * (shape[0] ** -0.5 if name.endswith("kernel") else 0.2)

    # Rounded to float32, so that both sides start from the same numbers.
    return {
        name: draw(name, shape).astype(np.float32).astype(np.float64) for name, shape in shapes(spec).items()
    }


def nested(flat: dict[str, np.ndarray]):
    tree: dict = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(value, jnp.float32)
    return tree


def images(size: tuple[int, int] = (16, 16), batch: int = 2, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, *size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def recorded(golden, tmp_path_factory):
    """The golden arrays and the converted network that made them."""
    arrays = golden("vit_dino")
    folder = tmp_path_factory.mktemp("vit")
    source = {key[3:]: np.ascontiguousarray(a) for key, a in arrays.items() if key.startswith("sd/")}
    save_file(source, folder / "source.safetensors")
    convert(folder / "source.safetensors", folder / "vit.safetensors", heads=3, **PLAIN)
    return arrays, params.load(folder / "vit.safetensors", kind="image")


@pytest.mark.parametrize("size", [64, 112])
def test_golden_dino(recorded, size):
    arrays, loaded = recorded
    x = jnp.asarray(arrays[f"x{size}"].transpose(0, 2, 3, 1))
    out = jax.jit(partial(vit.forward, spec=loaded.spec))(loaded.params, x)
    assert loaded.spec.taps == (3, 7, 11)
    for stage, tap in enumerate(loaded.spec.taps):
        wanted = arrays[f"x{size}_layer{tap}"][:, 1:]
        np.testing.assert_allclose(out.tokens[stage], wanted, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(out.class_token, arrays[f"x{size}_cls"], rtol=0, atol=TOLERANCE)


def test_golden_position_quirk(recorded):
    arrays, loaded = recorded
    positions = loaded.params["positions"]
    out = vit.interpolate_positions(positions[1:], (14, 14), spec=loaded.spec)
    np.testing.assert_allclose(out, arrays["pos_embed_interp_112"][0, 1:], rtol=0, atol=TOLERANCE)
    plain = dataclasses.replace(loaded.spec, interpolation="half_pixel")
    other = vit.interpolate_positions(positions[1:], (14, 14), spec=plain)
    assert np.abs(other - out).max() > 0.01


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_equals_float64_reference_jitted_and_not(variant, size):
    spec = VARIANTS[variant]
    flat = random_flat(spec, vit.shapes)
    x = images(size)
    run = partial(vit.forward, spec=spec)
    outs = [jax.jit(run)(nested(flat), x)]
    if size == (24, 8) and variant == "clip":
        outs.append(run(nested(flat), jnp.asarray(x)))
    for b in range(len(x)):
        tokens, token = reference.features(flat, x[b].astype(np.float64), spec, spec.taps, spec.final_norm)
        for out in outs:
            np.testing.assert_allclose(out.tokens[:, b], np.stack(tokens), rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(out.class_token[b], token, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("interpolation", ["dino", "half_pixel"])
@pytest.mark.parametrize("grid", [(2, 7), (9, 5)])
def test_positions_equal_clamped_bicubic(interpolation, grid):
    spec = dataclasses.replace(SMALL, interpolation=interpolation)
    stored = np.random.default_rng(0).standard_normal((16, 5)).astype(np.float32)
    out = jax.jit(partial(vit.interpolate_positions, grid=grid, spec=spec))(stored)
    offset = 0.1 if interpolation == "dino" else 0.0
    wanted = reference.interpolate_positions(stored.reshape(4, 4, 5).astype(np.float64), grid, offset)
    np.testing.assert_allclose(out, wanted.reshape(-1, 5), rtol=0, atol=TOLERANCE)


def test_native_size_keeps_the_stored_positions():
    stored = jnp.asarray(np.random.default_rng(0).standard_normal((16, 5)), jnp.float32)
    for interpolation in ("dino", "half_pixel", "antialias"):
        spec = dataclasses.replace(SMALL, interpolation=interpolation)
        np.testing.assert_array_equal(vit.interpolate_positions(stored, (4, 4), spec=spec), stored)


@pytest.fixture(scope="module")
def small():
    flat = random_flat(SMALL, vit.shapes)
    return nested(flat), jax.jit(partial(vit.features, spec=SMALL))


def test_bytes_equal_fractions(small):
    tree, run = small
    pixels = np.random.default_rng(3).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    np.testing.assert_allclose(run(tree, pixels), run(tree, pixels.astype(np.float32) / 255), atol=2e-6)


def test_one_image_does_not_see_the_others(small):
    tree, run = small
    x = images(batch=3)
    np.testing.assert_allclose(run(tree, x)[:, :1], run(tree, x[:1]), rtol=0, atol=5e-6)


def test_taps_and_final_norm_are_options(small):
    tree, _ = small
    x = jnp.asarray(images())
    run = jax.jit(partial(vit.features, spec=SMALL, taps=(1, 2)), static_argnames="final_norm")
    raw, normed = run(tree, x, final_norm=False), run(tree, x, final_norm=True)
    again = layers.LayerNorm(SMALL.eps).apply({"params": tree["norm"]}, raw)
    np.testing.assert_allclose(normed, again, rtol=0, atol=TOLERANCE)
    assert raw.shape == (2, 2, 16, 32)


def test_bfloat16_runs_and_stays_near(small):
    tree, run = small
    x = images()
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    out = jax.jit(partial(vit.features, spec=SMALL, dtype=jnp.bfloat16))(half, x)
    assert out.dtype == jnp.bfloat16
    assert np.abs(out.astype(np.float32) - run(tree, x)).mean() < 0.03


def test_every_product_is_at_highest_precision(small):
    tree, _ = small
    spec = dataclasses.replace(SMALL, projection=0)
    traced = jax.make_jaxpr(partial(vit.forward, spec=spec))(tree, jnp.zeros((1, 24, 24, 3)))
    found = list(products(traced.jaxpr))
    assert len(found) >= 1 + 6 * SMALL.depth
    highest = jax.lax.Precision.HIGHEST
    assert set(found) == {(highest, highest)}


def products(jaxpr):
    """The precision of every dot_general, in nested computations too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_blocks_after_the_last_tap_are_not_computed(small):
    tree, _ = small
    count = [
        len(
            list(products(jax.make_jaxpr(partial(vit.features, spec=SMALL, taps=taps))(tree, images()).jaxpr))
        )
        for taps in ((0,), (2,))
    ]
    assert count[1] - count[0] == 2 * 6


def test_gelu_is_the_error_function_one():
    x = np.linspace(-6, 6, 241).astype(np.float32)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)]
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(layers.quick_gelu(jnp.asarray(x)), reference.quick_gelu(x), rtol=0, atol=2e-6)


def test_layer_norm_keeps_digits_under_a_large_offset():
    x = 1000 + np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    ones = {"scale": jnp.ones(64), "bias": jnp.zeros(64)}
    out = layers.LayerNorm(1e-6).apply({"params": ones}, jnp.asarray(x))
    wanted = reference.layer_norm(x.astype(np.float64), np.ones(64), np.zeros(64), 1e-6)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "taps", "found"),
    [
        ((1, 18, 16, 3), None, "multiples of 4"),
        ((1, 16, 16), None, "expected"),
        ((1, 16, 16, 3), (3,), "3 blocks"),
        ((1, 16, 16, 3), (), "3 blocks"),
    ],
)
def test_wrong_input_is_refused_when_traced(small, shape, taps, found):
    with pytest.raises(ValueError, match=found):
        vit.features(small[0], jnp.zeros(shape), spec=SMALL, **({} if taps is None else {"taps": taps}))


def test_shapes_name_what_init_makes():
    spec = VARIANTS["clip"]
    tree = jax.jit(partial(vit.init, spec=spec))(jax.random.key(0))
    made = jax.tree_util.tree_flatten_with_path(tree)[0]
    assert {".".join(k.key for k in path): leaf.shape for path, leaf in made} == vit.shapes(spec)
