"""Whole models in torch's plain layers, with random weights: what `normkit bench --models` trains and runs.

Norms are written as the field writes them: a decoder's RMS norm is a module of its own that casts, normalizes, casts
back and multiplies; the others are torch's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import ResNet50

VOCABULARY = 4096


class RootMeanSquareNorm(nn.Module):
    """RMS norm as language models write it: in float32, cast back, then times the weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (*, width)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Self-attention with heads of 64."""

    def __init__(self, width: int, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, L, width)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), of 8/3 the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = (8 * width // 3 + 63) // 64 * 64
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, L, width)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class PreNormBlock(nn.Module):
    """The block of decoders and vision transformers: h = h + f(norm(h)), twice."""

    def __init__(self, width: int, decoder: bool) -> None:
        super().__init__()
        norm = RootMeanSquareNorm if decoder else nn.LayerNorm
        self.norm1, self.attention = norm(width), Attention(width, causal=decoder, bias=not decoder)
        self.norm2, self.mlp = norm(width), GatedMlp(width) if decoder else _mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, L, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNormBlock(nn.Module):
    """The block of BERT and wav2vec 2.0: h = norm(h + f(h)), twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width), nn.LayerNorm(width)
        self.mlp, self.norm2 = _mlp(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, L, width)."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


def decoder(width: int, depth: int = 8) -> nn.Module:
    """Tokens (N, L) -> (N, L, VOCABULARY)."""
    blocks = [PreNormBlock(width, decoder=True) for _ in range(depth)]
    head = nn.Linear(width, VOCABULARY, bias=False)
    return nn.Sequential(nn.Embedding(VOCABULARY, width), *blocks, RootMeanSquareNorm(width), head)


class Tokens(nn.Module):
    """(N, C, *) -> (N, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, *)."""
        return x.flatten(2).transpose(1, 2)


def vision_transformer(width: int = 384, depth: int = 12) -> nn.Module:
    """ViT-S/16: images (N, 3, H, W) -> (N, L, 1000), L tokens of 16x16 pixels."""
    blocks = [PreNormBlock(width, decoder=False) for _ in range(depth)]
    return nn.Sequential(nn.Conv2d(3, width, 16, 16), Tokens(), *blocks, nn.LayerNorm(width), nn.Linear(width, 1000))


def speech_encoder(width: int = 768, depth: int = 12) -> nn.Module:
    """wav2vec 2.0 base: sound (N, 1, T) -> (N, T / 320, width)."""
    layers: list[nn.Module] = [nn.Conv1d(1, 512, 10, 5, bias=False), nn.GroupNorm(512, 512), nn.GELU()]
    for kernel in (3, 3, 3, 3, 2, 2):
        layers += [nn.Conv1d(512, 512, kernel, 2, bias=False), nn.GELU()]
    blocks = [PostNormBlock(width) for _ in range(depth)]
    return nn.Sequential(*layers, Tokens(), nn.LayerNorm(512), nn.Linear(512, width), *blocks)


class ConvNextBlock(nn.Module):
    """A 7x7 convolution of each channel, then layer norm and an MLP over the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, 1e-6)
        self.mlp, self.scale = _mlp(width), nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, width, H, W)."""
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.mlp(y)).permute(0, 3, 1, 2)


def convnext(width: int = 96, depths: tuple[int, ...] = (3, 3, 9, 3)) -> nn.Module:
    """ConvNeXt-T: images (N, 3, H, W) -> (N, L, 1000); group norm of one group stands between the stages."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 4)]
    for stage, depth in enumerate(depths):
        layers += [nn.GroupNorm(1, width << stage), *(ConvNextBlock(width << stage) for _ in range(depth))]
        if stage + 1 < len(depths):
            layers.append(nn.Conv2d(width << stage, 2 * width << stage, 2, 2))
    last = width << len(depths) - 1
    return nn.Sequential(*layers, Tokens(), nn.LayerNorm(last), nn.Linear(last, 1000))


class UNet(nn.Module):
    """Images (N, 3, H, W) -> (N, 2, H, W): two convolutions with batch norm and ReLU on each level."""

    def __init__(self, width: int = 32, levels: int = 4) -> None:
        super().__init__()
        sizes = [width << level for level in range(levels)]
        self.down = nn.ModuleList(self._level(a, b) for a, b in zip((3, *sizes), sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in sizes[-2::-1])
        self.joined = nn.ModuleList(self._level(2 * size, size) for size in sizes[-2::-1])
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, 2, 1)

    @staticmethod
    def _level(inputs: int, width: int) -> nn.Module:
        convolutions = [nn.Conv2d(n, width, 3, padding=1, bias=False) for n in (inputs, width)]
        return nn.Sequential(
            *(layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W)."""
        kept: list[Tensor] = []
        for level in self.down:
            x = level(self.pool(x) if kept else x)
            kept.append(x)
        for up, joined, across in zip(self.up, self.joined, kept[-2::-1], strict=True):
            x = joined(torch.cat([across, up(x)], 1))
        return self.head(x)


@dataclass(frozen=True)
class Net:
    """A model of the comparison: how it is made, and the shape of its input (of tokens where it is of two axes)."""

    name: str
    make: Callable[..., nn.Module]
    arguments: tuple[int, ...]
    shape: tuple[int, ...]

    def input(self, dtype: torch.dtype) -> Tensor:
        random = torch.Generator().manual_seed(1)
        if len(self.shape) == 2:
            return torch.randint(VOCABULARY, self.shape, generator=random)
        return torch.randn(self.shape, generator=random).to(dtype)


def _decoders(*sizes: tuple[int, int, int]) -> tuple[Net, ...]:
    return tuple(Net(f"decoder, d {width}", decoder, (width,), (n, length)) for width, n, length in sizes)


def _others(batch: int, size: int, samples: int) -> tuple[Net, ...]:
    images = (batch, 3, size, size)
    return (
        Net("ViT-S", vision_transformer, (), images), Net("ConvNeXt-T", convnext, (), images),
        Net("wav2vec 2.0", speech_encoder, (), (batch, 1, samples)), Net("ResNet-50", ResNet50, (), images),
        Net("U-Net", UNet, (), images),
    )  # fmt: skip


NETS: dict[str, tuple[Net, ...]] = {
    "quick": (*_decoders((512, 1, 128)), *_others(1, 224, 16000)),
    "full": (
        *_decoders((512, 1, 128), (512, 8, 512), (1024, 1, 512), (1024, 4, 2048), (2048, 1, 128), (2048, 1, 2048)),
        *_others(8, 224, 80000),
    ),
}
