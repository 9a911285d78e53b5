"""Layers that derive from no norm, as detection models and reinforcement learners have them."""

import torch
from torch import nn


class DetrLikeFrozenBatchNorm2d(nn.Module):
    """Four buffers, and an eps that is no attribute."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        weight, bias, mean, var = (b.reshape(1, -1, 1, 1) for b in self._buffers.values())
        scale = weight * (var + 1e-3).rsqrt()
        return x * scale + (bias - mean * scale)


class FrozenBN(DetrLikeFrozenBatchNorm2d):
    """No "FrozenBatchNorm" in its name, and an eps that is an attribute."""

    eps = 1e-3


class Still2d(nn.BatchNorm2d):
    """A batch norm by its class, whose forward never moves nor uses anything but the running statistics."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)

    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class StaysInEvaluation2d(nn.BatchNorm2d):
    """torch's forward, and a mode that nothing changes; as many models' own, its train() returns nothing."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)
        self.eval()

    def train(self, mode=True):
        super().train(False)


class FixedAffine2d(nn.BatchNorm2d):
    """Weight and bias are buffers, and the statistics move: not frozen."""

    def __init__(self, channels):
        super().__init__(channels)
        for name in ("weight", "bias"):
            value = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, value)


class OwnFixedAffine2d(FixedAffine2d):
    def forward(self, x):
        return super().forward(x) * 1.0


class RunningMeanStd(nn.Module):
    """A normalizer of observations: statistics of any shape, over the last axes."""

    def __init__(self, shape):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))
        self.register_buffer("count", torch.ones(()))

    def forward(self, x):
        return ((x - self.running_mean) / (self.running_var + 1e-5).sqrt()).clamp(-5, 5)


class RmsLikeNorm(nn.Module):
    """A norm of a model library, which derives from nothing and is not ours: its eps is outside of the root."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return self.weight * x / x.square().mean(-1, keepdim=True).sqrt().add(1e-6)


class EomtLikeLayerNorm2d(nn.LayerNorm):
    """Over the channels of images, and its name does not begin with LayerNorm2d."""

    def forward(self, x):
        shape = self.normalized_shape
        return nn.functional.layer_norm(x.movedim(1, -1), shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class LayerNorm2dByNameOnly(nn.LayerNorm):
    """Over the last axis, whatever its name begins with."""

    def forward(self, x):
        return super().forward(x)
