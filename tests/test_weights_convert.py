"""Recognising checkpoints: whole key lists, damage named key by key, families and configuration."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax.backbones import params, point_mae, vit
from muscjax.errors import InputError
from tests.checkpoints import LISTS, key_lists, write_zeros
from weights_convert import FAMILIES, convert, plan


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


@given(data=st.data())
def test_any_shapes_end_in_one_line_or_a_plan(lists, data):
    name = data.draw(st.sampled_from(("dino", "openai-clip-visual", "point-mae-encoder")))
    dims = st.lists(st.integers(0, 5), max_size=5).map(tuple)
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(lists[name])), dims, min_size=1, max_size=4))
    refusal, ignored = "", ()
    try:
        ignored = plan(lists[name] | changed).ignored
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert refusal or set(changed) <= set(ignored)


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
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ("{", "not a JSON file"),
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


def test_defaults_of_the_families():
    lists = key_lists()
    dino, clip = plan(lists["dino"]).spec, plan(lists["openai-clip"]).spec
    assert (dino.taps, dino.final_norm, dino.input_size, dino.eps) == ((3, 7, 11), True, 224, 1e-6)
    assert (dino.interpolation, dino.mean, dino.grid) == ("dino", vit.IMAGENET_MEAN, 28)
    assert (clip.taps, clip.final_norm, clip.input_size, clip.eps) == ((7, 15, 23), False, 518, 1e-5)
    assert (clip.activation, clip.pre_norm, clip.projection) == ("quick_gelu", True, 768)
    assert (clip.interpolation, clip.image_size, clip.mean) == ("half_pixel", 336, vit.CLIP_MEAN)
    assert plan(lists["hf-dino"]).spec.eps == 1e-12
