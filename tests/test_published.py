"""muscjax.published: the table, which runs may be held against it, and what a weights file says."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from muscjax import published
from tests.conftest import shared

CABLE = dict(zip(published.METRICS, (73.89, 89.23, 93.28, 97.28, 38.03, 32.03, 91.94), strict=True))


def test_lookup_finds_the_published_cells():
    found = published.lookup("mvtec3d", "both", "dino-vitb8", "point-mae", category="cable_gland")
    assert found == CABLE
    mean = published.lookup("mvtec3d", "image", "clip-vitl14-336")
    assert mean is not None
    assert (mean["auroc_cls"], mean["pro_musc"]) == (75.8, 94.0)
    assert published.lookup("mvtec3d", "points", None, "point-mae")["ap_seg"] == 44.4
    assert "pro_musc" not in published.lookup("visa", "image", "ViT-L-14-336")
    for backbones in (("texture", "point-mae"), ("dino-vitb8", "fpfh"), ("dino-vits8", None)):
        assert published.lookup("mvtec3d", "both", *backbones) is None


def test_the_table_equals_the_recorded_cells():
    with open(shared("published.csv"), newline="") as file:
        recorded = [r for r in csv.DictReader(file) if r["method"] == "MuSc-V2" and r["table"] != "VIII"]
    names = {name: name for name in published.METRICS} | {"pro_30": "pro_musc"}
    count = 0
    for row in published.table():
        networks = row.networks.replace(" + ", "+").replace("Point-MAE", "PT")
        for name, value in row.values.items():
            same = [
                r["value"]
                for r in recorded
                if (r["dataset"], r["modality"]) == (row.dataset, row.modality)
                and names.get(r["metric"]) == name
                and r["backbone"] in ("", networks)
                and r["setting"] == (row.category or ("average" if r["table"] == "readme" else ""))
                and r["table"] in ("I", "II", "readme")
            ]
            assert value in [float(v) for v in same], (row, name)
            count += 1
    assert count == 14 * 7 - 4 + 20 * 7


def test_sizes_are_those_of_the_data_sets():
    totals = {name: sum(sizes.values()) for name, sizes in published.SIZES.items()}
    assert totals == {
        "mvtec3d": 1197,
        "eyecandies": 500,
        "mvtec": 1725,
        "visa": 2162,
        "mpdd": 458,
        "btad": 741,
    }
    categories = [name for sizes in published.SIZES.values() for name in sizes]
    assert len(set(categories)) == len(categories)
    for row in published.table():
        assert row.category in ("", *published.SIZES[row.dataset])


def test_the_mean_of_the_categories_is_the_published_mean():
    every = published.beside(published.SIZES["mvtec3d"], "both", "dino-vitb8", "point-mae")
    assert every is not None
    assert every.same
    for name in published.METRICS:
        mean = np.mean([values[name] for values in every.categories.values()])
        assert every.mean[name] == pytest.approx(mean, abs=0.0051)
    two = published.beside({"bagel": 110, "cable_gland": 108}, "both", "dino-vitb8", "point-mae")
    assert two.mean["ap_seg"] == pytest.approx((71.05 + 32.03) / 2)
    assert any("stochastic" in note and "(running)" in note for note in two.notes)


def test_another_network_sees_the_closest_row_labelled():
    found = published.beside({"cable_gland": 108}, "both", "texture", "fpfh")
    assert found is not None
    assert (found.same, found.networks) == (False, "ViT-B-8 + Point-MAE")
    assert found.categories == {"cable_gland": CABLE}
    assert "no difference" in found.notes[0]
    assert not any("(running)" in note for note in found.notes)
    clip = published.beside({"cable_gland": 108}, "both", "clip-vitl14-336", "fpfh")
    assert (clip.same, clip.networks) == (False, "ViT-L-14-336 + Point-MAE")
    assert (clip.categories, clip.mean) == ({}, None)
    assert any("all 10 categories together" in note and "ap_seg 60.0" in note for note in clip.notes)


def test_only_complete_test_splits_are_compared():
    assert published.dataset_of({"cable_gland": 108, "rope": 101}) == ("mvtec3d", "")
    name, why = published.dataset_of({"rope": 12})
    assert name is None
    assert "rope has 12 scans here, 101 in the test split of MVTec 3D-AD" in why
    assert published.dataset_of({"cap": 8}) == (None, "")
    assert published.dataset_of({}) == (None, "")
    assert published.beside({"rope": 12}, "both", "dino-vitb8", "point-mae") is None
    assert published.beside({"bottle": 83}, "both", "dino-vitb8", "point-mae") is None  # never published


@pytest.mark.parametrize(
    ("family", "architecture", "title"),
    [
        ("dino", {"patch_size": 8, "width": 768, "depth": 12}, "ViT-B-8"),
        ("dino", {"patch_size": 8, "width": 384, "depth": 12}, None),
        ("clip", {"patch_size": 14, "width": 1024, "depth": 24, "image_size": 336}, "ViT-L-14-336"),
        ("clip", {"patch_size": 14, "width": 1024, "depth": 24, "image_size": 224}, None),
        ("point_mae", {"width": 384, "depth": 12}, "Point-MAE"),
        ("deit", {"patch_size": 16, "width": 192, "depth": 12}, None),
    ],
)
def test_a_converted_file_is_known_by_its_header(tmp_path, family, architecture, title):
    from muscjax.backbones import params

    path = tmp_path / "weights.safetensors"
    header = {"format": params.FORMAT, "family": family, "architecture": json.dumps(architecture)}
    params.save(path, {"a": np.zeros(1, np.float32)}, header)
    assert published.network(path) == title
    (tmp_path / "other").write_bytes(b"no weights")
    assert published.network(tmp_path / "other") is None
    assert published.network(tmp_path / "absent") is None
