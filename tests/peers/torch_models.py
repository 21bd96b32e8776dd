"""Vision transformers and Point-MAE in plain PyTorch, under the names that published checkpoints use.

Each ``forward`` returns what the method taps: the tokens after every block, CLS and registers included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights with norms, biases and statistics far from their neutral values, evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith(("gamma", "lambda1")):
                tensor.copy_(0.5 + draw(tensor, 0.2))
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.copy_(1 + draw(tensor, 0.3))
            elif tensor.ndim <= 1 or name.endswith(("bias", "running_mean")):
                tensor.copy_(draw(tensor, 0.2))
            else:
                fan = tensor[0].numel() if "token" not in name and "pos" not in name else 25
                tensor.copy_(draw(tensor, fan**-0.5))
    return model.eval()


def resized(grid: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Positions (side·side, C) for another grid, as the three code bases ask torch for it."""
    side = int(grid.shape[0] ** 0.5)
    if size == (side, side):
        return grid
    image = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if interpolation == "dino":
        scale = tuple((n + 0.1) / side for n in size)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic")
    else:
        image = F.interpolate(image, size=size, mode="bicubic", antialias=interpolation == "antialias")
    return image.permute(0, 2, 3, 1).reshape(size[0] * size[1], -1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, eps: float, bias: bool = True, scale: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, 4 * width)
        self.ls1 = Scale(width) if scale else nn.Identity()
        self.ls2 = Scale(width) if scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class PlainViT(nn.Module):
    """DINO, DINOv2 and DeiT under their own names; ``registers`` is "", "register_tokens" or "reg_token"."""

    def __init__(
        self,
        *,
        patch: int,
        image: int,
        width: int = 128,
        depth: int = 3,
        heads: int = 2,
        registers: str = "",
        scale: bool = False,
        classes: int = 0,
        interpolation: str = "dino",
    ):
        super().__init__()
        rows = (image // patch) ** 2 + (registers != "reg_token")
        self.interpolation, self.registers = interpolation, registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
        self.patch_embed = PatchEmbed(width, patch)
        if registers:
            setattr(self, registers, nn.Parameter(torch.zeros(1, 4, width)))
        if scale and registers != "reg_token":
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 1e-6, scale=scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if classes:
            self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = self.patch_embed.proj(images)
        batch, _, *size = x.shape
        x = x.flatten(2).transpose(1, 2)
        stored = self.pos_embed[0]
        first = stored[:0] if self.registers == "reg_token" else stored[:1]
        x = x + resized(stored[len(first) :], tuple(size), self.interpolation)
        head = self.cls_token[0] + first if len(first) else self.cls_token[0]
        if self.registers:
            head = torch.cat([head, getattr(self, self.registers)[0]])
        x = torch.cat([head.expand(batch, -1, -1), x], 1)
        out = []
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return out


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ResBlocks(nn.Module):
    def __init__(self, width: int, heads: int, depth: int):
        super().__init__()
        self.resblocks = nn.ModuleList(ResBlock(width, heads) for _ in range(depth))


class Visual(nn.Module):
    def __init__(self, patch: int, image: int, width: int, heads: int, depth: int, projection: int):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((image // patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.zeros(width, projection))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = ResBlocks(width, heads, depth)
        self.ln_post = nn.LayerNorm(width)


class OpenAIClip(nn.Module):
    """The image tower under OpenAI's names, with a stub of the text tower's parameters beside it."""

    def __init__(self, *, patch: int, image: int, width: int = 128, heads: int = 2, depth: int = 3):
        super().__init__()
        self.visual = Visual(patch, image, width, heads, depth, 48)
        self.transformer = ResBlocks(16, 1, 1)
        self.token_embedding = nn.Embedding(10, 16)
        self.positional_embedding = nn.Parameter(torch.zeros(5, 16))
        self.ln_final = nn.LayerNorm(16)
        self.text_projection = nn.Parameter(torch.zeros(16, 48))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        visual = self.visual
        x = visual.conv1(images)
        batch, _, *size = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + resized(visual.positional_embedding[1:], tuple(size), "half_pixel")
        head = visual.class_embedding + visual.positional_embedding[0]
        x = visual.ln_pre(torch.cat([head.expand(batch, 1, -1), x], 1))
        out = []
        for block in visual.transformer.resblocks:
            x = block(x)
            out.append(x)
        return out, visual.ln_post(x[:, 0]) @ visual.proj


class GroupEncoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, width, 1)
        )

    def forward(self, neighbourhood: torch.Tensor) -> torch.Tensor:
        local = self.first_conv(neighbourhood.transpose(1, 2))
        whole = local.max(2, keepdim=True)[0].expand_as(local)
        return self.second_conv(torch.cat([whole, local], 1)).max(2)[0]


class Blocks(nn.Module):
    def __init__(self, width: int, heads: int, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, 1e-5, bias=False) for _ in range(depth))


class PointMAE(nn.Module):
    """Point-MAE's encoder; ``classifier`` adds what a fine-tuned one has beside it."""

    def __init__(self, *, width: int = 128, heads: int = 2, depth: int = 3, classifier: bool = False):
        super().__init__()
        self.encoder = GroupEncoder(width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = Blocks(width, heads, depth)
        self.norm = nn.LayerNorm(width)
        if classifier:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
            self.cls_head_finetune = nn.Sequential(
                nn.Linear(2 * width, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
            )

    def forward(self, neighbourhood: torch.Tensor, centers: torch.Tensor) -> list[torch.Tensor]:
        """Groups (G, K, 3) relative to their centres (G, 3); tokens (G, C) after every block."""
        x, position = self.encoder(neighbourhood)[None], self.pos_embed(centers)[None]
        out = []
        for block in self.blocks.blocks:
            x = block(x + position)
            out.append(x[0])
        return out
