import jax
import jax.numpy as jnp
import numpy as np

from muscjax.batching import each


def test_each_is_the_function_of_every_entry():
    data = {"x": jnp.arange(12, dtype=jnp.float32).reshape(4, 3), "none": None}

    def one(entry):
        return jnp.sum(jnp.sqrt(entry["x"])), entry["x"][::-1]

    expected = [one({"x": row}) for row in data["x"]]
    for run in (each, jax.jit(each, static_argnums=0)):
        total, turned = run(one, data)
        np.testing.assert_allclose(total, [t for t, _ in expected], rtol=1e-6)
        np.testing.assert_array_equal(turned, [t for _, t in expected])


def test_both_ways_are_there_and_a_cpu_program_holds_one():
    """The way is chosen when the program is made: nothing is decided while it runs."""
    jaxpr = jax.make_jaxpr(lambda x: each(jnp.cos, x))(jnp.ones((3, 2)))
    assert str(jaxpr).count("scan[") == 1
    assert str(jaxpr).count("platform_index") == 1
    program = jax.jit(lambda x: each(jnp.cos, x)).lower(jnp.ones((3, 2))).compile().as_text()
    assert "while(" in program
    assert "conditional(" not in program


def test_stages_may_be_batched_at_once():
    """What runs one by one here is what an accelerator runs together."""
    from muscjax import cae, config

    rng = np.random.default_rng(0)
    image, points = (jnp.asarray(rng.random((3, m, 6)), jnp.float32) for m in (9, 7))
    patch = jnp.asarray(rng.integers(0, 9, (3, 7)), jnp.int32)
    data = (image, points, patch, jnp.ones((3, 7), bool), jnp.ones((3, 6), bool))

    def one(sample):
        return cae.enhance(*sample, config.CaeConfig())

    for found, expected in zip(jax.jit(jax.vmap(one))(data), each(one, data), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
