"""A small network and images for the two examples of every rule, and for whoever tries one of their own."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .._torch import NormBase
from ..statistics.recalibrate import recalibrate

# (model, batches), or with a third: a dict of `nk.diagnose`'s keyword arguments
Example: TypeAlias = "tuple[Any, ...]"


def images(batches: int = 8, size: int = 16, channels: int = 3, pixels: int = 8) -> list[Tensor]:
    """Batches of (size, channels, pixels, pixels): images of differing light and contrast, always the same ones."""
    g = torch.Generator().manual_seed(0)
    shape = batches * size, channels, pixels, pixels
    light = torch.randn(shape[0], 1, 1, 1, generator=g) * 0.5
    contrast = 1 + 0.3 * torch.rand(shape[0], 1, 1, 1, generator=g)
    return list((torch.randn(shape, generator=g) * contrast + light).split(size))


def small_net(*, seed: int = 0) -> Any:
    """Two convolutions, each with batch norm ("1", "4") and ReLU, and a linear layer; as a trained net: in evaluation
    mode, with statistics that are those of `images()`."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would load Dynamo, which takes seconds
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        return settled(model, images())


def settled(model: Any, batches: list[Tensor]) -> Any:
    """The model as after a training: gamma and beta that have moved, exact statistics, 1,000 batches counted; in
    evaluation mode."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (NormBase, nn.GroupNorm, nn.LayerNorm)):
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5)
                if module.bias is not None:
                    module.bias.normal_(0, 0.2)
                counter = module._buffers.get("num_batches_tracked")
                if counter is not None:
                    counter.fill_(1000)
    recalibrate(model.eval(), batches, progress=False)
    return model


def replicated(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, as a process of its own would hold it."""
    distributed: Any = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(model)
    finally:
        distributed.destroy_process_group()
