"""Data-parallel training with synchronised batch norm: two processes compute what one computes with the whole batch.

    torchrun --nproc-per-node 2 examples/ddp_train.py     # or: python examples/ddp_train.py

Each rank takes its share of every batch of 64 digits. DistributedDataParallel averages the gradients, nk.SyncBatchNorm
merges the ranks' moments; so the trained model is the same for any number of ranks that divides 64, but for rounding,
which training magnifies: with --float64 all digits that a float32 has agree.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import normkit as nk

BATCH, EPOCHS = 64, 3


def network() -> nn.Module:
    torch.manual_seed(0)  # the same start on every rank
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return nk.convert(model, "sync")  # on one rank it is batch norm


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8).div(16.0)
    return x[order], torch.from_numpy(labels).long()[order]


def data_parallel(model: nn.Module, ranks: int) -> nn.Module:
    return DistributedDataParallel(model) if ranks > 1 else model


def train(
    rank: int, ranks: int, shared: Callable[[nn.Module, int], nn.Module], dtype: torch.dtype
) -> tuple[nn.Module, float]:
    """The trained model and its accuracy on digits that it has not seen. shared: what spreads a model over ranks."""
    images, labels = digits()
    images = images.to(dtype)
    trained = len(images) * 3 // 4 // BATCH * BATCH
    model = network().to(dtype)
    whole = shared(model, ranks)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for x, y in zip(images[:trained].split(BATCH), labels[:trained].split(BATCH), strict=True):
            mine, theirs = x.chunk(ranks)[rank], y.chunk(ranks)[rank]
            optimizer.zero_grad()
            F.cross_entropy(whole(mine), theirs).backward()
            optimizer.step()
    model.eval()  # the running statistics are the same on every rank
    with torch.no_grad():
        right = model(images[trained:]).argmax(1) == labels[trained:]
    return model, float(right.float().mean())


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with plain tensors: those of FSDP2 know how to gather themselves."""
    state = model.state_dict()
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}


def main(description: str, shared: Callable[[nn.Module, int], nn.Module]) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", help="write the trained model's state dict to this file")
    parser.add_argument("--float64", action="store_true", help="compute in float64, to compare runs")
    options = parser.parse_args()
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if BATCH % ranks:
        raise SystemExit(f"the number of ranks must divide the batch of {BATCH}, got {ranks}")
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    if ranks > 1:
        dist.init_process_group("gloo")
    try:
        model, accuracy = train(rank, ranks, shared, torch.float64 if options.float64 else torch.float32)
        state = whole_state(model)  # on all ranks: a sharded model is gathered
        if rank == 0:
            print(f"{ranks} rank{'s' if ranks > 1 else ''}: {accuracy:.1%} of the unseen digits are right")
            if options.out:
                torch.save(state, options.out)
    finally:
        if ranks > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main("Data-parallel training with synchronised batch norm.", data_parallel)
