"""Two processes over gloo that run every case of synchronised batch norm once, and the one-process truth of each.

Bounded in time: the processes get `LIMIT` seconds together and are killed after that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn.parallel import DistributedDataParallel

import normkit as nk
from tests import processes
from tests.cases import EPS, MOMENTUM, gaussian, generator, random_mask

LIMIT = 300  # one that hangs; two processes import torch and compute, on a machine that may be busy
SIZES = {
    "even": (4, 4),
    "uneven": (5, 2),
    "one_empty": (6, 0),
    "one_row": (1, 4),
    "masked": (4, 3),
    "cumulative": (3, 4),
}
CASES = list(SIZES)
COMPILED = ("even", "uneven", "masked")


class Fused(NamedTuple):
    """One layer with everything that its kernel takes in."""

    dtype: torch.dtype
    channels_last: bool = False
    activation: str | None = None
    residual: bool = False
    affine: bool = True
    mask_on: int | None = None  # the rank that gives a mask of ones, which takes it off the native kernels


FUSED = {
    "plain": Fused(torch.float32),
    "relu": Fused(torch.float32, activation="relu"),
    "channels_last": Fused(torch.float32, channels_last=True, activation="relu", residual=True),
    "smooth": Fused(torch.float32, activation="silu", residual=True, affine=False),
    "unfused": Fused(torch.float64, channels_last=True, activation="softsign", residual=True),
    "half": Fused(torch.bfloat16, activation="relu", residual=True),
    "mixed": Fused(torch.float32, activation="relu", residual=True, mask_on=1),
}
FUSED_SIZES = (5, 3)


def fused_step(norm: type[nn.Module], options: Fused, rank: int | None, recompute: bool = False) -> dict[str, Tensor]:
    """One training step of one layer on 17 channels of 7x5; rank: whose samples, None: all."""
    g, shape = generator(7), (sum(FUSED_SIZES), 17, 7, 5)
    x, r, dy = (gaussian(shape, g, mean=mean).to(options.dtype) for mean in (2.0, 0.0, 0.0))
    layer = norm(17, EPS, MOMENTUM, activation=options.activation, affine=options.affine).double()
    if options.affine:
        layer.weight.data, layer.bias.data = gaussian((17,), g, mean=1.0), gaussian((17,), g)
    layer.to(options.dtype)
    if rank is not None:
        x, r, dy = (t.split(FUSED_SIZES)[rank] for t in (x, r, dy))
    if options.channels_last:
        x, r, dy = (t.to(memory_format=torch.channels_last) for t in (x, r, dy))
    inputs = [t.detach().requires_grad_() for t in ((x, r) if options.residual else (x,))]
    mask = torch.ones(x.shape[0], 1, 7, 5, dtype=torch.bool) if rank is not None and options.mask_on == rank else None
    with nk.recompute_outputs() if recompute else nullcontext():
        y = layer(*inputs, mask=mask)
        z = y * y  # keeps the norm's output
    z.backward(dy)
    found = {"y": y.detach()} | {name: t.grad for name, t in zip(("dx", "dr"), inputs, strict=False)}
    found |= {f"d{name}": p.grad for name, p in layer.named_parameters()}
    return {name: value for name, value in found.items() if value is not None}


def batch(case: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, dy: (N, 3, 5) of both ranks together, and the mask of the masked case."""
    g, shape = generator(6), (sum(SIZES[case]), 3, 5)
    x, dy = gaussian(shape, g, mean=2.0), gaussian(shape, g)
    return x, dy, random_mask(shape, g) if case == "masked" else None


def _options(case: str) -> dict[str, object]:
    return {"eps": EPS, "momentum": None if case == "cumulative" else MOMENTUM}


def step(layer: nn.Module, x: Tensor, dy: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Two training steps of one layer; the gradients of the second."""
    layer.double()
    for _ in range(2):
        x = x.detach().requires_grad_()
        layer.zero_grad()
        y = layer(x, mask=mask)
        y.backward(dy)
    assert x.grad is not None
    found = {"y": y.detach(), "dx": x.grad}
    found |= {f"d{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return found | {name: b.clone() for name, b in layer.named_buffers()}


def compiled_step(case: str, x: Tensor | None, dy: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
    """The same through torch.compile in one graph; and how many graphs, and collectives of theirs, there were."""
    assert x is not None
    assert dy is not None
    graphs: dict[str, list[torch.fx.GraphModule]] = {"whole": [], "forward": [], "backward": []}

    def keep(kind: str, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs[kind].append(graph)
        return make_boxed_func(graph.forward)

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs["whole"].append(graph)
        by = {"fw_compiler": partial(keep, "forward"), "bw_compiler": partial(keep, "backward")}
        return aot_autograd(**by)(graph, inputs)

    layer = nk.SyncBatchNorm(3, **_options(case))  # type: ignore[arg-type]  # options by name
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
    found = step(compiled, x, dy, mask)
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    counts = [len(graphs["whole"]), *(_collectives(graphs[kind]) for kind in ("forward", "backward"))]
    return {**found, "counts": torch.tensor(counts)}


def _collectives(graphs: list[torch.fx.GraphModule]) -> int:
    nodes = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    return sum("_c10d_functional" in target and "wait" not in target for target in nodes)


def one_process(case: str) -> dict[str, Tensor]:
    """The truth: batch norm of both batches together."""
    return step(nk.BatchNorm1d(3, **_options(case)), *batch(case))  # type: ignore[arg-type]  # options by name


def second_derivative(layer: nn.Module, x: Tensor) -> Tensor:
    """d/dx of the squared gradient of sum(y^3)."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad((layer(x) ** 3).sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), x)[0]


def _model(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)).double()


