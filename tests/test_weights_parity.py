"""Converted features against PyTorch: every family and layout, other input sizes, real weights, full size."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from muscjax.backbones import params, point_mae, vit
from tests.conftest import shared
from tests.peers.published import (
    CASES,
    DINO8,
    NETWORK,
    hf_clip,
    hf_hidden,
    hf_model,
    openai_peer,
    vit_peer,
    write,
)
from tests.test_point_mae import scene
from weights_convert import convert

TOLERANCE = 1e-5


@pytest.mark.parametrize(
    "build",
    [
        partial(hf_model, "ViTModel", **DINO8),
        partial(hf_model, "ViTForImageClassification", **DINO8),
        partial(hf_model, "Dinov2Model", patch=14, image=56),
        partial(hf_model, "Dinov2WithRegistersModel", patch=14, image=56),
        partial(hf_model, "CLIPVisionModel", patch=14, image=56),
        partial(hf_model, "CLIPVisionModelWithProjection", patch=14, image=56),
        partial(hf_clip, patch=14, image=56),
    ],
    ids=["vit", "vit-head", "dinov2", "dinov2-reg", "clip-vision", "clip-projection", "clip"],
)
def test_names_in_memory_convert_like_names_on_disk(build, tmp_path):
    """transformers 5 renames in memory; a state_dict saved by hand has those names."""
    pytest.importorskip("torch", reason="a transformers model needs torch")
    model = build()
    disk = convert(write("hf", model, tmp_path), tmp_path / "disk" / "f.safetensors")
    (tmp_path / "config.json").unlink()
    overrides = {"eps": disk.spec.eps}
    memory = convert(
        write("safetensors", model, tmp_path), tmp_path / "memory" / "f.safetensors", **overrides
    )
    assert memory.spec == disk.spec
    first, second = load_file(disk.path), load_file(memory.path)
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_features_equal_torch(case, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    from tests.peers.torch_models import perturb

    family, build, form = CASES[case]
    model, run = build()
    perturb(model)
    if form.get("dtype") is np.float16:
        model.half().float()
    report = convert(write(model=model, folder=tmp_path, **form), tmp_path / "out" / "flax.safetensors")
    assert report.family == family
    loaded = params.load(report.path, kind="image")
    spec = loaded.spec
    assert (spec.heads, spec.width, spec.depth) == (2, 128, 3)
    mean, std = np.array(spec.mean), np.array(spec.std)
    forward = jax.jit(partial(vit.forward, spec=spec, taps=(0, 1, 2), final_norm=False))
    model.double()
    side = spec.image_size + spec.patch_size  # positions are interpolated too
    images = np.random.default_rng(side).random((2, side, side, 3)).astype(np.float32)
    pixels = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        hidden, token = run(pixels)
    out = forward(loaded.params, images)
    for stage, wanted in enumerate(hidden):
        kept = wanted[:, 1 + spec.registers :].numpy()
        np.testing.assert_allclose(out.tokens[stage], kept, rtol=0, atol=TOLERANCE)
    if token is not None:
        np.testing.assert_allclose(out.class_token, token.numpy(), rtol=0, atol=TOLERANCE)


def test_final_norm_equals_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    from tests.peers.torch_models import perturb

    model, run = vit_peer(**DINO8)
    perturb(model)
    report = convert(write("pth", model, tmp_path), tmp_path / "flax.safetensors")
    images = np.random.default_rng(0).random((1, 32, 32, 3)).astype(np.float32)
    pixels = torch.from_numpy(((images - report.spec.mean) / report.spec.std).transpose(0, 3, 1, 2))
    loaded = params.load(report.path, kind="image")
    out = jax.jit(partial(vit.forward, spec=report.spec))(loaded.params, images)
    model.double()
    with torch.inference_mode():
        hidden = [model.norm(x).numpy() for x in run(pixels)[0]]
    assert report.spec.final_norm
    for stage, wanted in enumerate(hidden):
        np.testing.assert_allclose(out.tokens[stage], wanted[:, 1:], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(out.class_token, hidden[-1][:, 0], rtol=0, atol=TOLERANCE)


POINT_FORMS = {
    "pretrain": {"container": "base_model", "prefix": "MAE_encoder."},
    "pretrain distributed": {"container": "base_model", "prefix": "module.MAE_encoder."},
    "encoder": {},
    "classifier": {"container": "base_model", "prefix": "module."},
}


@pytest.mark.parametrize("form", POINT_FORMS)
def test_point_mae_equals_torch(form, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    from tests.peers.torch_models import PointMAE, perturb

    model = perturb(PointMAE(**NETWORK, classifier=form == "classifier"))
    report = convert(write("pth", model, tmp_path, **POINT_FORMS[form]), tmp_path / "flax.safetensors")
    assert report.family == "point_mae"
    assert any("cls_head_finetune" in key for key in report.ignored) == (form == "classifier")
    loaded = params.load(report.path, kind="points")
    cloud, groups = scene()
    out = jax.jit(partial(point_mae.features, spec=loaded.spec, taps=(0, 1, 2), final_norm=False))(
        loaded.params, cloud, groups
    )
    local = np.asarray(cloud.points)[groups.indices] - np.asarray(groups.centers)[:, None]
    with torch.inference_mode():
        hidden = model.double()(
            torch.from_numpy(local).double(), torch.from_numpy(np.array(groups.centers)).double()
        )
    for stage, wanted in enumerate(hidden):
        np.testing.assert_allclose(out[stage], wanted.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "interpolation", "native", "patch", "sizes"),
    [
        ("dino", "dino", 224, 8, (224, 336, 448)),
        ("dino", "dino", 224, 16, (224, 336, 448)),
        ("clip", "half_pixel", 336, 14, (224, 336, 518)),
        ("dinov2", "antialias", 518, 14, (224, 336, 518, 700)),
    ],
)
def test_positions_of_other_input_sizes_equal_torch(family, interpolation, native, patch, sizes):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    from tests.peers.torch_models import resized

    spec = vit.Spec(patch, 24, 1, 1, native, interpolation=interpolation, family=family)
    stored = np.random.default_rng(0).standard_normal((spec.grid**2, 24)).astype(np.float32)
    for size in sizes:
        grid = (size // patch,) * 2
        out = jax.jit(partial(vit.interpolate_positions, grid=grid, spec=spec))(stored)
        # torch's own float32 is up to 1.3e-5 from its float64 on unit normals (its sample positions are
        # rounded), so float64 is the judge there, and float32 at the scale that stored positions have.
        wanted = resized(torch.from_numpy(stored).double(), grid, interpolation)
        np.testing.assert_allclose(out, wanted, rtol=0, atol=TOLERANCE, err_msg=f"{family} at {size}")
        wanted = resized(torch.from_numpy(stored) / 4, grid, interpolation)
        np.testing.assert_allclose(out / 4, wanted, rtol=0, atol=TOLERANCE, err_msg=f"{family} at {size}")


@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        (partial(vit_peer, patch=16, image=224, depth=1), (224, 336, 448)),
        (partial(openai_peer, patch=14, image=336, depth=1), (224, 336, 518)),
    ],
    ids=["dino", "clip"],
)
def test_features_of_other_input_sizes_equal_torch(build, sizes, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    from tests.peers.torch_models import perturb

    model, run = build()
    perturb(model)
    loaded = params.load(
        convert(write("pth", model, tmp_path), tmp_path / "f.safetensors").path, kind="image"
    )
    forward = jax.jit(partial(vit.features, spec=loaded.spec, taps=(0,), final_norm=False))
    model.double()
    for size in sizes:
        images = np.random.default_rng(size).random((1, size, size, 3)).astype(np.float32)
        pixels = (images - np.array(loaded.spec.mean)) / np.array(loaded.spec.std)
        with torch.inference_mode():
            wanted = run(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))[0][-1][:, 1:].numpy()
        np.testing.assert_allclose(forward(loaded.params, images)[0], wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.real
def test_real_deit_converts_and_equals_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    from tests.peers.torch_models import PlainViT

    path = shared("weights", "deit_tiny_patch16_224_ln_fixedpoint.pth")
    report = convert(path, tmp_path / "deit.safetensors")
    assert report.ignored == ("head.weight", "head.bias")
    assert report.family == "deit"
    model = PlainViT(patch=16, image=224, width=192, depth=12, heads=3, classes=1000)
    model.load_state_dict(torch.load(path, weights_only=True))
    model.double().eval()
    images = np.random.default_rng(0).random((1, 224, 224, 3)).astype(np.float32)
    pixels = torch.from_numpy(((images - report.spec.mean) / report.spec.std).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        hidden = model(pixels)
        wanted = np.stack([model.norm(hidden[i])[:, 1:].numpy() for i in (3, 7, 11)])
    loaded = params.load(report.path, kind="image")
    out = jax.jit(partial(vit.features, spec=loaded.spec))(loaded.params, images)
    scale = np.abs(wanted).max()
    assert scale > 5
    np.testing.assert_allclose(out, wanted, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["dino-vitb8", "clip-vitl14-336"])
def test_full_size_features_equal_torch(which, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    import transformers

    from tests.peers.torch_models import PlainViT, perturb

    if which == "dino-vitb8":
        model = PlainViT(patch=8, image=224, width=768, depth=12, heads=12)
        perturb(model)
        source = write("pth", model, tmp_path)
    else:
        config = transformers.CLIPVisionConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            image_size=336,
            patch_size=14,
        )
        model = transformers.CLIPVisionModel(config)
        perturb(model)
        source = write("hf", model, tmp_path)
    loaded = params.load(convert(source, tmp_path / "f.safetensors").path, kind="image")
    (tmp_path / "f.safetensors").unlink()
    source.unlink()
    spec = loaded.spec
    images = np.random.default_rng(0).random((1, spec.image_size, spec.image_size, 3)).astype(np.float32)
    pixels = torch.from_numpy(
        ((images - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2).astype(np.float32)
    )
    with torch.inference_mode():
        if which == "dino-vitb8":
            hidden = model(pixels)
            wanted = [model.norm(hidden[i])[:, 1:].numpy() for i in spec.taps]
        else:
            hidden = hf_hidden(model, pixels).hidden_states
            wanted = [hidden[i + 1][:, 1:].numpy() for i in spec.taps]
    out = jax.jit(partial(vit.features, spec=spec))(loaded.params, images)
    for stage, tokens in enumerate(wanted):
        np.testing.assert_allclose(out[stage], tokens, rtol=0, atol=1e-4)
