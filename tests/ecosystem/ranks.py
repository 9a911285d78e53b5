"""Two processes over gloo that train the net under FSDP2 and DDP; tests/processes.py starts them."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import normkit as nk
from tests import processes
from tests.ecosystem.nets import accelerated, images, labels, net

RANKS, LIMIT = 2, 90  # LIMIT: seconds that a collective waits for the other rank
MODELS: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: net(nn),
    "drop-in": lambda: net(nk),
    "accelerated": accelerated,
}
State = dict[str, Tensor]

if processes.FSDP2:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def sharded(model: nn.Module, **options: object) -> nn.Module:
    """Each norm and convolution a group of its own, then the rest: their weights are DTensors between the calls."""
    mesh = init_device_mesh("cpu", (RANKS,))
    for child in model.children():
        if list(child.parameters()):
            fully_shard(child, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def trained(model: nn.Module, rank: int) -> nn.Module:
    """Three steps, each rank on images of its own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for step in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images(seed=10 * rank + step)), labels()).backward()
        optimizer.step()
    return model


def whole(model: nn.Module) -> State:
    """The state with every parameter gathered."""
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {name: value.clone() for name, value in gathered.items()} | buffers


def replicated(rank: int) -> dict[str, State]:
    """What DDP trains."""
    models = {name: DistributedDataParallel(make(), broadcast_buffers=False) for name, make in MODELS.items()}
    models["sync"] = DistributedDataParallel(nk.convert(net(nn), "sync"))
    return {f"ddp {name}": trained(model, rank).module.state_dict() for name, model in models.items()}


def scattered(rank: int) -> dict[str, State]:
    """What FSDP2 trains, and statistics measured on a sharded model and on the whole one."""
    found: dict[str, State] = {}
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for name, make in MODELS.items():
        found[f"fsdp {name}"] = whole(trained(sharded(make()), rank))
        if name != "torch":  # whose batch norm on the CPU takes no bfloat16 weights beside float32 statistics
            found[f"bfloat16 {name}"] = whole(trained(sharded(make(), mp_policy=half), rank))
    found["fsdp sync"] = whole(trained(sharded(nk.convert(net(nn), "sync")), rank))
    model = trained(sharded(net(nk)), rank)
    before = whole(model)
    report = nk.recalibrate(model, [images(seed=rank)])
    found["recalibrated"] = whole(model)
    found["before"] = before
    assert len(report.recalibrated) == 2
    alone = net(nk)
    alone.load_state_dict(before)
    nk.recalibrate(alone, [images(seed=0), images(seed=1)], distributed=False)
    found["alone"] = copy.deepcopy(alone.state_dict())
    return found


def main(folder: Path, rank: int) -> None:
    warnings.simplefilter("ignore")  # torch's about gloo and the CPU
    torch.set_num_threads(1)
    processes.join(folder, rank, RANKS, LIMIT)
    try:
        torch.save(replicated(rank) | (scattered(rank) if processes.FSDP2 else {}), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
