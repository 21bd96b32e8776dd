"""The synthetic line: exact masks, kinds of defects, camera geometry, determinism, and what lies on disk."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache

import numpy as np
import pytest
import tifffile
from PIL import Image

from muscjax.datasets import synthetic
from muscjax.datasets.synthetic import (
    DEFECTS,
    DEPTH_THRESHOLD,
    RGB_THRESHOLD,
    Line,
    parts,
    render,
    schedule,
    texture,
)
from muscjax.datasets.synthetic import camera as cam
from muscjax.datasets.synthetic import write as write_module
from muscjax.errors import InputError
from muscjax.preprocess import find_foreground

SIZE = 128
EVERY = [(part, defect) for part in parts() for defect in DEFECTS]


@lru_cache(maxsize=128)
def scan(part, seed, defect=None, noise=True, size=SIZE):
    return render(part, seed, defect=defect, size=size, noise=noise)


def height_above_bench(xyz):
    """Heights in mm of a scan without lost points, from a least-squares plane through its border."""
    border = np.ones(xyz.shape[:2], bool)
    border[6:-6, 6:-6] = False
    points = xyz[border].astype(np.float64)
    centre = points.mean(0)
    normal = np.linalg.svd(points - centre, full_matrices=False)[2][2]
    normal *= -np.sign(normal[2])
    return (xyz.astype(np.float64) - centre) @ normal * 1e3


# ---------------------------------------------------------------- scans


@pytest.mark.parametrize("part", parts())
def test_scan_has_the_stated_types_units_and_geometry(part):
    shot = scan(part, 4)
    assert shot.rgb.shape == (SIZE, SIZE, 3)
    assert shot.rgb.dtype == np.uint8
    assert shot.xyz.shape == (SIZE, SIZE, 3)
    assert shot.xyz.dtype == np.float32
    assert shot.mask.dtype == bool
    assert not shot.mask.any()
    assert shot.kind == "good"
    valid = (shot.xyz != 0).all(-1)
    assert ((shot.xyz == 0).all(-1) | valid).all(), "a lost point is zero in all three coordinates"
    assert 0.85 < valid.mean() < 0.999
    z = shot.xyz[valid][:, 2]
    assert z.min() > 0.55
    assert z.max() < 0.62
    focal, centre = SIZE * cam.DISTANCE / cam.VIEW, SIZE / 2 - 0.5 + 0.27
    rows, columns = np.nonzero(valid)
    np.testing.assert_allclose(shot.xyz[valid][:, 0], z * (columns - centre) / focal, atol=2e-6)
    np.testing.assert_allclose(shot.xyz[valid][:, 1], z * (rows - centre) / focal, atol=2e-6)


@pytest.mark.parametrize("part", parts())
def test_part_stands_clear_of_a_flat_bench(part):
    height = height_above_bench(scan(part, 2, noise=False).xyz)
    on_part = height > 1.0
    assert 0.12 < on_part.mean() < 0.30
    assert (height[on_part] > 5.0).mean() > 0.97
    # What is left are pixels that meet a wall below 1 mm.
    assert (np.abs(height[~on_part]) < 0.02).mean() > 0.99
    assert height.max() < 25.0


@pytest.mark.parametrize("part", parts())
def test_plane_removal_leaves_the_part_and_nothing_else(part):
    shot = scan(part, 6, "both_hole")
    height = height_above_bench(scan(part, 6, "both_hole", noise=False).xyz)
    left = find_foreground(shot.xyz)
    assert left.note == ""
    measured = (shot.xyz != 0).all(-1)
    assert left.mask[measured & (height > 5.5)].mean() > 0.97
    assert left.mask[height < 4.5].mean() < 0.002


def test_equal_arguments_give_equal_scans_and_other_seeds_other_ones():
    first, again = (
        render("rope", 3, defect="both_cut", size=64),
        render("rope", 3, defect="both_cut", size=64),
    )
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    other = render("rope", 4, defect="both_cut", size=64)
    assert (first.rgb != other.rgb).mean() > 0.3
    assert (first.xyz != other.xyz).mean() > 0.3
    assert (first.mask != other.mask).any()


def test_numpy_integer_seeds_are_the_same_as_python_ones():
    np.testing.assert_array_equal(
        render("cap", np.uint64(2**40 + 1), size=64).rgb, render("cap", 2**40 + 1, size=64).rgb
    )


def test_sensor_noise_has_the_stated_size_and_does_not_reach_noise_free_scans():
    noisy, clean = scan("cap", 5), scan("cap", 5, noise=False)
    assert (clean.xyz[..., 2] > 0).all()
    valid = noisy.xyz[..., 2] > 0
    error = (noisy.xyz[..., 2] - clean.xyz[..., 2])[valid] * 1e3
    assert abs(error.std() - cam.DEPTH_NOISE) < 0.01
    assert abs(error.mean()) < 0.03
    grey = (clean.rgb > 100) & (clean.rgb < 156)
    spread = (noisy.rgb.astype(float) - clean.rgb)[grey].std()
    assert abs(spread - cam.IMAGE_NOISE) < 0.4


@pytest.mark.parametrize(("part", "turns"), [("knob", True), ("housing", False)])
def test_poses_turn_fully_or_a_little(part, turns):
    # The pointer of the knob and the code of the housing break their symmetry.
    shots = [scan(part, seed, noise=False).xyz[..., 2] for seed in range(4)]
    assert len({shot.tobytes() for shot in shots}) == 4
    spans = []
    for shot in shots:
        rows, columns = np.nonzero(shot < np.float32(0.6) * 0.988)
        spans.append((np.ptp(columns) + 1) / (np.ptp(rows) + 1))
    if not turns:
        assert min(spans) > 1.05, "the housing stays broader than high"


# ---------------------------------------------------------------- defects


def test_every_kind_has_defects_and_names_carry_the_kind():
    assert set(DEFECTS.values()) == {"image", "depth", "both"}
    prefix = {"image": "colour_", "depth": "depth_", "both": "both_"}
    assert all(name.startswith(prefix[kind]) for name, kind in DEFECTS.items())


@pytest.mark.parametrize(("part", "defect"), EVERY)
def test_only_masked_pixels_differ(part, defect):
    """Rendered with and without the defect: outside the mask nothing changes, inside it something does."""
    good, bad = scan(part, 11, noise=False), scan(part, 11, defect, noise=False)
    kind = DEFECTS[defect]
    assert bad.kind == kind
    mask = bad.mask
    colour = np.abs(bad.rgb.astype(int) - good.rgb.astype(int)).max(-1)
    depth = np.abs(bad.xyz[..., 2] - good.xyz[..., 2]) * 1e3
    # One grey level and 2 µm for the rounding of the two scans.
    assert colour[~mask].max() <= RGB_THRESHOLD + 1
    assert depth[~mask].max() <= DEPTH_THRESHOLD + 0.002
    changed = (colour >= RGB_THRESHOLD - 1) | (depth > DEPTH_THRESHOLD - 0.002)
    # The rest of the mask are pixels whose chance to lose the depth changed.
    assert changed[mask].mean() > (0.999 if kind == "image" else 0.6)
    if kind == "image":
        np.testing.assert_array_equal(bad.xyz, good.xyz)
    if kind == "depth":
        np.testing.assert_array_equal(bad.rgb, good.rgb)
    if kind != "image":
        assert depth[mask].max() > 4 * DEPTH_THRESHOLD
    if kind != "depth":
        assert colour[mask].max() > 3 * RGB_THRESHOLD


@pytest.mark.parametrize(("part", "defect"), EVERY)
def test_only_masked_pixels_differ_under_sensor_noise(part, defect):
    good, bad = scan(part, 11), scan(part, 11, defect)
    kind, outside = DEFECTS[defect], ~scan(part, 11, defect, noise=False).mask
    np.testing.assert_array_equal(outside, ~bad.mask)
    lost = (good.xyz[..., 2] == 0) != (bad.xyz[..., 2] == 0)
    assert not lost[outside].any()
    depth = np.abs(bad.xyz[..., 2] - good.xyz[..., 2])[outside] * 1e3
    assert depth.max() <= DEPTH_THRESHOLD + 0.002
    # Shot noise grows with the light, so a change below the threshold scales its sample a little.
    colour = np.abs(bad.rgb.astype(int) - good.rgb.astype(int)).max(-1)
    assert colour[outside].max() <= RGB_THRESHOLD + 2
    if kind == "image":
        np.testing.assert_array_equal(bad.xyz, good.xyz)
    if kind == "depth":
        np.testing.assert_array_equal(bad.rgb, good.rgb)


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_cover_a_small_part_of_the_object(defect):
    for part in parts():
        for seed in (11, 12):
            height = height_above_bench(scan(part, seed, noise=False).xyz)
            share = scan(part, seed, defect, noise=False).mask.sum() / (height > 1.0).sum()
            assert 0.002 < share < 0.04, (part, seed, share)


@pytest.mark.parametrize("part", parts())
def test_no_defect_reaches_the_bench_where_the_part_was(part):
    for defect in ("both_hole", "both_cut", "both_chip", "depth_dent"):
        good = height_above_bench(scan(part, 11, noise=False).xyz)
        bad = height_above_bench(scan(part, 11, defect, noise=False).xyz)
        # Away from the outline, where parallax moves the silhouette by a pixel.
        core = good > 5.0
        core[1:] &= good[:-1] > 5.0
        core[:-1] &= good[1:] > 5.0
        core[:, 1:] &= good[:, :-1] > 5.0
        core[:, :-1] &= good[:, 1:] > 5.0
        assert (bad[core] > 5.0).mean() > 0.998, defect


# ---------------------------------------------------------------- camera and texture against plain references


def _march(height_at, origin, direction, top):
    """Float64 witness: Z of one ray's first hit with a height function, by dense steps from the top."""
    z = np.linspace(top, 0.0, 20001)
    t = (-z - origin[2]) / direction[2]
    return t[np.argmax(height_at(origin[0] + t * direction[0], origin[1] + t * direction[1]) >= z)]


