"""Fake checkpoints: a small whole one, and files of zeros from key lists that cost no disk or memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from muscjax.backbones import vit
from tests.conftest import shared

Shapes = dict[str, tuple[int, ...]]
ITEM = {"F32": 4, "F16": 2, "I64": 8}


def key_lists() -> dict[str, Shapes]:
    """Every published layout of the shared key lists, by name."""

    def load(file: str) -> dict:
        return json.loads(shared("golden", f"keys_{file}.json").read_text())

    def shapes(*parts: dict) -> Shapes:
        return {key: tuple(value["shape"]) for part in parts for key, value in part.items()}

    hf_dino, hf_clip = load("hf_dino_vitb8"), load("hf_clip_vitl14_336")
    openai, mae = load("openai_clip_vitl14_336"), load("pointmae_pretrain")
    disk, memory = "disk_layout_transformers4", "in_memory_layout_transformers5"
    return {
        "dino": shapes(load("dino_vitb8")),
        "hf-dino": shapes(hf_dino[disk]["no_pooler"]),
        "hf-dino-pooler": shapes(hf_dino[disk]["no_pooler"], hf_dino[disk]["pooler_extra"]),
        "hf5-dino": shapes(hf_dino[memory]["no_pooler"]),
        "hf-clip-vision": shapes(hf_clip[disk]["CLIPVisionModel"]),
        "hf-clip-full": shapes(hf_clip[disk]["CLIPModel_full"]),
        "hf5-clip-vision": shapes(hf_clip[memory]["CLIPVisionModel"]),
        "hf5-clip-full": shapes(hf_clip[memory]["CLIPModel_full"]),
        "openai-clip-visual": shapes(openai["visual"]),
        "openai-clip": shapes(openai["visual"], openai["rest"]),
        "point-mae-pretrain": shapes(mae["pretrain_checkpoint_base_model"]),
        "point-mae-encoder": shapes(mae["muscv2_PointTransformer"]),
    }


LISTS = (
    "dino",
    "hf-dino",
    "hf-dino-pooler",
    "hf5-dino",
    "hf-clip-vision",
    "hf-clip-full",
    "hf5-clip-vision",
    "hf5-clip-full",
    "openai-clip-visual",
    "openai-clip",
    "point-mae-pretrain",
    "point-mae-encoder",
)


def write_zeros(path: Path, shapes: Shapes, *, kind: str = "F32") -> None:
    """A safetensors file of zeros; the zeros are a hole in the file."""
    header, end = {}, 0
    for key, shape in shapes.items():
        dtype = "I64" if key.endswith("num_batches_tracked") else kind
        size = ITEM[dtype]
        for n in shape:
            size *= n
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


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
