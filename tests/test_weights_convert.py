"""Converters: every family and layout against PyTorch, whole key lists, damaged and malicious files."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from muscjax.backbones import params, point_mae, vit
from muscjax.errors import InputError
from tests.checkpoints import LISTS, key_lists, write_zeros
from tests.conftest import shared
from tests.test_point_mae import scene
from weights_convert import FAMILIES, convert, plan

TOLERANCE = 1e-5
NETWORK = {"width": 128, "depth": 3, "heads": 2}


# --- every family and layout against PyTorch -----------------------------------------------------------


def numpy_state(model, prefix: str = "", dtype=np.float32) -> dict[str, np.ndarray]:
    return {
        prefix + key: np.ascontiguousarray(t.numpy().astype(dtype if t.is_floating_point() else np.int64))
        for key, t in model.state_dict().items()
    }


def write(kind: str, model, folder, *, prefix: str = "", container: str = "", dtype=np.float32):
    """Save a torch model's state in one of the published forms."""
    import torch

    if kind == "hf":
        model.save_pretrained(folder)
        return folder / "model.safetensors"
    state = numpy_state(model, prefix, dtype)
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    tensors = {key: torch.from_numpy(a) for key, a in state.items()}
    torch.save({container: tensors, "epoch": 3} if container else tensors, folder / "model.pth")
    return folder / "model.pth"


def hf_hidden(model, pixels):
    return model(pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True)


def hf_model(name: str, *, patch: int, image: int, **more):
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = getattr(
        transformers, name.removesuffix("Model").removesuffix("ForImageClassification") + "Config"
    )
    fields = {
        "hidden_size": NETWORK["width"],
        "num_hidden_layers": NETWORK["depth"],
        "num_attention_heads": NETWORK["heads"],
        "image_size": image,
        "patch_size": patch,
    }
    if not name.startswith("Dinov2"):
        fields["intermediate_size"] = 4 * NETWORK["width"]
    return getattr(transformers, name)(config(**fields, **more))


def hf_clip(*, patch: int, image: int):
    import transformers

    vision = {
        "hidden_size": NETWORK["width"],
        "num_hidden_layers": NETWORK["depth"],
        "num_attention_heads": NETWORK["heads"],
        "intermediate_size": 4 * NETWORK["width"],
        "image_size": image,
        "patch_size": patch,
    }
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 10,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)
    return transformers.CLIPModel(config)


def vit_peer(**options):
    """A plain ViT: its state, and a function from pixels to hidden states and class token."""
    from tests.peers.torch_models import PlainViT

    model = PlainViT(**(NETWORK | options))
    return model, lambda pixels: (model(pixels), None)


def hf_peer(name: str, **options):
    model = hf_model(name, **options)

    def run(pixels):
        out = hf_hidden(model, pixels)
        return out.hidden_states[1:], None

    return model, run


def openai_peer(**options):
    from tests.peers.torch_models import OpenAIClip

    model = OpenAIClip(**(NETWORK | options))
    return model, model


def hf_clip_peer(**options):
    model = hf_clip(**options)

    def run(pixels):
        out = hf_hidden(model.vision_model, pixels)
        return out.hidden_states[1:], model.visual_projection(out.pooler_output)

    return model, run


