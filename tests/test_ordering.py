import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muscjax import ordering

VECTORS = hnp.arrays(
    np.float32,
    st.sampled_from([1, 17]),
    elements=st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf]), st.floats(-9, 9, width=32, allow_subnormal=False)
    ),
)


@given(VECTORS)
def test_stable_order_is_numpys_stable_argsort(values):
    expected = np.argsort(values, kind="stable")
    np.testing.assert_array_equal(ordering.stable_order(jnp.asarray(values)), expected)
    np.testing.assert_array_equal(jax.jit(ordering.stable_order)(values), expected)


def test_zeros_of_either_sign_and_subnormals_keep_their_order_when_compiled():
    for values in ([0.0] * 8 + [-0.0] * 9, [1e-40, 0.0, -1e-40, -0.0, 1e-42]):
        order = jax.jit(ordering.stable_order)(np.asarray(values, np.float32))
        np.testing.assert_array_equal(order, np.arange(len(values)))
    for values in np.random.default_rng(0).choice([0.0, -0.0, 1.0, -1.0], (20, 17)).astype(np.float32):
        order = jax.jit(ordering.stable_order)(values)
        np.testing.assert_array_equal(order, np.argsort(values, kind="stable"))


@given(VECTORS)
def test_ascending_sorts(values):
    np.testing.assert_array_equal(ordering.ascending(jnp.asarray(values)), np.sort(values))


def test_ascending_sorts_the_last_axis():
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(ordering.ascending(jnp.asarray(values)), np.sort(values, axis=-1))


def test_the_order_does_not_switch_to_64_bit_arrays():
    order = jax.jit(jax.vmap(ordering.stable_order))(np.zeros((2, 3), np.float32))
    assert order.dtype == jnp.int32
    assert jnp.zeros(3).dtype == jnp.float32


def test_rank_match_gives_the_source_at_the_ranks_of_the_target():
    target = jnp.asarray([3.0, 1.0, 2.0, 1.0], jnp.float32)
    source = jnp.asarray([10.0, 20.0, 30.0, 40.0], jnp.float32)
    np.testing.assert_array_equal(ordering.rank_match(target, source), [40, 10, 30, 20])


def test_rank_match_leaves_inactive_entries_alone():
    target = jnp.asarray([3.0, 9.0, 2.0, 1.0], jnp.float32)
    source = jnp.asarray([10.0, 20.0, 30.0, 40.0], jnp.float32)
    active = jnp.asarray([True, False, True, True])
    np.testing.assert_array_equal(ordering.rank_match(target, source, active), [30, 9, 20, 10])
