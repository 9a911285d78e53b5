"""Two processes over gloo whose synchronised batch norms run on Triton's kernels under its interpreter; see
`slice_cases.py`. Each rank has its samples of a case that is made whole on both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import normkit as nk
from normkit.kernels import triton
from normkit.kernels.triton import _tile_plan
from tests import processes
from tests.cases import EPS, MOMENTUM
from tests.kernels.interpreted.batch_norm_cases import make
from tests.kernels.interpreted.mask_cases import masked
from tests.kernels.interpreted.truth import Case

LIMIT = 300


class Ranks(NamedTuple):
    """samples: of each rank. paths: by which each computes: they may differ, and take part in the same collectives.

    compiled: both ranks' layers are, into one graph each.
    """

    samples: tuple[int, int]
    activation: str | None = None
    layout: str = "contiguous"
    hides: bool = False
    paths: tuple[str, str] = ("triton", "triton")
    compiled: bool = False


CASES = {
    "uneven": Ranks((3, 2), "relu"),
    "empty": Ranks((4, 0), "silu", "channels_last"),
    "masked": Ranks((2, 3), "relu", "channels_last", hides=True),
    "nothing real": Ranks((2, 1), None, hides=True),
    "another path": Ranks((2, 3), "relu", paths=("triton", "composed")),
    "compiled": Ranks((3, 2), "relu", "channels_last", hides=True, compiled=True),
    "compiled, empty": Ranks((4, 0), "silu", compiled=True),
    "compiled, another path": Ranks((2, 3), None, paths=("composed", "triton"), compiled=True),
}


def whole(name: str) -> tuple[Case, Tensor]:
    """The case of all ranks together; of "nothing real" the last rank has no value."""
    given = CASES[name]
    shape = (sum(given.samples), 3, 4, 7)
    case, dy = make(shape, layout=given.layout, activation=given.activation, residual=True, mean=1e3)
    if given.hides:
        masked(case, dy)
    if name == "nothing real":
        case.mask[given.samples[0] :] = False
    return case, dy


def step(name: str, rank: int) -> dict[str, Tensor]:
    """One training step of this rank's samples."""
    given, (case, dy) = CASES[name], whole(name)
    x, residual, dy = (t.split(given.samples)[rank] for t in (case.x, case.residual, dy))
    mask = None if case.mask is None else case.mask.split(given.samples)[rank]
    x, residual = (t.detach().requires_grad_() for t in (x, residual))
    layer = nk.SyncBatchNorm(x.shape[1], EPS, MOMENTUM, activation=given.activation)
    layer.weight.data, layer.bias.data = case.weight.clone(), case.bias.clone()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if given.compiled else layer
    with nk.backend(given.paths[rank]):
        y = run(x, residual=residual, mask=mask)
        y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "dresidual": residual.grad}
    return found | {f"d{name}": p.grad for name, p in layer.named_parameters()} | dict(layer.named_buffers())


def _rank(folder: Path, rank: int) -> None:
    assert triton.INTERPRETS, "set TRITON_INTERPRET=1"
    _tile_plan.TILE, _tile_plan.ON_CHIP, _tile_plan.PROGRAMS = 128, 8, 6
    processes.join(folder, rank, 2, LIMIT)
    found = {f"{name}.{key}": value for name in CASES for key, value in step(name, rank).items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]))
