"""The same training with FSDP2: parameters are sharded over the ranks, statistics stay whole and in float32.

    torchrun --nproc-per-node 2 examples/fsdp2_train.py       # or: python examples/fsdp2_train.py

Each layer with parameters is a unit of `fully_shard`. Buffers are not sharded, and nk.SyncBatchNorm keeps them the same
on every rank.
"""

from __future__ import annotations

from ddp_train import main
from torch import nn
from torch.distributed.fsdp import fully_shard


def sharded(model: nn.Module, ranks: int) -> nn.Module:
    if ranks == 1:
        return model
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


if __name__ == "__main__":
    main("Sharded training with synchronised batch norm.", sharded)
