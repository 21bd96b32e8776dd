"""muscjax.report.cloud: what the page holds of a cloud, and which scans keep it when the page is full."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import config, report
from muscjax.frame import Frame
from muscjax.report import cloud
from tests.test_report import RECORD, Elements, scan

SEEDS = st.integers(0, 10_000)


def unpacked(text: str) -> tuple[np.ndarray, np.ndarray]:
    """What the page's script does: (n, 3) metres from the lowest corner, and (n,) pixels."""
    stored = json.loads(text)
    planes = np.frombuffer(zlib.decompress(base64.b64decode(stored["data"])), np.uint8)
    low, high = planes.reshape(4, 2, stored["n"]).transpose(1, 0, 2).astype(int)
    columns = np.cumsum(low + 256 * high, axis=1) % 65536
    return columns[:3].T * stored["step"], columns[3]


def relief(side: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A hill seen from half a metre: points (side², 3) in metres, and where they lie in the picture."""
    rng = np.random.default_rng(seed)
    v, u = (np.indices((side, side)) + 0.5) / side
    hill = 0.01 * np.exp(-20 * ((u - 0.6) ** 2 + (v - 0.4) ** 2)) + 1e-4 * rng.random((side, side))
    z = 0.5 - hill
    points = np.stack([0.2 * (u - 0.5) * z, 0.2 * (v - 0.5) * z, z], axis=-1).astype(np.float32)
    return points.reshape(-1, 3), np.stack([u, v], axis=-1).reshape(-1, 2)


@given(SEEDS)
def test_positions_survive_to_a_step_and_stay_at_their_pixels(seed):
    points, where = relief(seed=seed)
    order = np.random.default_rng(seed).permutation(len(points))
    found, pixel = unpacked(cloud.pack(points[order], where[order], hw=(40, 40)))
    np.testing.assert_array_equal(pixel, np.arange(1600))
    # Turned by less than a hundredth: compare lengths, which turning leaves alone.
    mine, theirs = (np.linalg.norm(np.diff(p, axis=0), axis=1) for p in (found, points.astype(float)))
    step = float(np.ptp(points, axis=0).max()) / 8191
    np.testing.assert_allclose(mine, theirs, atol=2 * step)


def test_of_many_points_an_even_share_is_kept():
    points, where = relief(side=128)
    _, pixel = unpacked(cloud.pack(points, where, hw=(128, 128), count=2000))
    assert len(pixel) == 2000
    assert (np.diff(pixel) > 0).all()
    tiles = np.zeros((128, 128), int)
    tiles.flat[pixel] = 1
    counts = tiles.reshape(8, 16, 8, 16).sum(axis=(1, 3))
    assert counts.std() < 0.5 * np.sqrt(2000 / 64 * (1 - 2000 / 128**2))  # half of what chance would give
    _, few = unpacked(cloud.pack(*relief(side=128), hw=(32, 32)))
    np.testing.assert_array_equal(few, np.arange(1024))  # one for each pixel of the map


@pytest.mark.parametrize("flips", [(1, 1, 1), (1, -1, -1), (-1, 1, 1)], ids=["camera", "y up", "left-handed"])
def test_axes_are_those_of_the_picture(flips):
    points, where = relief()
    axes = cloud.picture_axes(points.astype(float) * flips, where)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.diag(axes @ np.diag(flips)), 1, atol=0.01)


def test_axes_of_a_turned_frame_and_of_too_few_points():
    points, where = relief()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    away = cloud.picture_axes(points.astype(float) @ turn.T, where)
    np.testing.assert_allclose(away @ turn, cloud.picture_axes(points.astype(float), where), atol=1e-6)
    np.testing.assert_array_equal(cloud.picture_axes(points[:1].astype(float), where[:1]), np.eye(3))
    assert unpacked(cloud.pack(points[:1], where[:1], hw=(40, 40)))[0].tolist() == [[0, 0, 0]]
    assert cloud.pack(points, where + 1.0, hw=(40, 40)) == ""


def test_places_undo_padding_and_crop():
    plain = cloud.places(np.array([0, 3, 8]), Frame((8, 16), (4, 4)))
    np.testing.assert_allclose(plain, [[0.125, 0.125], [0.875, 0.125], [0.125, 0.625]])
    square = cloud.places(np.arange(16), Frame((8, 16), (4, 4), pad=(4, 4, 0, 0)))
    np.testing.assert_allclose(square[[0, 4, 8, 12], 1], [-0.25, 0.25, 0.75, 1.25])
    cut = cloud.places(np.array([0]), Frame((8, 16), (4, 4), pad=(1, 0, 2, 0), crop=(1, 2, 8, 8)))
    np.testing.assert_allclose(cut, [[1 / 16, 1 / 8]])


def test_a_page_that_is_full_drops_clouds_before_pictures(tmp_path):
    points, where = relief(side=48)
    card = report.encode(scan(0, points=points, places=where), limits=(0.0, 1.0))
    flat = dataclasses.replace(card, cloud="")
    assert len(card.cloud) > 2_000
    cards = [dataclasses.replace(card, name=f"s{i}", rank=i + 1, score=-float(i)) for i in range(6)]
    about = report.Report(title="line", config=config.released(), record=RECORD)

    def solid(max_bytes: int) -> tuple[int, int, str]:
        path = report.write_report(tmp_path / "r.html", about, cards, max_bytes=max_bytes)
        page = Elements(path.read_text(encoding="utf-8"))
        said = page.all("section", id="scans")[0][1]
        return len(page.all("article")), len(page.all("script", **{"data-part": "cloud"})), said

    base = 400_000 + 6 * (500 + 4_000 + flat.size)
    assert solid(base + 6 * len(card.cloud))[:2] == (6, 6)
    articles, clouds, said = solid(base + 3 * len(card.cloud) + 100)
    assert (articles, clouds) == (6, 3)
    assert "The 3D views of 3 less anomalous scans are left out" in said
    articles, clouds, said = solid(base - 100)
    assert (articles, clouds) == (5, 0)
    assert "turned in 3D" not in said


def test_clouds_shrink_as_pictures_do():
    points, where = relief(side=128)
    sizes = [
        json.loads(report.encode(scan(0, points=points, places=where), limits=(0, 1), side=side).cloud)["n"]
        for side in (400, 200)
    ]
    assert sizes == [48 * 64, 3000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": np.zeros((4, 3))}, r"points \(5, 3\) and places \(4, 3\)"),
        ({"points": np.full((5, 3), np.nan)}, "points with NaN"),
        ({"neighbours": [("x", float("inf"))]}, "neighbours with NaN or infinity"),
    ],
)
def test_unusable_clouds_and_neighbours_are_refused(changes, message):
    given_ = {"points": np.zeros((5, 3)), "places": np.zeros((5, 2))} | changes
    with pytest.raises(ValueError, match=message):
        report.encode(scan(0, **given_), limits=(0.0, 1.0))


def test_a_neighbour_of_another_category_is_refused(tmp_path):
    cards = [report.encode(scan(0, neighbours=[("elsewhere", 0.5)]), limits=(0.0, 1.0))]
    about = report.Report(title="line", config=config.released(), record=RECORD)
    with pytest.raises(ValueError, match="neighbour elsewhere, expected a scan of its category"):
        report.write_report(tmp_path / "r.html", about, cards)
