"""From the shapes in a checkpoint to the architecture; one damaged tensor must not mislead it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from muscjax.backbones import point_mae, vit
from muscjax.backbones.layers import ACTIVATIONS
from muscjax.config import typed
from muscjax.errors import InputError, shown
from muscjax.texts import read_json
from weights_convert.rules import Shape

# What the tensors of a family do not tell. CLIP is run at 518 as in MuSc where its patch divides that.
_FAMILY: dict[str, dict[str, Any]] = {
    "dino": {},
    "dinov2": {"layer_scale": True},
    "deit": {"interpolation": "half_pixel"},
    "clip": {
        "activation": "quick_gelu",
        "pre_norm": True,
        "patch_bias": False,
        "final_norm": False,
        "mean": vit.CLIP_MEAN,
        "std": vit.CLIP_STD,
    },
}


def thirds(depth: int) -> tuple[int, ...]:
    """The last block of each third: 3, 7, 11 of 12 and 7, 15, 23 of 24."""
    return tuple(sorted({max(depth * i // 3 - 1, 0) for i in (1, 2, 3)}))


def image_spec(
    family: str,
    defaults: Mapping[str, Any],
    found: Mapping[str, Shape],
    depth: int,
    *,
    projected: bool,
    text: int | None,
    overrides: Mapping[str, Any],
) -> vit.Spec:
    """A vision transformer.

    Args:
      family: one of ``dino dinov2 deit clip``.
      defaults: what the layout's code base sets.
      found: target name -> shape that the source tensor would give.
      depth: number of blocks.
      projected: the checkpoint is one that must hold CLIP's projection.
      text: channels of the text tower's projection, where it is there.
      overrides: fields that the caller states.
    """
    width = _vote(shape[-1] for name, shape in found.items() if name.endswith(".scale") or name == "cls")
    hidden = _vote(
        (shape[-1] for name, shape in found.items() if name.endswith("fc1.bias")), default=4 * width
    )
    patch = max(round((found.get("patch.kernel", (768,))[0] / 3) ** 0.5), 1)
    grid = round(max(found.get("positions", (197, width))[0] - 1, 1) ** 0.5)
    values: dict[str, Any] = {
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": max(width // 64, 1),
        "image_size": grid * patch,
        "mlp_ratio": hidden / width,
        "registers": found.get("registers", (0,))[0],
        "taps": thirds(depth),
        "input_size": grid * patch,
        "family": family,
    }
    if family == "clip":
        values["input_size"] = 518 if patch == 14 else grid * patch
    if projected or "projection.kernel" in found:
        values["projection"] = _projection(found.get("projection.kernel"), width, text)
    values |= defaults
    values |= _FAMILY[family]
    if values["registers"]:
        values["interpolation"] = "antialias"  # both code bases do so for the models with registers
    values |= overrides
    return vit.Spec(**values)


def point_spec(found: Mapping[str, Shape], depth: int, *, overrides: Mapping[str, Any]) -> point_mae.Spec:
    """A Point-MAE encoder; arguments as :func:`image_spec`."""
    width = _vote(shape[-1] for name, shape in found.items() if name.startswith("block_") and "norm" in name)
    hidden = _vote(
        (shape[-1] for name, shape in found.items() if name.endswith("fc1.bias")), default=4 * width
    )
    values: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "heads": max(width // 64, 1),
        "mlp_ratio": hidden / width,
        "taps": thirds(depth),
    }
    return point_mae.Spec(**(values | dict(overrides)))


def beside(path: Path, layout: str, spec: vit.Spec) -> dict[str, Any]:
    """Fields that Hugging Face's or timm's configuration files beside a checkpoint state.

    Raises:
      InputError: one of them cannot be read, describes another network or an unknown activation.
    """
    config = _json(path.parent / "config.json")
    if not layout.startswith("hf"):
        stated = config.get("pretrained_cfg")
        stated = stated if isinstance(stated, dict) else {}
        return _stated(
            {name: _triple(stated.get(name)) for name in ("mean", "std")}, path.parent / "config.json"
        )
    vision = config.get("vision_config", config)
    vision = vision if isinstance(vision, dict) else {}
    for name, found in (("hidden_size", spec.width), ("num_hidden_layers", spec.depth)):
        if vision.get(name, found) != found:
            raise InputError(
                f"{path.parent / 'config.json'}: {name} is {shown(vision[name])}, but {path.name} has {found}"
            )
    activation = vision.get("hidden_act")
    if activation is not None and activation not in tuple(ACTIVATIONS):
        raise InputError(
            f"{path.parent / 'config.json'}: hidden_act {shown(activation)} is not one of {[*ACTIVATIONS]}"
        )
    prepare = _json(path.parent / "preprocessor_config.json")
    return _stated(
        {
            "heads": vision.get("num_attention_heads"),
            "eps": vision.get("layer_norm_eps"),
            "activation": activation,
        },
        path.parent / "config.json",
    ) | _stated(
        {"mean": _triple(prepare.get("image_mean")), "std": _triple(prepare.get("image_std"))},
        path.parent / "preprocessor_config.json",
    )


_HINTS = get_type_hints(vit.Spec)


def _stated(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of the architecture that are there, each of its type; InputError names the file."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {name: typed(value, _HINTS[name], f"{path}: {name}") for name, value in given.items()}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _triple(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) and len(value) == 3 else None


def _projection(shape: Shape | None, width: int, text: int | None) -> int:
    """Channels of the projected class token: the text tower's, else what the tensor itself says.

    Published sizes are multiples of 64; a tensor that was cut short must not pass for a smaller one.
    """
    if text is not None:
        return text
    if shape is None:
        return width
    size = shape[0] if shape[0] != width and shape[1] == width else shape[1]
    return max(round(size / 16) * 16, 16)


def _vote(values: Iterable[int], *, default: int = 1) -> int:
    """The most frequent size; empty tensors have no say."""
    counted = Counter(value for value in values if value > 0)
    return counted.most_common(1)[0][0] if counted else default
