"""CLIP's image tower: Hugging Face's names, and OpenAI's, which open_clip kept.

Both code bases use 1e-5 in the layer norms. Positions of another input size follow Hugging Face.
"""

from weights_convert.rules import AS_IS, MATRIX, PATCH, VECTOR, Layout, Rule, affine, dense, rows

_PATCH = "patch.kernel"  # CLIP's patch embedding has no bias


def _hf(prefix: str):
    layer = prefix + r"encoder\.layers\.(\d+)"
    return rows(
        Rule(prefix + r"embeddings\.class_embedding", "cls", VECTOR),
        Rule(prefix + r"embeddings\.position_embedding\.weight", "positions", AS_IS),
        Rule(prefix + r"embeddings\.patch_embedding\.weight", _PATCH, PATCH),
        affine(prefix + r"pre_layrnorm", "pre_norm"),
        affine(layer + r"\.layer_norm1", "block_{}.norm1"),
        *(dense(rf"{layer}\.self_attn\.{name}_proj", "block_{}.qkv", part=i) for i, name in enumerate("qkv")),
        dense(layer + r"\.self_attn\.out_proj", "block_{}.out"),
        affine(layer + r"\.layer_norm2", "block_{}.norm2"),
        dense(layer + r"\.mlp\.fc1", "block_{}.fc1"),
        dense(layer + r"\.mlp\.fc2", "block_{}.fc2"),
        affine(prefix + r"post_layernorm", "norm"),
        Rule(r"visual_projection\.weight", "projection.kernel", MATRIX),
    )


_RESBLOCK = r"visual\.transformer\.resblocks\.(\d+)"
_OPENAI = rows(
    Rule(r"visual\.class_embedding", "cls", VECTOR),
    Rule(r"visual\.positional_embedding", "positions", AS_IS),
    Rule(r"visual\.conv1\.weight", _PATCH, PATCH),
    affine(r"visual\.ln_pre", "pre_norm"),
    affine(_RESBLOCK + r"\.ln_1", "block_{}.norm1"),
    Rule(_RESBLOCK + r"\.attn\.in_proj_weight", "block_{}.qkv.kernel", MATRIX),
    Rule(_RESBLOCK + r"\.attn\.in_proj_bias", "block_{}.qkv.bias", VECTOR),
    dense(_RESBLOCK + r"\.attn\.out_proj", "block_{}.out"),
    affine(_RESBLOCK + r"\.ln_2", "block_{}.norm2"),
    dense(_RESBLOCK + r"\.mlp\.c_fc", "block_{}.fc1"),
    dense(_RESBLOCK + r"\.mlp\.c_proj", "block_{}.fc2"),
    affine(r"visual\.ln_post", "norm"),
    Rule(r"visual\.proj", "projection.kernel", AS_IS),
)

_HF_TEXT = (r"text_model\..*", r"text_projection\..*", r"logit_scale", r".*\.position_ids")
_SPEC = (("eps", 1e-5), ("interpolation", "half_pixel"))

LAYOUTS = (
    Layout("hf-clip", _hf(r"vision_model\."), _HF_TEXT, _SPEC),
    Layout("hf5-clip", _hf(""), _HF_TEXT, _SPEC),  # CLIPVisionModel as transformers 5 names it in memory
    Layout(
        "openai",
        _OPENAI,
        (
            r"transformer\..*",
            r"token_embedding\.weight",
            r"ln_final\..*",
            r"positional_embedding",
            r"text_projection",
            r"logit_scale",
            r"logit_bias",
            r"input_resolution",
            r"context_length",
            r"vocab_size",
            r"attn_mask",
        ),
        _SPEC,
    ),
)
PREFIXES = (r"module\.",)
