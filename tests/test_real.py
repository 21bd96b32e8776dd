"""All 108 real scans end to end, beside what the authors' scoring gives on the same features."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from muscjax.backbones import params
from tests.conftest import shared

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def weights(place):
    """The real DeiT-Ti, converted by the command line."""
    pytest.importorskip("torch", reason="the checkpoint is a .pth")
    source = shared("weights", "deit_tiny_patch16_224_ln_fixedpoint.pth")
    call("convert", source, place / "deit.safetensors")
    return place / "deit.safetensors"


def call(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "muscjax", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def detect(place, name, *options):
    """metrics.json of cable_gland and run.json of one run."""
    out = place / name
    root = shared("data", "mvtec3d", "cable_gland")
    call("detect", root, "--out", out, "--no-overlays", "--quiet", *options)
    found = json.loads((out / "metrics.json").read_text())["cable_gland"]
    assert found["scans"] == 108
    print(name, {k: found["pixel"][k] for k in ("ap", "aupro_musc")}, found["image"]["auroc"])
    return found, json.loads((out / "run.json").read_text())


def test_image_only_raw(place, weights):
    found, _ = detect(place, "image", "--modality", "image", "--image-backbone", weights)
    assert found["pixel"]["ap"] == pytest.approx(0.077, abs=0.003)
    assert found["pixel"]["aupro_musc"] == pytest.approx(0.748, abs=0.01)
    assert found["image"]["auroc"] == pytest.approx(0.611, abs=0.015)


def test_points_only_with_snamd(place):
    found, _ = detect(place, "points", "--modality", "points")
    assert found["pixel"]["ap"] >= 0.075
    assert found["pixel"]["aupro_musc"] >= 0.75
    trivial = next(y["pixel"] for y in found["yardsticks"] if y["name"] == "blurred mask")
    for name, recorded in (("auroc", 0.931), ("f1_max", 0.051), ("ap", 0.022), ("aupro_musc", 0.834)):
        assert trivial[name] == pytest.approx(recorded, abs=0.001), name


def test_points_only_without_snamd(place):
    found, _ = detect(place, "points-plain", "--modality", "points", "--set", "snamd.points=false")
    assert found["pixel"]["ap"] >= 0.085
    assert found["pixel"]["aupro_musc"] >= 0.80


@pytest.mark.parametrize(("size", "least"), [(224, 0.125), (448, 0.19)])
def test_both_modalities(place, weights, size, least):
    options = ("--image-size", size, "--set", "snamd.points=false")
    found, record = detect(place, f"both-{size}", "--image-backbone", weights, *options)
    assert record["modality"] == {"cable_gland": "both"}
    assert found["pixel"]["ap"] >= least
    assert record["peak_host_memory_mib"] < 6 * 1024


def test_random_weights_are_worse(place, weights):
    loaded = params.load(weights, kind="image")
    rng = np.random.default_rng(0)
    noise = {k: rng.normal(0, 0.05, v).astype(np.float32) for k, v in params.shapes(loaded.spec).items()}
    params.save(place / "random.safetensors", noise, params.header(loaded.spec))
    options = ("--modality", "image", "--image-backbone")
    real, _ = detect(place, "image-real", *options, weights)
    random, _ = detect(place, "image-random", *options, place / "random.safetensors")
    print(f"pixel AP: converted {real['pixel']['ap']:.4f}, random {random['pixel']['ap']:.4f}")
    assert real["pixel"]["ap"] > random["pixel"]["ap"]