DINO8 = {"patch": 8, "image": 32}
DINO16 = {"patch": 16, "image": 64}
V2 = {"patch": 14, "image": 56, "scale": True}
CASES = {
    "dino/8 original": ("dino", partial(vit_peer, **DINO8), {"kind": "pth"}),
    "dino/16 original": ("dino", partial(vit_peer, **DINO16), {"kind": "pth"}),
    "dino/8 teacher": (
        "dino",
        partial(vit_peer, **DINO8),
        {"kind": "pth", "container": "teacher", "prefix": "module.backbone."},
    ),
    "dino/8 timm": ("dino", partial(vit_peer, **DINO8), {"kind": "safetensors"}),
    "dino/8 hf": ("dino", partial(hf_peer, "ViTModel", **DINO8), {"kind": "hf"}),
    "dino/16 hf": ("dino", partial(hf_peer, "ViTModel", **DINO16), {"kind": "hf"}),
    "dinov2 original": ("dinov2", partial(vit_peer, **V2), {"kind": "pth"}),
    "dinov2 timm": ("dinov2", partial(vit_peer, **V2), {"kind": "safetensors"}),
    "dinov2-reg original": (
        "dinov2",
        partial(vit_peer, **V2, registers="register_tokens", interpolation="antialias"),
        {"kind": "pth"},
    ),
    "dinov2-reg timm": (
        "dinov2",
        partial(vit_peer, **V2, registers="reg_token", interpolation="antialias"),
        {"kind": "safetensors"},
    ),
    "dinov2 hf": ("dinov2", partial(hf_peer, "Dinov2Model", patch=14, image=56), {"kind": "hf"}),
    "dinov2-reg hf": (
        "dinov2",
        partial(hf_peer, "Dinov2WithRegistersModel", patch=14, image=56),
        {"kind": "hf"},
    ),
    "deit original": (
        "deit",
        partial(vit_peer, **DINO16, classes=5, interpolation="half_pixel"),
        {"kind": "pth", "container": "model"},
    ),
    "deit timm": (
        "deit",
        partial(vit_peer, **DINO16, classes=5, interpolation="half_pixel"),
        {"kind": "safetensors"},
    ),
    "deit hf": ("deit", partial(hf_peer, "ViTForImageClassification", **DINO16), {"kind": "hf"}),
    "clip/14 hf full": ("clip", partial(hf_clip_peer, patch=14, image=56), {"kind": "hf"}),
    "clip/14 hf vision": ("clip", partial(hf_peer, "CLIPVisionModel", patch=14, image=56), {"kind": "hf"}),
    "clip/16 openai": ("clip", partial(openai_peer, patch=16, image=64), {"kind": "pth"}),
    "clip/32 openai half": (
        "clip",
        partial(openai_peer, patch=32, image=64),
        {"kind": "safetensors", "dtype": np.float16},
    ),
}


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


# --- input sizes ---------------------------------------------------------------------------------------


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


def test_defaults_of_the_families():
    lists = key_lists()
    dino, clip = plan(lists["dino"]).spec, plan(lists["openai-clip"]).spec
    assert (dino.taps, dino.final_norm, dino.input_size, dino.eps) == ((3, 7, 11), True, 224, 1e-6)
    assert (dino.interpolation, dino.mean, dino.grid) == ("dino", vit.IMAGENET_MEAN, 28)
    assert (clip.taps, clip.final_norm, clip.input_size, clip.eps) == ((7, 15, 23), False, 518, 1e-5)
    assert (clip.activation, clip.pre_norm, clip.projection) == ("quick_gelu", True, 768)
    assert (clip.interpolation, clip.image_size, clip.mean) == ("half_pixel", 336, vit.CLIP_MEAN)
    assert plan(lists["hf-dino"]).spec.eps == 1e-12


# --- published key lists -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists():
    return key_lists()


IGNORED = {
    "hf-dino-pooler": ("pooler.",),
    "hf-clip-full": ("text_model.", "text_projection.", "logit_scale"),
    "hf5-clip-full": ("text_model.", "text_projection.", "logit_scale"),
    "openai-clip": (
        "transformer.",
        "token_embedding.",
        "ln_final.",
        "positional_embedding",
        "text_",
        "logit_",
    ),
    "point-mae-pretrain": ("mask_token", "decoder_pos_embed.", "MAE_decoder.", "increase_dim."),
}


@pytest.mark.parametrize("name", LISTS)
def test_whole_key_lists_are_accounted_for(lists, name):
    shapes = lists[name]
    made = plan(shapes)
    used = {key for parts in made.targets.values() for key, _ in parts}
    assert set(made.targets) == set(params.shapes(made.spec))
    assert used | set(made.ignored) == set(shapes)
    assert not used & set(made.ignored)
    documented = IGNORED.get(name, ())
    for key in made.ignored:
        assert key.startswith(documented) or key.endswith("num_batches_tracked")
    families = [family for family in ("dino", "clip", "point") if family in name]
    assert made.family.startswith(families[0])


