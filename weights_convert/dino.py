"""DINO, DINOv2, DeiT and timm's plain vision transformers: their ways to name the same tensors.

``timm`` is also the original code bases' layout. What no tensor tells follows the code base that the
layout belongs to: DINO's and timm's layer norms use 1e-6 and DINO's position scale; Hugging Face's
ViTModel defaults to 1e-12 and interpolates to a size (a ``config.json`` beside the file is read first).
"""

from weights_convert.rules import (
    BATCHED,
    GRID_ONLY,
    PATCH,
    TOKEN,
    VECTOR,
    Layout,
    Rule,
    affine,
    dense,
    rows,
)

_TIMM = rows(
    Rule(r"cls_token", "cls", TOKEN),
    Rule(r"pos_embed", "positions", BATCHED),
    Rule(r"register_tokens", "registers", BATCHED),
    dense(r"patch_embed\.proj", "patch", op=PATCH),
    affine(r"blocks\.(\d+)\.norm1", "block_{}.norm1"),
    dense(r"blocks\.(\d+)\.attn\.qkv", "block_{}.qkv"),
    dense(r"blocks\.(\d+)\.attn\.proj", "block_{}.out"),
    Rule(r"blocks\.(\d+)\.ls1\.gamma", "block_{}.scale1", VECTOR),
    affine(r"blocks\.(\d+)\.norm2", "block_{}.norm2"),
    dense(r"blocks\.(\d+)\.mlp\.fc1", "block_{}.fc1"),
    dense(r"blocks\.(\d+)\.mlp\.fc2", "block_{}.fc2"),
    Rule(r"blocks\.(\d+)\.ls2\.gamma", "block_{}.scale2", VECTOR),
    affine(r"norm", "norm"),
)
_TIMM_REGISTERS = tuple(
    {"pos_embed": Rule(r"pos_embed", "positions", GRID_ONLY)}.get(rule.pattern)
    or {"register_tokens": Rule(r"reg_token", "registers", BATCHED)}.get(rule.pattern)
    or rule
    for rule in _TIMM
)


def _hf(layer: str, qkv: tuple[str, ...], out: str, norms: tuple[str, str], mlp: tuple[str, str]):
    return rows(
        Rule(r"embeddings\.cls_token", "cls", TOKEN),
        Rule(r"embeddings\.position_embeddings", "positions", BATCHED),
        Rule(r"embeddings\.register_tokens", "registers", BATCHED),
        dense(r"embeddings\.patch_embeddings\.projection", "patch", op=PATCH),
        affine(rf"{layer}\.{norms[0]}", "block_{}.norm1"),
        *(dense(rf"{layer}\.{name}", "block_{}.qkv", part=i) for i, name in enumerate(qkv)),
        dense(rf"{layer}\.{out}", "block_{}.out"),
        Rule(rf"{layer}\.layer_scale1\.lambda1", "block_{}.scale1", VECTOR),
        affine(rf"{layer}\.{norms[1]}", "block_{}.norm2"),
        dense(rf"{layer}\.{mlp[0]}", "block_{}.fc1"),
        dense(rf"{layer}\.{mlp[1]}", "block_{}.fc2"),
        Rule(rf"{layer}\.layer_scale2\.lambda1", "block_{}.scale2", VECTOR),
        affine(r"layernorm", "norm"),
    )


_DISK_QKV = tuple(rf"attention\.attention\.{name}" for name in ("query", "key", "value"))
_MEMORY_QKV = tuple(rf"attention\.{name}_proj" for name in "qkv")
_DISK_OUT = r"attention\.output\.dense"
_VIT_NORMS = ("layernorm_before", "layernorm_after")
_MLP = (r"mlp\.fc1", r"mlp\.fc2")
_HF_IGNORED = (r"pooler\..*", r"(cls_)?classifier\..*", r"embeddings\.mask_token")
_HF_VIT = (("eps", 1e-12), ("interpolation", "half_pixel"))
_HF_DINOV2 = (("eps", 1e-6), ("interpolation", "half_pixel"))

LAYOUTS = (
    Layout("timm", _TIMM, (r"head\..*", r"mask_token"), (("eps", 1e-6), ("interpolation", "dino"))),
    Layout(
        "timm-registers",
        _TIMM_REGISTERS,
        (r"head\..*", r"mask_token"),
        (("eps", 1e-6), ("interpolation", "dino")),
    ),
    Layout(
        "hf-vit",
        _hf(
            r"encoder\.layer\.(\d+)",
            _DISK_QKV,
            _DISK_OUT,
            _VIT_NORMS,
            (r"intermediate\.dense", r"output\.dense"),
        ),
        _HF_IGNORED,
        _HF_VIT,
    ),
    Layout(
        "hf-dinov2",
        _hf(r"encoder\.layer\.(\d+)", _DISK_QKV, _DISK_OUT, ("norm1", "norm2"), _MLP),
        _HF_IGNORED,
        _HF_DINOV2,
    ),
    # The names that transformers 5 uses in memory; its saved files keep the two above.
    Layout(
        "hf5-dinov2",
        _hf(r"encoder\.layer\.(\d+)", _MEMORY_QKV, r"attention\.o_proj", ("norm1", "norm2"), _MLP),
        _HF_IGNORED,
        _HF_DINOV2,
    ),
    Layout(
        "hf5-vit",
        _hf(r"layers\.(\d+)", _MEMORY_QKV, r"attention\.o_proj", _VIT_NORMS, _MLP),
        _HF_IGNORED,
        _HF_VIT,
    ),
)
PREFIXES = (
    r"module\.",
    r"backbone\.",
    r"(vit|deit|dinov2|dinov2_with_registers)\.(?=embeddings|encoder|layer)",
)
