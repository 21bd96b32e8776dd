"""Fake checkpoints from lists of keys and shapes: files of zeros that cost no disk and no memory."""

from __future__ import annotations

import json
from pathlib import Path

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
