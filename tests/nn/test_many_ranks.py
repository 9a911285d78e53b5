"""Synchronised batch norm on 3, 4 and 8 ranks is the batch norm of all their batches; so it is in a subgroup."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import normkit as nk
from tests import processes
from tests.cases import EPS, MOMENTUM, gaussian, generator
from tests.tolerances import assert_equal64

LIMIT = 240  # seconds for all ranks together; eight starts on two cores take a minute
SIZES = (4, 0, 3, 1, 6, 2, 5, 7)  # samples of each rank: uneven, one rank without any, one with one
SHAPE = (5, 3, 2)  # of a sample

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store is for POSIX here")


def batch(ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, residual, dy of all ranks."""
    g, shape = generator(ranks), (sum(SIZES[:ranks]), *SHAPE)
    return gaussian(shape, g, mean=3.0), gaussian(shape, g), gaussian(shape, g)


def step(layer: torch.nn.Module, x: Tensor, residual: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x, residual = (t.detach().requires_grad_() for t in (x, residual))
    y = layer(x, residual)
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "dresidual": residual.grad}
    found |= {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in layer.named_buffers()}
    return {name: value for name, value in found.items() if value is not None}


def options() -> dict[str, object]:
    return {"eps": EPS, "momentum": MOMENTUM, "activation": "silu", "dtype": torch.float64}


@pytest.mark.parametrize("ranks", [3, *(pytest.param(count, marks=pytest.mark.nightly) for count in (4, 8))])
def test_many_ranks_equal_one_process(ranks: int, tmp_path: Path) -> None:
    found = processes.results("tests.nn.test_many_ranks", tmp_path, ranks, LIMIT)
    compare([part["all"] for part in found], step(nk.BatchNorm2d(SHAPE[0], **options()), *batch(ranks)))  # type: ignore[arg-type]  # by name
    pair = [t[: sum(SIZES[:2])] for t in batch(ranks)]
    compare([part["pair"] for part in found[:2]], step(nk.BatchNorm2d(SHAPE[0], **options()), *pair))  # type: ignore[arg-type]  # by name


def compare(parts: list[dict[str, Tensor]], alone: dict[str, Tensor]) -> None:
    for name, value in alone.items():
        if name in ("y", "dx", "dresidual"):
            assert_equal64(torch.cat([part[name] for part in parts]), value, name)
        elif name in ("dweight", "dbias"):
            assert_equal64(torch.stack([part[name] for part in parts]).sum(0), value, name)
        else:
            for part in parts:
                assert torch.equal(part[name], parts[0][name]), f"{name}: the same bits on every rank"
                assert_equal64(part[name].double(), value.double(), name)


def work(rank: int, ranks: int, folder: Path) -> None:
    processes.join(folder, rank, ranks, LIMIT)
    mine = [t.split(SIZES[:ranks])[rank] for t in batch(ranks)]
    pair = dist.new_group([0, 1])
    found = {"all": step(nk.SyncBatchNorm(SHAPE[0], **options()), *mine)}  # type: ignore[arg-type]  # by name
    if rank < 2:
        found["pair"] = step(nk.SyncBatchNorm(SHAPE[0], process_group=pair, **options()), *mine)  # type: ignore[arg-type]
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[1]))
