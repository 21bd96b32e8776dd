"""What every implementation of the min-distance kernel must do; ``test_kernels`` subclasses it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from muscjax import kernels
from tests.reference import scoring as reference

EPS = np.finfo(np.float32).eps
UNIT_ROUNDOFF = {"float32": EPS, "tf32": 2.0**-11, "bfloat16": 2.0**-8}


def arrays(seed, a, m, b, l, c, scale=1.0):
    rng = np.random.default_rng(seed)
    return (
        (scale * rng.normal(size=(a, m, c))).astype(np.float32),
        (scale * rng.normal(size=(b, l, c))).astype(np.float32),
    )


def bound(queries, references, factor):
    """factor · ε · (|x|² + |y|²) with the largest norms of the set."""
    norms = (queries**2).sum(-1).max() + (references**2).sum(-1).max()
    return factor * EPS * norms


class KernelSuite:
    implementation: str

    def call(self, *arrays, **keywords):
        return jax.jit(lambda *given: kernels.min_squared_distances(self.implementation)(*given, **keywords))(
            *arrays
        )

    @pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 5, 3, 7, 4), (3, 49, 2, 49, 33)])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_both_directions(self, shape, scale):
        queries, references = arrays(0, *shape, scale=scale)
        rows, cols = self.call(queries, references)
        limit = bound(queries, references, 4)
        assert np.abs(rows - reference.min_distances(queries, references) ** 2).max() <= limit
        assert np.abs(cols - reference.min_distances(references, queries) ** 2).max() <= limit

    def test_rows_alone_are_the_same_rows(self):
        queries, references = arrays(1, 2, 9, 3, 8, 5)
        rows, cols = self.call(queries, references, columns=False)
        assert cols is None
        np.testing.assert_array_equal(rows, self.call(queries, references)[0])

    def test_invalid_patches_are_nobodys_neighbour(self):
        queries, references = arrays(2, 2, 6, 3, 7, 5)
        q_valid = np.random.default_rng(3).random((2, 6)) > 0.4
        r_valid = np.random.default_rng(4).random((3, 7)) > 0.4
        r_valid[1] = False
        rows, cols = self.call(queries, references, q_valid, r_valid)
        expected_rows = reference.min_distances(queries, references, r_valid) ** 2
        expected_cols = reference.min_distances(references, queries, q_valid) ** 2
        np.testing.assert_allclose(rows, expected_rows, rtol=1e-5)
        np.testing.assert_allclose(cols, expected_cols, rtol=1e-5)
        assert np.isinf(rows[:, :, 1]).all()

    @pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
    def test_near_duplicates(self, precision):
        """Norms are those of the rounded operands, so near-duplicates stay near."""
        queries, _ = arrays(5, 2, 16, 1, 1, 64)
        queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
        noise = np.random.default_rng(6).normal(size=queries.shape).astype(np.float32)
        references = (queries + 1e-4 * noise).astype(np.float32)
        rows, _ = self.call(queries, references, precision=precision)
        roundoff = UNIT_ROUNDOFF[precision]
        own = np.stack([rows[i, :, i] for i in range(2)])
        difference = ((queries - references) ** 2).sum(-1)
        # |d_rounded - d| is at most the rounding of both operands, the rest is the float32 product's.
        limit = (np.sqrt(difference) + 2 * roundoff) ** 2 - difference + 8 * EPS
        assert (np.abs(own - difference) <= limit).all()

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_refine_is_exact(self, precision):
        queries, _ = arrays(7, 2, 12, 1, 1, 32)
        references = np.concatenate([queries[:, ::-1], arrays(8, 2, 5, 1, 1, 32)[0]], axis=1)
        rows, cols = self.call(queries, references, precision=precision, refine=True)
        own = np.stack([rows[i, :, i] for i in range(2)])
        back = np.stack([cols[i, :12, i] for i in range(2)])
        np.testing.assert_array_equal(own, 0)
        np.testing.assert_array_equal(back, 0)

    @pytest.mark.parametrize("size", [7, 12, 49])
    def test_refine_finds_the_first_of_equal_patches(self, size):
        """Prime and divisible numbers of patches; every patch of a sample is the same one or its twin."""
        queries, references = arrays(11, 2, 5, 3, size, 4)
        references[:, size // 2] = references[:, -1] = references[:, 0]
        plain, refined = self.call(queries, references), self.call(queries, references, refine=True)
        limit = bound(queries, references, 4)
        for before, after in zip(plain, refined, strict=True):
            assert np.abs(before - after).max() <= limit
        exact = reference.min_distances(queries, references) ** 2
        np.testing.assert_allclose(refined[0], exact, rtol=2e-6)

    @pytest.mark.parametrize("refine", [False, True])
    @pytest.mark.parametrize("window", [0, 1, 9])
    def test_window(self, window, refine):
        """Nearest of the patches within the window; of all where none lies inside."""
        queries, references = arrays(12, 2, 12, 3, 10, 5)
        rng = np.random.default_rng(13)
        cells = [rng.integers(0, 5, (*x.shape[:2], 2)).astype(np.int32) for x in (queries, references)]
        valid = [rng.random(x.shape[:2]) > 0.3 for x in (queries, references)]
        valid[1][2] = False
        keywords = {"query_cells": cells[0], "reference_cells": cells[1], "window": window, "refine": refine}
        rows, cols = self.call(queries, references, *valid, **keywords)
        wanted = reference.min_distances(queries, references, valid[1], cells, window) ** 2
        np.testing.assert_allclose(rows, wanted, rtol=2e-5)
        wanted = reference.min_distances(references, queries, valid[0], cells[::-1], window) ** 2
        np.testing.assert_allclose(cols, wanted, rtol=2e-5)
        if window == 9:
            for found, plain in zip(
                (rows, cols), self.call(queries, references, *valid, refine=refine), strict=True
            ):
                np.testing.assert_array_equal(found, plain)

    def test_refine_keeps_invalid_references_at_infinity(self):
        queries, references = arrays(9, 1, 4, 2, 3, 5)
        valid = np.asarray([[True, False, True], [False, False, False]])
        rows, _ = self.call(queries, references, None, valid, refine=True)
        assert np.isinf(rows[:, :, 1]).all()
        np.testing.assert_allclose(
            rows[:, :, 0], reference.min_distances(queries, references, valid)[:, :, 0] ** 2, rtol=1e-6
        )

    def test_outputs_are_float32_and_not_negative(self):
        queries, _ = arrays(10, 1, 8, 1, 1, 16, scale=30.0)
        for precision in ("float32", "bfloat16"):
            rows, cols = self.call(queries, queries, precision=precision)
            assert rows.dtype == jnp.float32
            assert cols.dtype == jnp.float32
            assert float(rows.min()) >= 0
            assert float(cols.min()) >= 0