@pytest.mark.parametrize("name", LISTS)
@given(data=st.data())
def test_damage_is_named_key_by_key(lists, name, data):
    """Some keys removed, renamed, transposed and cut at once: one line names each of them and no other."""
    shapes = dict(lists[name])
    whole = plan(shapes)
    used = sorted({key for parts in whole.targets.values() for key, _ in parts})
    picks = iter(data.draw(st.lists(st.sampled_from(used), min_size=8, max_size=8, unique=True)))
    named = []
    for key in (next(picks), next(picks)):
        del shapes[key]
        named.append(key)
    for key in (next(picks), next(picks)):
        shapes[f"{key}_v2"] = shapes.pop(key)
        named += [key, f"{key}_v2"]
    for key in (next(picks), next(picks)):
        if len(set(shapes[key])) > 1:
            shapes[key] = shapes[key][::-1]
            named.append(key)
    for key in (next(picks), next(picks)):
        shapes[key] = (*shapes[key][:-1], shapes[key][-1] + 3)
        named.append(key)
    with pytest.raises(InputError) as caught:
        plan(shapes)
    message = str(caught.value)
    assert "\n" not in message
    words = set(message.replace(",", " ").replace(";", " ").split())
    assert set(named) <= words
    assert not (set(used) - set(named)) & words


@pytest.mark.parametrize("how", ["removed", "renamed", "transposed", "cut"])
def test_each_key_alone_is_named(lists, how):
    """Every key of the Point-MAE list, and of the others' first and last block and the rest, once each."""
    for name in ("dino", "hf-clip-full", "openai-clip-visual", "point-mae-pretrain"):
        whole = plan(lists[name])
        used = sorted({key for parts in whole.targets.values() for key, _ in parts})
        last = whole.spec.depth - 1
        for key in used:
            if any(f".{i}." in key for i in range(1, last)) and "conv" not in key and "pos_embed" not in key:
                continue
            shapes = dict(lists[name])
            shape = shapes.pop(key)
            if how == "renamed":
                shapes[f"x{key}"] = shape
            elif how == "transposed":
                if len(set(shape)) == 1:
                    continue
                shapes[key] = shape[::-1]
            elif how == "cut":
                shapes[key] = (*shape[:-1], shape[-1] - 1)
            with pytest.raises(InputError) as caught:
                plan(shapes)
            words = str(caught.value).replace(",", " ").replace(";", " ").split()
            assert key in words, (name, key, str(caught.value)[:300])


def test_damaged_checkpoint_writes_nothing(lists, tmp_path):
    shapes = dict(lists["point-mae-encoder"])
    del shapes["norm.bias"]
    write_zeros(tmp_path / "source.safetensors", shapes)
    with pytest.raises(InputError, match=r"1 missing: norm\.bias$"):
        convert(tmp_path / "source.safetensors", tmp_path / "out" / "dest.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_full_size_point_mae_converts(lists, tmp_path):
    write_zeros(tmp_path / "source.safetensors", lists["point-mae-pretrain"])
    report = convert(tmp_path / "source.safetensors", tmp_path / "dest.safetensors")
    assert report.spec == point_mae.Spec()
    assert len(report.ignored) == 53 + 2
    # 156 tensors of the encoder; the two counters of its batch norms are no parameters.
    kept = [shape for key, shape in lists["point-mae-encoder"].items() if "num_batches" not in key]
    assert report.parameters == sum(math.prod(shape) for shape in kept)
    header = params.metadata(report.path)
    assert header["source_sha256"] == report.source_sha256 == params.sha256(tmp_path / "source.safetensors")
    assert header["license"] == "MIT"
    assert json.loads(header["architecture"])["width"] == 384


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTS)
def test_full_size_lists_convert(lists, name, tmp_path):
    kind = "F16" if name.startswith("openai") else "F32"  # as OpenAI's weights are stored
    write_zeros(tmp_path / "source.safetensors", lists[name], kind=kind)
    report = convert(tmp_path / "source.safetensors", tmp_path / "dest.safetensors")
    loaded = params.load(report.path, kind=params.kind_of(report.spec))
    report.path.unlink()  # 1.2 GB for CLIP
    assert sum(a.size for a in jax.tree.leaves(loaded.params)) == report.parameters
    assert {a.dtype for a in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.float32)}


