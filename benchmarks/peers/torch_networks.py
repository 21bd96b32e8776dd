"""The networks of the workloads in PyTorch, with random weights, and our backbones with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from muscjax import workloads
from muscjax.backbones import registry
from muscjax.profile.stages import network_options
from tests.peers.published import write
from tests.peers.torch_models import Attention, OpenAIClip, PlainViT, PointMAE, perturb
from weights_convert import convert


class FusedAttention(Attention):
    """The same layer through torch's fused operator, which never holds the weights of all pairs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def fused(model: torch.nn.Module) -> torch.nn.Module:
    """Turn every plain attention of the model into the fused one, in place; the parameters stay."""
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = FusedAttention
    return model


def _converted(model: Any, load: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        published = write("safetensors", model, Path(folder))
        return load(convert(published, Path(folder) / "converted" / "weights.safetensors").path)


def image_pair(workload: workloads.ImageNetwork, precision: str) -> tuple[Any, Any]:
    """The torch model, and our backbone with its weights."""
    sizes: dict[str, Any] = {
        "patch": workload.patch, "image": workload.stored_size, "width": workload.width,
        "depth": workload.depth, "heads": workload.heads,
    }  # fmt: skip
    model = perturb(OpenAIClip(**sizes) if workload.family == "clip" else PlainViT(**sizes))
    options: dict[str, Any] = network_options(precision)
    options |= {"image_size": workload.image_size, "taps": workload.taps}
    options |= {"final_norm": workload.spec().final_norm}
    return model, _converted(model, lambda path: registry.load_image_backbone(path, **options))


def point_pair(workload: workloads.PointNetwork, precision: str) -> tuple[Any, Any]:
    model = perturb(PointMAE(width=workload.width, heads=workload.heads, depth=workload.depth))
    options: dict[str, Any] = {**network_options(precision), "taps": workload.taps}
    return model, _converted(model, lambda path: registry.load_point_backbone(path, **options))


def image_tokens(
    model: Any, workload: workloads.ImageNetwork, images: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """uint8 images (B, H, W, 3) to tokens (S, B, M, C)."""
    spec = workload.spec()
    mean, std = (torch.tensor(v, device=images.device) for v in (spec.mean, spec.std))
    pixels = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)
    found = model(pixels)
    hidden = found[0] if isinstance(found, tuple) else found
    norm = model.norm if spec.final_norm else (lambda x: x)
    return torch.stack([norm(hidden[i])[:, 1:] for i in workload.taps])


def point_tokens(
    model: Any, workload: workloads.PointNetwork, neighbourhood: torch.Tensor, centers: torch.Tensor
) -> torch.Tensor:
    """Groups (G, K, 3) relative to their centres (G, 3) to tokens (S, G, C)."""
    hidden = model(neighbourhood, centers)
    return torch.stack([model.norm(hidden[i]) for i in workload.taps])


def moved(array: Any, device: str) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(device)