def train(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Three steps on the mean of the outputs' squares; the trained state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: value.detach().clone() for name, value in inner.state_dict().items()}


def data_parallel_alone() -> dict[str, Tensor]:
    """The truth of data-parallel training: one process with both (equal) batches."""
    return train(_model(nk.BatchNorm1d(4, EPS, MOMENTUM)), batch("even")[0])


def run(folder: Path) -> list[dict[str, Tensor]]:
    """Start both ranks and read what they wrote."""
    return processes.results("tests.nn.ranks", folder, 2, LIMIT)


DISAGREE: dict[str, Callable[[int], Tensor]] = {
    "channels": lambda rank: torch.randn(4, 3 + rank),
    "dtype": lambda rank: torch.randn(4, 3, dtype=torch.float64 if rank else torch.float32),
}


def disagreements(rank: int) -> dict[str, Tensor]:
    """The bytes of the error, by what the ranks disagree about; afterwards they synchronise as before."""
    found = {}
    for name, made in DISAGREE.items():
        x = made(rank)
        found[f"disagree.{name}"] = _error(nk.SyncBatchNorm(x.shape[1], dtype=x.dtype), x)
    layers, inputs = [nk.SyncBatchNorm(3), nk.SyncBatchNorm(5)], [torch.randn(4, 3), torch.randn(4, 5)]
    for layer, x in zip(layers, inputs, strict=True):
        layer(x)  # agreed once
    os.environ["NORMKIT_CHECK_RANKS"] = "1"
    found["disagree.later"] = _error(layers[rank], inputs[rank])
    del os.environ["NORMKIT_CHECK_RANKS"]
    found["agree.after"] = layers[0](inputs[0]).detach()
    return found


def _error(layer: nn.Module, x: Tensor) -> Tensor:
    try:
        layer(x)
    except RuntimeError as error:
        return torch.tensor(list(str(error).encode()), dtype=torch.uint8)
    return torch.zeros(0, dtype=torch.uint8)


def _rank(folder: Path, rank: int) -> None:
    processes.join(folder, rank, 2, LIMIT)
    found: dict[str, Tensor] = {}
    for case, sizes in SIZES.items():
        x, dy, mask = (None if t is None else t.split(list(sizes))[rank] for t in batch(case))
        assert x is not None
        assert dy is not None
        layer = nk.SyncBatchNorm(3, **_options(case))  # type: ignore[arg-type]  # options by name
        found |= {f"{case}.{name}": value for name, value in step(layer, x, dy, mask).items()}
    for name, options in FUSED.items():
        found |= {f"{name}.{k}": v for k, v in fused_step(nk.SyncBatchNorm, options, rank).items()}
    again = fused_step(nk.SyncBatchNorm, FUSED["channels_last"], rank, recompute=True)
    found |= {f"recomputed.{k}": v for k, v in again.items()}
    for case in ("uneven", "one_empty"):
        x = batch(case)[0].split(list(SIZES[case]))[rank]
        found[f"{case}.second"] = second_derivative(nk.SyncBatchNorm(3, EPS).double(), x)
    for case in COMPILED:
        x, dy, mask = (None if t is None else t.split(list(SIZES[case]))[rank] for t in batch(case))
        found |= {f"compiled.{case}.{name}": value for name, value in compiled_step(case, x, dy, mask).items()}
    model = DistributedDataParallel(_model(nk.SyncBatchNorm(4, EPS, MOMENTUM)))
    found |= {f"ddp.{k}": v for k, v in train(model, batch("even")[0].split([4, 4])[rank]).items()}
    found["one_each"] = nk.SyncBatchNorm(3)(torch.full((1, 3), float(rank))).detach()
    try:
        nk.SyncBatchNorm(3)(torch.zeros(1 - rank, 3))
    except ValueError:
        found["one_in_all_raised"] = torch.ones(())
    found |= disagreements(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]))
