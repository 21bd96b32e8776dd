"""muscjax.intervals: the chance band against a full enumeration, the bootstrap against the metrics."""

from __future__ import annotations

import numpy as np
import pytest

from muscjax import metrics
from muscjax.errors import InputError
from muscjax.intervals import _resample_images, _resample_pixels, bootstrap, chance_band
from tests.reference import metrics as reference
from tests.test_metrics import scans


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (5, 4), (1, 8), (6, 6)])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_chance_band_equals_full_enumeration(sizes, level):
    ours = chance_band(*sizes, level=level)
    np.testing.assert_allclose(ours, reference.chance_band(*sizes, level), rtol=0, atol=1e-12)


def test_chance_band_of_the_real_scans_and_of_large_sets():
    low, high = chance_band(87, 21)
    assert (round(low, 2), round(high, 2)) == (0.36, 0.64)
    # Where both forms could answer, they agree to less than one comparison in a hundred.
    exact, normal = chance_band(60, 66), chance_band(61, 66)
    np.testing.assert_allclose(exact, normal, rtol=0, atol=2e-3)
    assert chance_band(0, 5) is None
    assert chance_band(5, 0) is None


@pytest.mark.parametrize("levels", [None, 9])
def test_one_resample_equals_the_metrics_of_the_drawn_scans(levels):
    masks, maps = scans(13, n=5, side=14, levels=levels)
    labels, scores = masks.any((1, 2)), maps.max((1, 2))
    draw = np.array([[2, 0, 1, 1, 1]])
    rows = np.repeat(np.arange(5), draw[0])
    inside = np.zeros_like(masks)
    inside[:, 2:11, 3:12] = True
    found = _resample_pixels(list(masks), list(maps), draw, 10_000, 0.3, list(inside))
    expected = metrics.pixel_metrics(masks[rows], maps[rows])
    expected["foreground_ap"] = metrics.foreground_ap(masks[rows], maps[rows], inside[rows])
    for name in ("auroc", "f1_max", "ap", "aupro_mvtec", "foreground_ap"):
        np.testing.assert_allclose(found[name][0], expected[name], rtol=0, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(found["hit_rate"][0], metrics.hit_rate(masks[rows], maps[rows]), atol=1e-12)
    image = metrics.image_metrics(labels[rows], scores[rows])
    for name, values in _resample_images(labels, scores, draw).items():
        np.testing.assert_allclose(values[0], image[name], rtol=0, atol=1e-12, err_msg=name)


def test_rounding_to_steps_moves_a_metric_by_little():
    masks, maps = scans(17, n=6, side=60, size=8)
    rounded = _resample_pixels(list(masks), list(maps), np.ones((1, 6), int), 1024, 0.3)
    exact = metrics.pixel_metrics(masks, maps)
    for name in ("auroc", "f1_max", "ap", "aupro_mvtec"):
        np.testing.assert_allclose(rounded[name][0], exact[name], rtol=0, atol=2e-3, err_msg=name)


def test_bootstrap_holds_the_metric_and_repeats():
    masks, maps = scans(19, n=12, side=20)
    labels, scores = masks.any((1, 2)), maps.max((1, 2))
    ours = bootstrap(labels, scores, masks, maps, resamples=200)
    again = bootstrap(labels, scores, masks, maps, resamples=200)
    assert ours == again
    exact = metrics.pixel_metrics(masks, maps)
    assert set(ours["pixel"]) == {"auroc", "f1_max", "ap", "aupro_mvtec", "hit_rate"}
    for name in ("auroc", "ap", "aupro_mvtec"):
        low, high = ours["pixel"][name]
        assert low < exact[name] < high
    assert set(bootstrap(labels, scores, resamples=10)) == {"image"}
    assert bootstrap(np.zeros(4), np.arange(4.0), resamples=10) == {"image": {}}


def test_bootstrap_names_a_mismatch():
    masks, maps = scans(19)
    with pytest.raises(InputError, match="4 maps and 3 labels"):
        bootstrap(np.ones(3), np.arange(3.0), masks, maps)