@pytest.mark.parametrize("shape", ["dome", "slab"])
def test_ray_cast_finds_what_a_dense_march_finds(shape):
    def height_at(x, y):
        if shape == "dome":
            return np.maximum(18.0 - (x * x + y * y) / 40.0, 0.0)
        return np.where((np.abs(x) < 20) & (np.abs(y) < 14), 15.0, 0.0)

    size = 128
    camera = cam.rays(size)
    grid = height_at(camera.x.astype(np.float64), camera.y.astype(np.float64)).astype(np.float32)
    z, _, _ = cam.trace(grid, camera, 20.0)
    depth = camera.bench_z.astype(np.float64)
    top, bottom, left, right = camera.box
    depth[top:bottom, left:right] -= (z * camera.z_per_mm)[1::2, 1::2]

    focal, centre = size * cam.DISTANCE / cam.VIEW, size / 2 - 0.5 + 0.27
    (a, b) = cam.TILT
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rotation = about_x @ about_y
    origin = rotation.T @ np.array([0, 0, -cam.DISTANCE])
    errors = []
    for row in range(7, size, 13):
        for column in range(6, size, 12):
            direction = rotation.T @ np.array([(column - centre) / focal, (row - centre) / focal, 1.0])
            expected = _march(height_at, origin, direction, 20.0)
            errors.append(abs(depth[row, column] - expected))
    # The grid's cells are 0.47 mm at this size: a wall, and the crease at its foot, blur over one cell.
    errors = np.sort(errors)
    assert errors[int(0.9 * len(errors))] < (0.03 if shape == "dome" else 0.005)
    if shape == "dome":
        assert errors[-1] < 0.2


