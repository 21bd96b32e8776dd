"""PyTorch peers of every published family and layout, and the files that they would be published as.

A builder returns the model and a function from normalised pixels to the tokens after every block and the
class token (None where the family has none of interest). torch and transformers are imported when called.
"""

from __future__ import annotations

import re
from functools import partial

import numpy as np
from safetensors.numpy import save_file

NETWORK = {"width": 128, "depth": 3, "heads": 2}


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
    family = re.sub("(Model|ModelWithProjection|ForImageClassification)$", "", name)
    config = getattr(transformers, f"{family}Config")
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