# --- recognition and configuration ---------------------------------------------------------------------


def test_stated_family_must_fit(lists):
    assert plan(lists["dino"], family="deit").spec.interpolation == "half_pixel"
    with pytest.raises(InputError, match="keys are those of dino, expected clip"):
        plan(lists["dino"], family="clip")
    with pytest.raises(InputError, match=r"missing: blocks\.0\.ls1\.gamma"):
        plan(lists["dino"], family="dinov2")
    with pytest.raises(InputError, match=f"expected one of {', '.join(FAMILIES)}"):
        plan(lists["dino"], family="resnet")


def test_foreign_checkpoint_is_not_recognised():
    with pytest.raises(InputError, match=r"not a checkpoint of dino.*layer1\.0\.conv1\.weight"):
        plan({"layer1.0.conv1.weight": (64, 64, 3, 3), "norm.weight": (8,)})


def test_unknown_field_and_impossible_heads_are_refused(lists):
    with pytest.raises(InputError, match="head_count"):
        plan(lists["dino"], head_count=3)
    with pytest.raises(InputError, match="width 768 is no multiple of 7 heads"):
        plan(lists["dino"], heads=7)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"hidden_size": 384}, "hidden_size is 384"),
        ({"hidden_act": "silu"}, "hidden_act silu"),
        ("{", "cannot be read"),
    ],
)
def test_configuration_beside_the_file_must_fit(lists, tmp_path, config, found):
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"config.json: .*{found}"):
        plan(lists["hf-dino"], path=tmp_path / "model.safetensors")


def test_configuration_beside_the_file_is_read(lists, tmp_path):
    config = {"vision_config": {"layer_norm_eps": 2e-5, "hidden_act": "gelu", "num_attention_heads": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.4] * 3})
    )
    spec = plan(lists["hf-clip-full"], path=tmp_path / "model.safetensors", eps=None, heads=4).spec
    assert (spec.eps, spec.activation, spec.heads) == (2e-5, "gelu", 4)
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.4,) * 3)
    timm = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(timm))
    assert plan(lists["dino"], path=tmp_path / "model.safetensors").spec.mean == (0.5, 0.5, 0.5)


# --- real weights --------------------------------------------------------------------------------------


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


# --- bad files -----------------------------------------------------------------------------------------


def assert_refused(source, tmp_path, found: str) -> None:
    """One line that says what is wrong, and nothing written."""
    folder = tmp_path / "out"
    with pytest.raises(InputError, match=found) as caught:
        convert(source, folder / "dest.safetensors")
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    assert not folder.exists() or not list(folder.iterdir())


def small_checkpoint(folder):
    """A whole DINO checkpoint of one block, as safetensors."""
    spec = vit.Spec(4, 64, 1, 1, 8)
    shapes = {
        "cls_token": (1, 1, 64),
        "pos_embed": (1, 5, 64),
        "patch_embed.proj.weight": (64, 3, 4, 4),
        "patch_embed.proj.bias": (64,),
        "norm.weight": (64,),
        "norm.bias": (64,),
    }
    for part, shape in {
        "norm1": (64,),
        "attn.qkv": (192, 64),
        "attn.proj": (64, 64),
        "norm2": (64,),
        "mlp.fc1": (256, 64),
        "mlp.fc2": (64, 256),
    }.items():
        shapes |= {f"blocks.0.{part}.weight": shape, f"blocks.0.{part}.bias": shape[:1]}
    arrays = {key: np.full(shape, 0.01, np.float32) for key, shape in shapes.items()}
    save_file(arrays, folder / "small.safetensors")
    return folder / "small.safetensors", arrays, spec