def test_box_blur_is_a_mean_over_the_window():
    rng = np.random.default_rng(0)
    field = rng.standard_normal((13, 17)).astype(np.float32)
    padded = np.pad(field.astype(np.float64), 2, mode="edge")
    expected = np.array([[padded[i : i + 5, j : j + 5].mean() for j in range(17)] for i in range(13)])
    np.testing.assert_allclose(texture.box_blur(field, 2), expected, atol=2e-6)
    np.testing.assert_array_equal(texture.box_blur(field, 0), field)


def test_noise_is_standardised_and_as_coarse_as_asked():
    rng = np.random.default_rng(1)
    fine = texture.noise((200, 200), 0.25, rng, scale=0.8)
    coarse = texture.noise((200, 200), 0.25, rng, scale=8.0)
    assert 0.8 < fine.std() < 1.2
    for field, low, high in ((fine, 0.2, 1.4), (coarse, 0.0, 0.25)):
        step = np.abs(np.diff(field, axis=1)).mean() / field.std()
        assert low < step < high
    assert fine.dtype == np.float32


def test_text_distance_is_zero_on_a_stroke_and_saturates_away_from_it():
    along, down = np.meshgrid(np.linspace(-4, 4, 161), np.linspace(-4, 4, 161))
    gap = texture.text_distance("I", along.astype(np.float32), down.astype(np.float32), 4.0)
    row, column = np.unravel_index(gap.argmin(), gap.shape)
    assert gap.min() < 0.1
    assert abs(down[row, column]) <= 2.1
    assert gap[0, 0] == 4.0
    # The glyph is one upright stroke: the distance grows sideways at the rate of the sideways step.
    middle = gap[80]
    stroke = middle.argmin()
    np.testing.assert_allclose(middle[stroke + 20] - middle[stroke], 1.0, atol=0.15)


