import jax
import numpy as np
import pytest

from muscjax import baseline
from muscjax.config import SnamdConfig
from tests.reference import musc as reference


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(3)
    return (rng.normal(size=(4, 5, 7)) * 3 + 1).astype(np.float32)


def test_layer_norm_runs_over_the_whole_image(tokens):
    np.testing.assert_allclose(baseline.layer_norm(tokens), reference.layer_norm(tokens), atol=2e-6)
    flat = np.asarray(baseline.layer_norm(np.full((2, 3, 4), 5, np.float32)))
    np.testing.assert_array_equal(flat, 0)


@pytest.mark.parametrize("degrees", [(1, 3, 5), (3,)])
def test_lnamd_is_the_unfolding_of_the_paper(tokens, degrees):
    # What the configuration says about SNAMD's divisor and border means nothing to MuSc.
    config = SnamdConfig(degrees=degrees, divide_by="weights", zero_padding=False, image=False)
    expected = reference.lnamd(tokens, degrees)
    for pool in (baseline.pool_grid, jax.jit(baseline.pool_grid, static_argnames="config")):
        found = np.asarray(pool(tokens, config=config))
        assert found.shape == (len(degrees), 20, 7)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_rscin_averages_over_class_features_and_leaves_padding_out():
    rng = np.random.default_rng(0)
    scores, features = rng.random(9).astype(np.float32), rng.random((9, 5)).astype(np.float32)
    expected = reference.rscin(scores, features, (1, 2, 3))
    valid = np.arange(12) < 9
    padded = np.pad(scores, (0, 3))
    salient = rng.random((12, 4)).astype(np.float32)
    found = baseline.Rscin(features)(padded, salient, windows=(7,), normalise=False, form="half", valid=valid)
    np.testing.assert_allclose(found[:9], expected, atol=1e-6)
    np.testing.assert_array_equal(found[9:], 0)
    wide = baseline.Rscin(features, windows=(1, 8, 9))(padded, salient, valid=valid)
    np.testing.assert_allclose(wide[:9], reference.rscin(scores, features, (1, 8, 9)), atol=1e-6)


def test_taps_are_the_last_blocks_of_the_quarters():
    assert baseline.quarters(24) == (5, 11, 17, 23)
    assert baseline.quarters(12) == (2, 5, 8, 11)
    assert baseline.quarters(2) == (0, 1)