@pytest.mark.parametrize("keep", [0, 5, 40, 2000, -1])
def test_truncated_safetensors_is_refused(tmp_path, keep):
    source, _, _ = small_checkpoint(tmp_path)
    source.write_bytes(source.read_bytes()[:keep])
    assert_refused(source, tmp_path, "damaged|neither safetensors")


def test_other_files_are_refused(tmp_path):
    source = tmp_path / "page.safetensors"
    source.write_text("<html>not found</html>")
    assert_refused(source, tmp_path, "neither safetensors nor a PyTorch checkpoint")
    with pytest.raises(InputError, match="no such checkpoint"):
        convert(tmp_path / "absent.pth", tmp_path / "x.safetensors")


def test_values_that_are_not_finite_or_not_floats_are_refused(tmp_path):
    source, arrays, _ = small_checkpoint(tmp_path)
    arrays["norm.bias"][3] = np.nan
    save_file(arrays, source)
    assert_refused(source, tmp_path, "norm.bias holds values that are not finite")
    arrays["norm.bias"] = np.zeros(64, np.int64)
    save_file(arrays, source)
    assert_refused(source, tmp_path, "norm.bias has dtype int64")


class Malicious:
    """A pickle that creates a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["legacy pickle", "torch zip", "inside a checkpoint"])
def test_malicious_pickle_is_refused_and_never_executed(tmp_path, form):
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    trap, source = tmp_path / "executed", tmp_path / "evil.pth"
    bait = {"cls_token": torch.zeros(1, 1, 8), "evil": Malicious(trap)}
    if form == "legacy pickle":
        source.write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    elif form == "torch zip":
        torch.save(Malicious(trap), source)
    else:
        torch.save({"model": bait, "args": Malicious(trap)}, source)
    trap.unlink(missing_ok=True)
    assert_refused(source, tmp_path, "refused or damaged")
    assert not trap.exists()


def test_truncated_pth_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    _, arrays, _ = small_checkpoint(tmp_path)
    source = tmp_path / "model.pth"
    torch.save({key: torch.from_numpy(a) for key, a in arrays.items()}, source)
    whole = source.read_bytes()
    for keep in (20, len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:keep])
        assert_refused(source, tmp_path, "damaged")
    torch.save([1, 2, 3], source)
    assert_refused(source, tmp_path, "no state_dict in it")
    torch.save({"optimizer": {"lr": 0.1}}, source)
    assert_refused(source, tmp_path, "no state_dict in it")


def test_torchscript_archive_is_refused(tmp_path):
    source = tmp_path / "ViT-L-14.pt"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        archive.writestr("model/code/__torch__.py", b"")
    pytest.importorskip("torch", reason="a .pth needs torch")
    assert_refused(source, tmp_path, "TorchScript archive")


def test_trainers_extras_do_not_matter(tmp_path):
    """Point-MAE and DeiT pickle scalars and their command line beside the weights."""
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    import argparse

    _, arrays, spec = small_checkpoint(tmp_path)
    state = {key: torch.from_numpy(a) for key, a in arrays.items()}
    extras = {"epoch": 300, "metrics": {"acc": np.float64(0.5)}, "args": argparse.Namespace(lr=0.1)}
    torch.save({"model": state, **extras}, tmp_path / "model.pth")
    assert convert(tmp_path / "model.pth", tmp_path / "f.safetensors").spec.width == spec.width


def test_pth_without_torch_says_what_to_install(tmp_path, monkeypatch):
    source = tmp_path / "model.pth"
    source.write_bytes(pickle.dumps({}, protocol=2))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(source, tmp_path, r"needs torch.*pip install 'muscjax\[convert\]'")


def test_safetensors_needs_no_torch(tmp_path):
    source, _, _ = small_checkpoint(tmp_path)
    code = (
        "import sys; from weights_convert import convert\n"
        f"convert({str(source)!r}, {str(tmp_path / 'f.safetensors')!r})\n"
        "assert not {'torch', 'transformers', 'optax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bfloat16_source_is_read(tmp_path):
    source, arrays, _ = small_checkpoint(tmp_path)
    save_file({key: a.astype(jnp.bfloat16) for key, a in arrays.items()}, source)
    report = convert(source, tmp_path / "f.safetensors")
    stored = load_file(report.path)["norm.scale"]
    np.testing.assert_array_equal(stored, arrays["norm.weight"].astype(jnp.bfloat16).astype(np.float32))


def test_interrupted_conversion_leaves_nothing_that_is_trusted(tmp_path, monkeypatch):
    source, _, _ = small_checkpoint(tmp_path)
    dest = tmp_path / "out" / "f.safetensors"
    monkeypatch.setattr(params.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert(source, dest)
    assert list(dest.parent.iterdir()) == []


def test_destination_that_cannot_be_written_is_named(tmp_path):
    source, _, _ = small_checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    for dest in (tmp_path / "file" / "f.safetensors", tmp_path, source):
        with pytest.raises(InputError, match=str(dest)):
            convert(source, dest)


# --- loading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loads_in_the_dtype_that_is_asked_for(tmp_path, dtype):
    source, arrays, _ = small_checkpoint(tmp_path)
    loaded = params.load(convert(source, tmp_path / "f.safetensors").path, kind="image", dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(dtype)}
    wanted = arrays["blocks.0.mlp.fc1.weight"].T.astype(dtype)
    np.testing.assert_array_equal(loaded.params["block_0"]["fc1"]["kernel"], wanted)


def test_converted_file_must_be_what_its_header_says(tmp_path):
    source, _, _ = small_checkpoint(tmp_path)
    path = convert(source, tmp_path / "f.safetensors").path
    header, tensors = params.metadata(path), load_file(path)

    def rewritten(tensors, header):
        save_file(tensors, path, header)
        with pytest.raises(InputError) as caught:
            params.load(path, kind="image")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(InputError, match="expected one for points"):
        params.load(path, kind="points")
    less = {k: v for k, v in tensors.items() if k != "norm.bias"}
    assert "norm.bias missing" in rewritten(less, header)
    assert "extra unexpected" in rewritten({**tensors, "extra": np.zeros(2)}, header)
    assert "cls is F32 of shape (3,), expected F32 of shape (64,)" in rewritten(
        {**tensors, "cls": np.zeros(3, np.float32)}, header
    )
    assert "architecture cannot be read" in rewritten(tensors, {**header, "architecture": "{"})
    assert "architecture cannot be read" in rewritten(tensors, {**header, "architecture": '{"depth": 3}'})
    assert "expected muscjax-1" in rewritten(tensors, {**header, "format": "muscjax-9"})
    assert "not converted yet" in rewritten(tensors, {})


# --- full size, minutes --------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_loading_vit_b8_is_fast_and_lean(lists, tmp_path):
    """Under 2 s, and at the peak no more than the parameters' own size beside them, in a fresh process."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    write_zeros(tmp_path / "source.safetensors", lists["dino"])
    path = convert(tmp_path / "source.safetensors", tmp_path / "f.safetensors").path
    code = f"""
import re, time, jax
from muscjax.backbones import params
jax.block_until_ready(jax.numpy.zeros(3))
params.shapes(params.vit.Spec(8, 768, 12, 12, 224))
def memory(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
before, start = memory("VmRSS"), time.perf_counter()
loaded = params.load({str(path)!r}, kind="image")
jax.block_until_ready(loaded.params)
seconds, extra = time.perf_counter() - start, memory("VmHWM") - before
size = sum(a.nbytes for a in jax.tree.leaves(loaded.params))
print(f"{{seconds:.2f}} s, peak {{extra / size:.2f}} x the parameters' {{size / 1e6:.0f}} MB")
assert seconds < 2, seconds
assert extra < 2 * size, extra / size
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path.unlink()
    print(done.stdout)
    assert done.returncode == 0, done.stderr
