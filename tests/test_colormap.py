"""muscjax.colormap: the table, the blend and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from muscjax.colormap import depth_picture, heat, heat_limits, heat_table, overlay


def lightness(srgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours (..., 3) uint8."""
    c = srgb.astype(float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def test_table_gets_steadily_lighter():
    table = heat_table()
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    steps = np.diff(lightness(table)[::8])
    # Even to the eye: no step vanishes or is more than three times the mean one.
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.mean()
    assert lightness(table)[[0, -1]] == pytest.approx([20, 95], abs=10)


@pytest.mark.parametrize("level", [0, 60, 128, 200, 255])
def test_full_heat_stands_out_of_every_grey(level):
    image = np.full((2, 2, 3), level, np.uint8)
    cold = overlay(image, np.zeros((2, 2)), limits=(0.0, 1.0))
    hot = overlay(image, np.ones((2, 2)), limits=(0.0, 1.0))
    warm = overlay(image, np.full((2, 2), 0.5), limits=(0.0, 1.0))
    assert lightness(hot)[0, 0] - lightness(cold)[0, 0] > 12
    assert np.abs(warm[0, 0].astype(int) - cold[0, 0]).max() > 60


def test_without_heat_the_picture_keeps_its_order_of_greys():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cold = overlay(image, np.zeros((16, 16)), limits=(0.0, 1.0)).reshape(256, 3)
    assert (cold == cold[:, :1]).all()
    assert (np.diff(cold[:, 0].astype(int)) >= 0).all()
    assert np.unique(cold[:, 0]).size > 150


def test_heat_clips_and_survives_equal_limits():
    np.testing.assert_array_equal(heat(np.array([-1.0, 0.5, 2.0]), limits=(0.0, 1.0)), [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(heat(np.array([1.0, 5.0]), limits=(1.0, 1.0)), [0.0, 0.0])


def test_limits_ignore_the_background_and_single_pixels():
    maps = np.zeros((4, 50, 50), np.float32)
    maps[:, :20] = np.linspace(1, 2, 4 * 20 * 50).reshape(4, 20, 50)
    maps[0, 0, 0] = 1000.0
    low, high = heat_limits(maps)
    assert 1.85 < low < 1.95
    assert 1.99 < high < 2.01
    assert heat_limits(np.zeros((2, 3, 3))) == (0.0, 0.0)
    assert heat_limits(list(maps)) == (low, high)


def test_overlay_names_a_picture_of_another_size_or_type():
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        overlay(np.zeros((3, 3, 3), np.uint8), np.zeros((4, 5)), limits=(0, 1))
    with pytest.raises(ValueError, match="float64"):
        overlay(np.zeros((4, 5)), np.zeros((4, 5)), limits=(0, 1))


def test_depth_picture_shows_the_object_in_any_unit():
    y, x = np.mgrid[:40, :40] / 40.0
    inside = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.1
    z = 0.4 - 0.1 * np.sqrt(np.clip(0.1 - (y - 0.5) ** 2 - (x - 0.5) ** 2, 0, None))
    xyz = np.stack([x + 0.1, y + 0.1, z], -1) * inside[..., None]
    picture = depth_picture(xyz)
    assert picture.dtype == np.uint8
    assert (picture[~inside] == 16).all()
    assert (picture[inside] > 40).all()
    assert np.ptp(picture[inside].astype(int)) > 40
    assert np.abs(depth_picture(xyz * 1000).astype(int) - picture).max() <= 1
    assert (depth_picture(np.zeros((5, 6, 3))) == 16).all()
