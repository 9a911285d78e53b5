"""The ways in which libraries write RMS and layer norms over one axis, each as a class that derives from nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Weighted(nn.Module):
    """One weight of (D,)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def normalized(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class CastThenWeight(Weighted):
    """Llama, Qwen, Mistral."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.normalized(hidden_states.float()).to(hidden_states.dtype)


class CastTwice(Weighted):
    """T5: the input is cast for its mean square only, so that its two gradients are rounded before they are added."""

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon)).to(self.weight.dtype)


class WeightThenCast(Weighted):
    """OLMo 2."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * self.normalized(x.float())).to(x.dtype)


class OnePlus(nn.Module):
    """Gemma: zeros are the identity."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class NoWeight(nn.Module):
    """Llama 4's L2 norm."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x)


class FixedWidth(nn.Module):
    """OLMo: layer norm of one width, without parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, None, None, eps=1e-5).to(x.dtype)


class GateFirst(Weighted):
    """Mamba 2."""

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        x = hidden_states.float()
        if gate is not None:
            x = x * F.silu(gate.float())
        return self.weight * self.normalized(x).to(hidden_states.dtype)


class GroupedGateFirst(Weighted):
    """Mamba 2 with several groups."""

    def __init__(self, width: int, group_size: int) -> None:
        super().__init__(width)
        self.group_size = group_size

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        x = hidden_states.float()
        if gate is not None:
            x = x * F.silu(gate.float())
        y = self.normalized(x.unflatten(-1, (-1, self.group_size))).flatten(-2)
        return self.weight * y.to(hidden_states.dtype)


class GroupedWeightThenCast(Weighted):
    """Falcon-H1: n_groups, and the weight before the cast."""

    def __init__(self, width: int, n_groups: int) -> None:
        super().__init__(width)
        self.n_groups = n_groups

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * self.normalized(x.float().unflatten(-1, (self.n_groups, -1))).flatten(-2)).to(x.dtype)


class RoundedOnePlus(nn.LayerNorm):
    """Nemotron: 1 + weight is a tensor of the weight's dtype before it multiplies."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class GroupedRoundedOnePlus(GroupedWeightThenCast):
    """Both, for what nobody has written yet."""

    def forward(self, x: Tensor) -> Tensor:
        parts = self.normalized(x.float().unflatten(-1, (self.n_groups, -1)))
        return ((self.weight + 1) * parts.flatten(-2)).to(x.dtype)


class GateLast(Weighted):
    """Qwen 3 Next."""

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        y = self.weight * self.normalized(hidden_states.float()).to(hidden_states.dtype)
        return (y * F.silu(gate.float())).to(hidden_states.dtype)


class CentredWithBias(nn.Module):
    """DeBERTa."""

    def __init__(self, width: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        y = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.gamma * y.to(x.dtype) + self.beta


class OverChannels(nn.Module):
    """ViTDet: (N, C, H, W) over C, in the input's dtype throughout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        y = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * y + self.bias[:, None, None]


# -- what is none of them ----------------------------------------------------------------------------------------------
class UnbiasedNorm(Weighted):
    """Divides by D - 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6)


class OutsideNorm(Weighted):
    """Its eps is outside of the root."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-6)


class WeightFirstNorm(Weighted):
    """The weight multiplies before the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.normalized(self.weight * x)


class DetachedNorm(Weighted):
    """The statistics get no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True).detach() + 1e-6)


class CountingNorm(Weighted):
    """Its calls leave something behind."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.weight * self.normalized(x)


class GroupedNorm(Weighted):
    """Over parts of the last axis, and no setting says so."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normalized(x.unflatten(-1, (-1, 4))).flatten(-2)


class OnlyInEvaluationNorm(Weighted):
    """Another function in training."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normalized(x) if not self.training else self.weight * x


class InPlaceNorm(Weighted):
    """Changes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).mul_(self.weight)
