"""The window itself: the rectangle around a mask, the side that holds all of them, and where it is put."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from muscjax.preprocess import window

SIDES = st.integers(1, 60)


@given(st.integers(0, 1000))
def test_extent_is_the_smallest_rectangle(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 13)) < 0.03
    found = window.extent(mask)
    if not mask.any():
        assert found is None
        return
    assert found is not None
    top, bottom, left, right = found
    outside = mask.copy()
    outside[top:bottom, left:right] = False
    assert not outside.any()
    inner = mask[top:bottom, left:right]
    assert all(edge.any() for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))


@given(st.lists(st.tuples(st.integers(0, 40), SIDES, st.integers(0, 40), SIDES), max_size=5))
def test_the_common_side_holds_every_object(found):
    extents = [(top, top + h, left, left + w) for top, h, left, w in found]
    side = window.common_side([None, *extents], 0.1)
    assert side == window.common_side(extents, 0.1)
    assert all(1.1 * max(h, w) <= side < 1.1 * 60 + 1 for _, h, _, w in found)
    assert side > 0 or not found


@given(st.integers(0, 60), st.integers(0, 60), SIDES, st.integers(1, 120))
def test_a_window_lies_in_the_picture_and_holds_what_fits(top, left, size, side):
    hw = (120, 125)
    inside = (top, min(top + size, hw[0]), left, min(left + size, hw[1]))
    found = window.window(inside, side, hw)
    if side >= 0.95 * 120:
        assert found is None
        return
    assert found is not None
    y, x, h, w = found
    assert (h, w) == (side, side)
    assert 0 <= y <= hw[0] - side
    assert 0 <= x <= hw[1] - side
    if size <= side:
        assert y <= inside[0]
        assert x <= inside[2]
        assert max(inside[1] - y, inside[3] - x) <= side


def test_nothing_to_look_at_takes_the_middle():
    assert window.window(None, 10, (100, 60)) == (45, 25, 10, 10)
    assert window.window(None, 0, (100, 60)) is None
