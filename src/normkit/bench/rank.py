"""One rank of `normkit bench --ranks`: a process that meets the others over gloo and times what all of them do.

Rules: every rank makes the same calls in the same order, so the number of rounds is agreed first; each call begins at a
barrier; no collective waits longer than `TIMEOUT`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

import normkit as nk

from .check import Mismatch
from .resnet import ResNet50
from .timing import FEWEST, MOST, Seconds, interleave
from .torch_sync import TorchAlgorithm

TIMEOUT = 120.0  # seconds
SIZES = [4**power for power in range(3, 11)]  # bytes that a rank gives: 64 to 1 MiB
COLLECTIVE_ROUNDS = 101
WAYS: dict[str, Callable[[int], nn.Module]] = {
    "normkit": nk.SyncBatchNorm,
    "torch's algorithm": TorchAlgorithm,
    "normkit, local": nk.BatchNorm2d,
    "torch, local": nn.BatchNorm2d,
}
SYNCHRONISED = ("normkit", "torch's algorithm")
Times = list[tuple[float, float]]  # forward, backward, by round


class Rank:
    """A rank that has met the others. folder: theirs alone; batch, image: of its share of a ResNet-50's step."""

    def __init__(
        self, folder: str, rank: int, ranks: int, threads: int, batch: int, image: int, seconds: float
    ) -> None:
        torch.set_num_threads(threads)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks,
            timeout=timedelta(seconds=TIMEOUT),
        )  # fmt: skip
        self.seconds = seconds
        self.shapes = norm_shapes(batch, image)

    def collectives(self) -> dict[tuple[str, int], list[float]]:
        """Seconds of each collective alone, by kind and bytes, by round."""
        ranks, calls = dist.get_world_size(), {}
        for size in SIZES:
            own = torch.zeros(size // 4)
            parts = [torch.empty_like(own) for _ in range(ranks)]
            calls["all_gather", size] = _clocked(partial(dist.all_gather, parts, own))
            calls["all_reduce", size] = _clocked(partial(dist.all_reduce, own))
        named = {f"{kind} {size}": call for (kind, size), call in calls.items()}
        found = interleave(named, 0.0, fewest=COLLECTIVE_ROUNDS, most=COLLECTIVE_ROUNDS)
        return {key: [t.total for t in found[f"{key[0]} {key[1]}"]] for key in calls}

    def norms(self) -> dict[str, Times]:
        """Seconds of a step of all norms, by way.

        Raises:
            Mismatch: the stand-in of torch's algorithm and normkit disagree.
        """
        _verify()
        steps = {name: Step(make, self.shapes) for name, make in WAYS.items()}
        rounds = self._agreed(steps)
        found = interleave({name: step.timed for name, step in steps.items()}, 0.0, fewest=rounds, most=rounds)
        return {name: [(t.forward, t.backward) for t in times] for name, times in found.items()}

    def given(self) -> dict[str, list[int]]:
        """(collectives, bytes that this rank gives) of one step of all norms, by way; of the second call of a layer."""
        found = {}
        for name, make in WAYS.items():
            step = Step(make, self.shapes)
            step.timed(0)
            with _noted() as sizes:
                step.timed(1)
            found[name] = [len(sizes), sum(sizes)]
        return found

    def end(self) -> None:
        """Leave the group when all are done."""
        dist.barrier()
        dist.destroy_process_group()

    def _agreed(self, steps: dict[str, Step]) -> int:
        """How many rounds fit into the time, on the slowest rank."""
        start = time.perf_counter()
        for step in steps.values():
            step.timed(0)
        taken = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return max(FEWEST, min(MOST, int(self.seconds / taken.item())))


class Step:
    """All norms of a network, forward in their order and backward in the other, each on an input of its own shape."""

    def __init__(self, make: Callable[[int], nn.Module], shapes: list[tuple[int, ...]]) -> None:
        generator = torch.Generator().manual_seed(dist.get_rank())
        self.layers = [make(shape[1]) for shape in shapes]
        self.inputs = {shape: torch.randn(shape, generator=generator) for shape in dict.fromkeys(shapes)}
        self.shapes = shapes

    def timed(self, index: int) -> Seconds:
        """One step."""
        inputs = [self.inputs[shape].detach().requires_grad_() for shape in self.shapes]
        _meet()
        start = time.perf_counter()
        outputs = [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]
        middle = time.perf_counter()
        for y, x in zip(reversed(outputs), reversed(inputs), strict=True):
            y.backward(x.detach())
            x.grad = None
        return Seconds(middle - start, time.perf_counter() - middle)


def norm_shapes(batch: int, image: int) -> list[tuple[int, ...]]:
    """The inputs (N, C, H, W) of the batch norms of a ResNet-50, in the order of the calls."""
    found: list[tuple[int, ...]] = []
    with torch.device("meta"):
        net = ResNet50()
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.register_forward_pre_hook(lambda _, given: found.append(tuple(given[0].shape)))
        net(torch.empty(batch, 3, image, image))
    return found


def _meet() -> None:
    dist.all_reduce(torch.zeros(1))  # gloo's barrier takes longer, and lets ranks go further apart


def _clocked(call: Callable[[], object]) -> Callable[[int], Seconds]:
    def timed(index: int) -> Seconds:
        _meet()
        start = time.perf_counter()
        call()
        return Seconds(time.perf_counter() - start)

    return timed


@contextmanager
def _noted() -> Iterator[list[int]]:
    """The bytes that this rank gives to each collective of normkit's and of the stand-in, but for the meetings."""
    sizes: list[int] = []

    def noting(name: str, given: int) -> Any:
        own = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if (size := arguments[given].nbytes) > 4:
                sizes.append(size)
            return own(*arguments, **options)

        return patch.object(dist, name, call)

    with noting("all_gather", 1), noting("all_reduce", 0):
        yield sizes


def _verify() -> None:
    """Both synchronised ways compute the same."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    x, dy = (torch.randn(4, 6, 5, 5, generator=generator) for _ in range(2))
    found: list[list[Tensor]] = []
    for name in SYNCHRONISED:
        layer, own = WAYS[name](6), x.clone().requires_grad_()
        y = layer(own)
        y.backward(dy)
        assert own.grad is not None
        gradients = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
        found.append([y.detach(), own.grad, *gradients, *layer.buffers()])
    for ours, theirs in zip(*found, strict=True):
        if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
            raise Mismatch("normkit and the stand-in of torch's synchronised algorithm disagree")
