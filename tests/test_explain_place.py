"""Where a pixel lies in the grids of the method, and which of several things there is shown."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from muscjax import config, geometry, maps, pipeline
from muscjax.errors import InputError
from muscjax.explain import explain
from muscjax.explain import place as places
from muscjax.types import Frame
from tests.test_explain import detected
from tests.test_pipeline import image_tokens, point_tokens, scans, small

FRAMES = [
    Frame((40, 60), (32, 32), pad=(30, 30, 20, 20)),
    Frame((100, 80), (32, 32), crop=(10, 5, 70, 60)),
    Frame((20, 20), (32, 32)),
]


@pytest.mark.parametrize("frame", FRAMES)
def test_pixels_go_where_the_maps_go(frame):
    """A spot in the working map comes out, by ``maps.to_source``, at the pixel that stands for it."""
    for working in np.argwhere(places.inside(frame))[::5].tolist():
        spot = jnp.zeros(frame.working_hw).at[tuple(working)].set(1.0)
        source = np.asarray(maps.to_source(spot, frame))
        assert source[places.to_source(frame, tuple(working))] >= 0.8 * source.max()


@pytest.mark.parametrize("frame", FRAMES)
def test_the_coarser_grid_comes_back(frame):
    """Every pixel of the map; where the map is finer than the image, every pixel of the image."""
    if frame.working_hw > frame.source_hw:
        for pixel in np.ndindex(frame.source_hw):
            assert places.to_source(frame, places.to_working(frame, pixel)) == pixel
        return
    for working in np.argwhere(places.inside(frame)).tolist():
        assert places.to_working(frame, places.to_source(frame, tuple(working))) == tuple(working)


def test_the_default_place_is_the_maximum_of_a_map_finer_than_the_image():
    frames, settings = [FRAMES[2]] * 6, small()
    found = pipeline.extract(scans(6)[0], None, image_backbone=image_tokens, config=settings)
    detection = detected(found, settings)
    elsewhere = 0
    for sample in range(6):
        told = explain(found, settings, sample, frames=frames, detection=detection)
        highest = np.unravel_index(np.argmax(detection.anomaly_map[sample]), (32, 32))
        assert told.place.working_yx == highest
        assert told.contributions.value == told.scan.map_max == detection.map_max[sample]
        assert told.place.source_yx == told.scan.peak_yx == places.to_source(frames[0], told.place.working_yx)
        elsewhere += places.to_working(frames[0], told.place.source_yx) != told.place.working_yx
    assert elsewhere  # of the pixels that share one of the image it is not always the one at its centre


def test_of_points_in_one_pixel_the_map_keeps_the_one_that_is_shown():
    settings = config.override(small(), "input.map_size=32")
    clouds = [geometry.cloud_from_xyz(xyz) for xyz in scans(5)[1]]
    there, pixel = np.flatnonzero(np.asarray(clouds[0].valid)), np.array(clouds[0].pixel)
    pairs = ((20, 400), (100, 450), (200, 600), (250, 500))
    for first, second in pairs:
        pixel[there[second]] = pixel[there[first]]
    clouds[0] = dataclasses.replace(clouds[0], pixel=pixel)
    found = pipeline.extract(None, clouds, point_backbone=point_tokens, config=settings)
    detection = detected(found, settings)
    shown = set()
    for first, second in pairs:
        yx = divmod(int(pixel[there[first]]), 32)
        told = explain(found, settings, 0, yx, detection=detection)
        mixed = np.sum(told.place.group_weights * told.contributions.group_scores)
        assert abs(mixed - told.contributions.points) <= 1e-6
        assert told.place.point in (there[first], there[second])
        shown.add(told.place.point == there[first])
    assert shown == {True, False}


def test_boxes_cover_the_image_once():
    frame = FRAMES[0]
    boxes = np.asarray([places.patch_box(frame, (4, 4), patch) for patch in range(16)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert abs(area.sum() - 40 * 60) <= 1e-6
    for patch, (top, left, bottom, right) in enumerate(boxes):
        if bottom - top > 1 and right - left > 1:
            centre = int((top + bottom) / 2), int((left + right) / 2)
            y, x = places.to_working(frame, centre)
            assert (y // 8) * 4 + x // 8 == patch


def test_cut_away_pixels_are_refused():
    with pytest.raises(InputError, match="cut away"):
        places.to_working(FRAMES[1], (2, 2))
