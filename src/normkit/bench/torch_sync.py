"""torch's SyncBatchNorm, step by step, where its own kernels do not exist: a stand-in to be named as one.

torch.nn.SyncBatchNorm refuses the CPU: batch_norm_stats, _gather_stats_with_counts, _elemt and their backwards are CUDA
kernels. Here are the same steps in the same order with the same collectives (one all_gather of mean, invstd and count
forward, one all_reduce of two sums backward, in the input's dtype), each local step by the fastest ATen kernel of the
CPU that computes it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

aten = torch.ops.aten


class TorchAlgorithm(nn.BatchNorm2d):
    """Batch norm under the statistics of all ranks, in training, over (N, C, H, W) float32; no empty batch."""

    def forward(self, input: Tensor) -> Tensor:
        """x: (N, C, H, W) -> (N, C, H, W)."""
        y: Tensor = _Synchronised.apply(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
        )
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return y


class _Synchronised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, weight, bias, running_mean, running_var, momentum, eps = arguments
        channels, values = x.shape[1], x.numel() // x.shape[1]
        unused = torch.empty(channels), torch.empty(channels)
        mean, var = aten.batch_norm_update_stats(x, *unused, 0.0)
        own = torch.cat([mean, (var + eps).rsqrt(), x.new_full((1,), values)])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, invstds, counts = torch.stack(parts).split(channels, dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (counts * (invstds.pow(-2) - eps + (means - mean).square())).sum(0) / count
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * count / (count - 1), momentum)
        y: Tensor = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, weight, mean, var, count = ctx.saved_tensors
        invstd = (var + ctx.eps).rsqrt()
        _, dweight, dbias = aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.cat([dbias, dweight / invstd])  # of dy, and of dy (x - mean)
        dist.all_reduce(sums)
        mean_dy, mean_dy_xmu = (sums / count).chunk(2)
        scale = weight * invstd
        slope = -scale * invstd.square() * mean_dy_xmu
        shift = -scale * mean_dy - slope * mean
        scale, slope, shift = (value.view(1, -1, 1, 1) for value in (scale, slope, shift))
        return torch.addcmul(shift, dy, scale).addcmul_(x, slope), dweight, dbias, None, None, None, None