# ---------------------------------------------------------------- lines on disk


def test_schedule_spreads_defects_evenly_and_follows_the_seed():
    line = Line("cap", scans=200, defective=0.1, seed=5)
    plan = schedule(line)
    assert plan == schedule(line)
    assert plan != schedule(dataclasses.replace(line, seed=6))
    assert len({seed for _, seed in plan}) == 200
    counts = {name: sum(d == name for d, _ in plan) for name in DEFECTS}
    kinds = {
        k: sum(n for name, n in counts.items() if DEFECTS[name] == k) for k in ("image", "depth", "both")
    }
    assert sum(counts.values()) == 20
    assert max(kinds.values()) - min(kinds.values()) <= 1
    for kind in kinds:
        within = [n for name, n in counts.items() if DEFECTS[name] == kind]
        assert max(within) - min(within) <= 1
    assert sum(d is not None for d, _ in schedule(dataclasses.replace(line, defective=0.0))) == 0
    assert sum(d is None for d, _ in schedule(dataclasses.replace(line, defective=1.0))) == 0


def test_written_line_reads_back_as_rendered(tmp_path):
    path = synthetic.write_line(
        tmp_path / "new" / "sets", part="gear", scans=8, defective=0.5, seed=3, size=64
    )
    assert path == tmp_path / "new" / "sets" / "gear"
    assert sorted(p.name for p in path.parent.iterdir()) == ["gear"], "no temporary folder is left"
    about = json.loads((path / "synthetic.json").read_text())
    assert about["scans"] == 8
    seen: dict[str, int] = {}
    for defect, seed in schedule(Line("gear", 8, 0.5, 3, 64)):
        folder = path / "test" / (defect or "good")
        stem = f"{seen.setdefault(folder.name, 0):03d}"
        seen[folder.name] += 1
        expected = render("gear", seed, defect=defect, size=64)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "rgb" / f"{stem}.png")), expected.rgb)
        xyz = tifffile.imread(folder / "xyz" / f"{stem}.tiff")
        assert xyz.dtype == np.float32
        np.testing.assert_array_equal(xyz, expected.xyz)
        mask = np.asarray(Image.open(folder / "gt" / f"{stem}.png"))
        np.testing.assert_array_equal(mask, np.where(expected.mask, 255, 0))
    written = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert len(written) == 3 * 8 + 1
    assert seen["good"] == 4
    assert len(seen) == 5


def test_a_line_replaces_an_earlier_line_and_nothing_else(tmp_path):
    synthetic.write_line(tmp_path, part="cap", scans=3, defective=0.0, size=64)
    synthetic.write_line(tmp_path, part="cap", scans=1, defective=0.0, size=64)
    assert len(list((tmp_path / "cap" / "test" / "good" / "rgb").iterdir())) == 1
    foreign = tmp_path / "knob" / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(InputError, match=r"knob: found files that are not a synthetic line"):
        synthetic.write_line(tmp_path, part="knob", scans=1, size=64)
    assert foreign.read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder to write into"):
        synthetic.write_line(tmp_path / "file", part="cap", scans=1, size=64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cap", "file", "knob"]


def test_an_interrupted_line_leaves_the_old_one_and_no_remains(tmp_path, monkeypatch):
    synthetic.write_line(tmp_path, part="cap", scans=2, defective=0.0, size=64)

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(write_module, "_write_scan", broken)
    with pytest.raises(OSError, match="disk full"):
        synthetic.write_line(tmp_path, part="cap", scans=1, size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["cap"]
    assert len(list((tmp_path / "cap" / "test" / "good" / "rgb").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "cube"}, r"part: found 'cube', expected one of housing, .*gear$"),
        ({"defect": "rust"}, r"defect: found 'rust', expected one of colour_stain, .*both_blob$"),
        ({"seed": -1}, "seed: found -1"),
        ({"size": 32}, "size: found 32, expected a whole number from 64 to 1024"),
        ({"size": 100.0}, "size: found 100.0"),
    ],
)
def test_bad_render_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        render(**{"part": "cap", "seed": 0, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "cube"}, "expected one of housing"),
        ({"scans": 0}, "scans: found 0, expected a whole number from 1"),
        ({"defective": 1.5}, r"defective: found 1\.5, expected a share from 0 to 1"),
        ({"defective": float("nan")}, "defective: found nan"),
    ],
)
def test_bad_line_options_are_named_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        synthetic.write_line(tmp_path / "out", **{"part": "cap", **options})
    assert not (tmp_path / "out").exists()
