"""The named workloads: their sizes are the published ones, their inputs look like the real thing."""

from __future__ import annotations

import numpy as np
import pytest

from muscjax import workloads
from muscjax.backbones import registry
from muscjax.errors import InputError
from tests.test_house import loaded_after


def test_names_are_unique_and_say_what_the_workload_is_called():
    assert all(name == workload.name for name, workload in workloads.WORKLOADS.items())
    kinds = {type(w) for w in workloads.find(["small"])}
    assert kinds == {type(w) for w in workloads.WORKLOADS.values()}  # a small one of every kind


def test_the_stated_sets_have_their_sizes():
    sizes = {w.name: (w.patches, w.channels) for w in workloads.WORKLOADS.values() if hasattr(w, "patches")}
    assert sizes["scoring-vitb8"] == (784, 768)
    assert sizes["scoring-vitl14-576-n150"] == (576, 1024)
    assert sizes["scoring-vitl14-1369"] == (1369, 1024)
    assert sizes["scoring-pointmae"] == (1024, 384)
    for kind in ("2d-vitb8", "3d-pointmae", "2d3d-vitb8"):
        assert [w.n for w in workloads.find([f"pipeline-{kind}-n*"])] == [50, 100, 150]  # type: ignore


@pytest.mark.parametrize(
    ("workload", "published"), [("backbone-vitb8", "dino-vitb8"), ("backbone-vitl14-576", "clip-vitl14-336")]
)
def test_networks_are_the_published_ones(workload, published):
    spec, entry = workloads.WORKLOADS[workload].spec(), registry.find(published)  # type: ignore
    assert (spec.patch_size, spec.width, spec.depth, spec.image_size) == (
        entry.patch_size, entry.width, entry.depth, entry.image_size,
    )  # fmt: skip
    assert spec.taps == (entry.depth // 3 - 1, 2 * entry.depth // 3 - 1, entry.depth - 1)


def test_find_takes_names_groups_and_patterns_once_each():
    found = workloads.find(["scoring-small", "small", "scoring-*"])
    names = [w.name for w in found]
    assert len(names) == len(set(names))
    assert names[0] == "scoring-small"
    assert {"cae-small", "scoring-vitb8-n150"} <= set(names)
    with pytest.raises(InputError, match="workload 'scoring' is unknown; choose"):
        workloads.find(["scoring"])


def test_features_have_unit_norm_and_neighbours_in_other_samples():
    found = workloads.features(6, 64, 96, seed=3)
    np.testing.assert_array_equal(found, workloads.features(6, 64, 96, seed=3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    nearest = np.sqrt(np.maximum(0, 2 - 2 * found[0] @ found[1].T)).min(axis=1)
    assert 0.2 < np.median(nearest) < 0.6  # two random unit vectors are 1.4 apart


def test_scans_have_the_stated_points():
    cloud = workloads.cloud(300, 32)
    assert int(np.sum(cloud.valid)) == 300
    assert cloud.points.shape == (320, 3)
    assert len(workloads.cloud(300, 32, padded=False).points) == 300
    assert (workloads.organised_scan(300, 32) != 0).all(axis=-1).sum() == 300
    with pytest.raises(InputError, match="2000 points"):
        workloads.organised_scan(2000, 32)


def test_groups_begin_with_their_centre_and_ascend():
    scan = workloads.cloud(300, 32)
    groups = workloads.nearest_groups(scan, 10, 6)
    points = np.asarray(scan.points)
    apart = np.linalg.norm(points[groups.indices] - np.asarray(groups.centers)[:, None], axis=-1)
    np.testing.assert_array_equal(apart[:, 0], 0)
    assert (np.diff(apart, axis=1) >= 0).all()


def test_importing_the_workloads_loads_no_framework():
    assert not loaded_after("import muscjax.workloads") & {"jax", "torch", "scipy", "flax"}
