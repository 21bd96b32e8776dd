"""Point-MAE: the pre-training checkpoint, a bare encoder, a fine-tuned classifier."""

from weights_convert.rules import (
    CONV1D,
    GLOBAL_HALF,
    LOCAL_HALF,
    MATRIX,
    VECTOR,
    Layout,
    Rule,
    affine,
    dense,
    rows,
)


def _batch_norm(source: str, target: str):
    return [
        *affine(source, target),
        Rule(rf"{source}\.running_mean", f"{target}.mean", VECTOR),
        Rule(rf"{source}\.running_var", f"{target}.var", VECTOR),
    ]


_BLOCK = r"blocks\.blocks\.(\d+)"
_ENCODER = rows(
    dense(r"encoder\.first_conv\.0", "encoder.first_1", op=CONV1D),
    _batch_norm(r"encoder\.first_conv\.1", "encoder.first_norm"),
    dense(r"encoder\.first_conv\.3", "encoder.first_2", op=CONV1D),
    Rule(r"encoder\.second_conv\.0\.weight", "encoder.second_global.kernel", GLOBAL_HALF),
    Rule(r"encoder\.second_conv\.0\.weight", "encoder.second_local.kernel", LOCAL_HALF),
    Rule(r"encoder\.second_conv\.0\.bias", "encoder.second_global.bias", VECTOR),
    _batch_norm(r"encoder\.second_conv\.1", "encoder.second_norm"),
    dense(r"encoder\.second_conv\.3", "encoder.second_2", op=CONV1D),
    dense(r"pos_embed\.0", "position_1"),
    dense(r"pos_embed\.2", "position_2"),
    affine(_BLOCK + r"\.norm1", "block_{}.norm1"),
    Rule(_BLOCK + r"\.attn\.qkv\.weight", "block_{}.qkv.kernel", MATRIX),
    dense(_BLOCK + r"\.attn\.proj", "block_{}.out"),
    affine(_BLOCK + r"\.norm2", "block_{}.norm2"),
    dense(_BLOCK + r"\.mlp\.fc1", "block_{}.fc1"),
    dense(_BLOCK + r"\.mlp\.fc2", "block_{}.fc2"),
    affine(r"norm", "norm"),
)

LAYOUTS = (
    Layout(
        "point-mae",
        _ENCODER,
        (
            r".*\.num_batches_tracked",
            r"mask_token",
            r"decoder_pos_embed\..*",
            r"MAE_decoder\..*",
            r"increase_dim\..*",
            r"cls_token",
            r"cls_pos",
            r"cls_head_finetune\..*",
        ),
        (("eps", 1e-5),),
    ),
)
PREFIXES = (r"module\.", r"MAE_encoder\.")
