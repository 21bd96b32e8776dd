"""The k smallest of a row against a full lexicographic sort, ties included."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax.selection import first_true, kth_smallest, select, smallest, sort_pairs

SHAPES = [(50, 10), (20, 30), (300, 299)]
jitted = jax.jit(smallest, static_argnums=2)


def expected(values, ids, k):
    """Row by row: sorted by (value, id), finite entries only, then inf and 0."""
    out = np.full((len(values), k), np.inf, np.float32), np.zeros((len(values), k), np.int32)
    for row, (v, i) in enumerate(zip(values, ids, strict=True)):
        order = np.lexsort((i, v))
        order = order[np.isfinite(v[order])][:k]
        out[0][row, : len(order)], out[1][row, : len(order)] = v[order], i[order]
    return out


def rows(seed, columns, kind, count=4):
    rng = np.random.default_rng(seed)
    values = rng.random((count, columns)).astype(np.float32) * np.float32(10.0 ** rng.integers(-20, 20))
    if kind == "tied":
        values = rng.integers(0, 4, (count, columns)).astype(np.float32)
    if kind == "absent":
        values = np.where(rng.random((count, columns)) < 0.8, np.inf, values).astype(np.float32)
    if kind == "equal":
        values = np.full((count, columns), values[0, 0])
    ids = np.stack([rng.permutation(5000)[:columns] for _ in range(count)]).astype(np.int32)
    return values, ids


@pytest.mark.parametrize(("columns", "k"), SHAPES)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["plain", "tied", "absent", "equal"]))
def test_smallest_is_a_sorted_prefix(columns, k, seed, kind):
    values, ids = rows(seed, columns, kind)
    want = expected(values, ids, k)
    for got, array in zip(jitted(values, ids, k), want, strict=True):
        np.testing.assert_array_equal(got, array)


def test_unjitted_and_jitted_agree():
    values, ids = rows(0, 50, "tied")
    for a, b in zip(smallest(values, ids, 10), jitted(values, ids, 10), strict=True):
        np.testing.assert_array_equal(a, b)


def test_select_keeps_the_order_of_the_row():
    values = np.float32([[3, 1, 9, 1, 0, np.inf]])
    ids = np.int32([[0, 8, 2, 7, 4, 5]])
    value, chosen = select(values, ids, 3)
    np.testing.assert_array_equal(value, [[1, 1, 0]])
    np.testing.assert_array_equal(chosen, [[8, 7, 4]])
    value, chosen = select(values, ids, 2)  # of the two ones, the lower id
    np.testing.assert_array_equal(chosen, [[7, 4]])


@pytest.mark.parametrize("k", [1, 7, 40])
def test_kth_smallest_is_the_sorted_rows_kth(k):
    values = rows(3, 40, "absent")[0]
    np.testing.assert_array_equal(kth_smallest(values, k), np.sort(values, axis=1)[:, k - 1])


def test_values_that_differ_in_the_last_bit_are_sorted():
    # The packed keys of these are equal, so only the exchanges can order them.
    values = np.float32(1) + np.arange(64, dtype=np.float32)[::-1] * np.finfo(np.float32).eps
    got, ids = sort_pairs(values[None], np.arange(64, dtype=np.int32)[None])
    np.testing.assert_array_equal(got[0], values[::-1])
    np.testing.assert_array_equal(ids[0], np.arange(64)[::-1])


@given(st.lists(st.booleans(), min_size=70, max_size=70))
def test_first_true_lists_positions(mask):
    want = np.flatnonzero(mask)[:20]
    got = np.asarray(first_true(np.array(mask), 20))
    np.testing.assert_array_equal(got[: len(want)], want)
    assert (got[len(want) :] == -1).all()
