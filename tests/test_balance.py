"""One scale for both modalities' maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from muscjax import balance, pipeline
from muscjax.config import override, released
from muscjax.types import PatchScores, PointGroups

GRID, MAP = (2, 3), (8, 9)
EITHER_WAY = pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])


def groups_of(pixel, valid):
    n, g = pixel.shape
    return PointGroups(
        indices=np.zeros((n, g, 0), np.int32),
        centers=np.zeros((n, g, 3), np.float32),
        center_index=np.zeros((n, g), np.int32),
        curvature=np.zeros((n, g), np.float32),
        pixel=pixel.astype(np.int32),
        valid=valid,
    )


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    groups = groups_of(rng.integers(0, 72, (4, 10)), rng.random((4, 10)) < 0.7)
    return rng.random((4, 6)).astype(np.float32), 5 * rng.random((4, 10)).astype(np.float32), groups


def by_loops(image, points, groups):
    """Of the patches that hold a group and of the groups: the median, and a calm scan's highest above it."""
    held, there, highest = [], [], ([], [])
    for i in range(len(image)):
        patches = set()
        counted = len(there)
        for g in range(points.shape[1]):
            if groups.valid[i, g]:
                row, column = divmod(int(groups.pixel[i, g]), MAP[1])
                patches.add((row * GRID[0] // MAP[0]) * GRID[1] + column * GRID[1] // MAP[1])
                there.append(float(points[i, g]))
        held += [float(image[i, p]) for p in patches]
        highest[0].append(max(float(image[i, p]) for p in patches))
        highest[1].append(max(there[counted:]))
    centre = [np.median(values) for values in (held, there)]
    reach = []
    for values, middle in zip(highest, centre, strict=True):
        at = 0.1 * (len(values) - 1)  # linear between the two ranks around it
        low, high = sorted(values)[int(at)], sorted(values)[int(at) + 1]
        reach.append(low + (at - int(at)) * (high - low) - middle)
    return centre, reach


def units(image, points, groups):
    return balance.units(image, points, groups, grid_hw=GRID, map_hw=MAP)


def test_units_against_loops(scored):
    np.testing.assert_allclose(units(*scored), by_loops(*scored), rtol=1e-6)


def test_scans_stored_twice_are_no_calm_ones():
    rng = np.random.default_rng(5)
    groups = groups_of(rng.integers(0, 72, (20, 30)), np.ones((20, 30), bool))
    image, points = (1 + rng.random(size).astype(np.float32) for size in ((20, 6), (20, 30)))
    usual = units(image, points, groups)
    image[:5], points[:5] = 0, 0  # a quarter of the set, each the like of another
    again = units(image, points, groups)
    assert again.reach != (1, 1)
    np.testing.assert_allclose(np.add(*again), np.add(*usual), rtol=0.1)  # what is one unit on the map


def test_scans_of_next_to_nothing_are_no_calm_ones():
    rng = np.random.default_rng(6)
    valid = np.ones((20, 30), bool)
    points = rng.random((20, 30)).astype(np.float32)
    image = rng.random((20, 6)).astype(np.float32)
    pixel = rng.integers(0, 72, (20, 30))
    usual = units(image, points, groups_of(pixel, valid))
    valid[:5, 1:] = False
    points[:5, 0] = 0.51  # hardly above the middle: the reach of these five would be next to nothing
    found = units(image, points, groups_of(pixel, valid))
    np.testing.assert_allclose(found.reach[1], usual.reach[1], rtol=0.1)


@EITHER_WAY
def test_join_against_loops(compiled, scored):
    found = units(*scored)
    rng = np.random.default_rng(2)
    image, points = rng.random((5, 6)).astype(np.float32), 5 * rng.random((5, 6)).astype(np.float32)
    expected = np.zeros((5, 6))
    for at in np.ndindex(5, 6):
        for map_, centre, reach in zip((image, points), *found, strict=True):
            expected[at] += max((float(map_[at]) - float(centre)) / float(reach), 0.0) ** 2
    join = jax.jit(balance.join) if compiled else balance.join
    np.testing.assert_allclose(join(image, points, found), np.sqrt(expected), rtol=1e-5)


def test_scores_of_another_unit_give_the_same_map(scored):
    image, points, groups = scored
    rng = np.random.default_rng(3)
    maps = [rng.random((4, 4)).astype(np.float32) for _ in range(2)]
    once = balance.join(*maps, units(*scored))
    again = balance.join(3 * maps[0], maps[1] / 7, units(3 * image, points / 7, groups))
    np.testing.assert_allclose(again, once, rtol=1e-4, atol=1e-4)


def test_what_one_modality_sees_stands_out_as_it_does_there():
    usual = balance.Units((np.float32(1), np.float32(2)), (np.float32(0.5), np.float32(4)))
    seen, nothing = jnp.asarray([[1.0, 3.0]]), jnp.asarray([[2.0, -9.0]])
    np.testing.assert_array_equal(balance.join(seen, nothing, usual), [[0.0, 4.0]])


def test_the_background_and_what_is_no_group_have_no_say(scored):
    image, points, groups = scored
    changed = np.where(groups.valid, points, 1e6).astype(np.float32)
    assert units(image, changed, groups) == units(image, points, groups)


def test_defects_in_eight_of_ten_scans_do_not_move_the_reach():
    rng = np.random.default_rng(6)
    groups = groups_of(rng.integers(0, 72, (20, 40)), np.ones((20, 40), bool))
    image = rng.random((20, 6)).astype(np.float32)
    points = rng.random((20, 40)).astype(np.float32)
    calm = units(image, points, groups)
    order = np.argsort(points.max(axis=1))
    points[order[4:], 7] = 50
    assert units(image, points, groups).reach[1] == pytest.approx(calm.reach[1], rel=0.1)


def test_long_tails_of_one_modality_do_not_drown_the_other():
    """Points of normal scans vary little, but at edges; a defect of colour still comes first."""
    rng = np.random.default_rng(7)
    groups = groups_of(np.tile(rng.permutation(72)[:60], (12, 1)), np.ones((12, 60), bool))
    image = rng.normal(1, 0.1, (12, 6)).astype(np.float32)
    points = rng.normal(1, 0.01, (12, 60)).astype(np.float32)
    points[:, :3] += rng.uniform(0.1, 0.15, (12, 3)).astype(np.float32)  # ten spreads above the median
    image[0, 2] = 1.8  # a colour defect of twice what normal patches reach
    usual = units(image, points, groups)
    defect = balance.join(jnp.asarray(image[:1, 2:3]), jnp.ones((1, 1)), usual)
    edges = balance.join(jnp.ones((12, 3)), jnp.asarray(points[:, :3]), usual)
    assert float(defect[0, 0]) > 1.5 * float(edges.max())


def test_equal_scores_are_not_divided_by_zero(scored):
    image, points, groups = scored
    assert units(np.ones_like(image), points, groups).reach[0] == 1
    nothing = groups_of(groups.pixel, np.zeros_like(groups.valid))
    assert units(image, points, nothing) == balance.Units((0, 0), (1, 1))


def test_a_map_of_images_alone_is_as_it_was():
    scores = np.random.default_rng(1).random((3, 6)).astype(np.float32)
    patches = PatchScores(scores, None, np.ones((3, 2), np.float32))
    maps = [
        pipeline.finish(patches, None, None, config, grid_hw=GRID, map_hw=MAP).anomaly_map
        for config in (released(), override(released(), "maps.balance=calm"))
    ]
    np.testing.assert_array_equal(*maps)
