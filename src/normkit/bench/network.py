"""A ResNet-50 training step, plain against `nk.accelerate`: time, the share that norms have in it, memory.

The share is measured: one step of the plain model under the profiler, the time of batch norm, ReLU and residual add,
forward and backward. It bounds what faster norms can do (Amdahl): `free` if they took no time, `limit` if they ran at
the roof, moving the fewest bytes as fast as clone() does. Memory is counted, not sampled: the storages that autograd
holds after the forward, and the highest sum of live allocations during a step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import normkit as nk

from .problem import DTYPES
from .resnet import ResNet50
from .results import Network
from .timing import Seconds, interleave, paired

CONFIGURATIONS = ((8, "NCHW", "float32"), (8, "NHWC", "bfloat16"), (32, "NCHW", "float32"), (32, "NHWC", "bfloat16"))
_FORWARD = frozenset({"aten::native_batch_norm", "aten::relu_", "aten::clamp_min_", "aten::add_"})
_BACKWARD = frozenset({"aten::native_batch_norm_backward", "aten::threshold_backward"})


@dataclass
class Training:
    """A model with what one step needs."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer

    def forward(self) -> Tensor:
        return F.cross_entropy(self.model(self.images).float(), self.labels)

    def step(self) -> float:
        """One step; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def measure(
    batch: int,
    layout: str,
    dtype: str,
    threads: int,
    seconds: float,
    model: Callable[[], nn.Module] = ResNet50,
    size: int = 224,
) -> Network:
    """Time and profile a training step at `size` x `size` pixels.

    Raises:
        RuntimeError: the accelerated model's first loss differs from the plain one's.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        plain = model().train().to(DTYPES[dtype])
        plain = plain.to(memory_format=_format(layout))  # type: ignore[call-overload]  # missing in torch's stub
        images = torch.randn(batch, 3, size, size).to(dtype=DTYPES[dtype], memory_format=_format(layout))
        return _measure(plain, images, Network(batch, layout, dtype, threads), seconds)
    finally:
        torch.set_num_threads(before)


def _measure(model: nn.Module, images: Tensor, network: Network, seconds: float) -> Network:
    accelerated = nk.accelerate(model, images) if hasattr(nk, "accelerate") else None
    plain = _training(model, images)
    trainings = {"plain": plain} if accelerated is None else {"plain": plain, "fast": _training(accelerated, images)}
    losses = {name: training.step() for name, training in trainings.items()}
    _verify(losses, network.dtype)
    share, limit, free = _limits(plain)
    network = replace(network, share=share, limit=limit, free=free, held=held(plain), peak=peak(plain))
    times = interleave({name: _clocked(training) for name, training in trainings.items()}, seconds, most=50, warm_up=1)
    network = replace(
        network,
        rounds=len(times["plain"]),
        step_ms=1e3 * statistics.median(t.total for t in times["plain"]),
    )
    if accelerated is None:
        return network
    ratio = paired([t.total for t in times["plain"]], [t.total for t in times["fast"]])
    fast = trainings["fast"]
    return replace(
        network,
        ratio=ratio.median,
        low=ratio.low,
        high=ratio.high,
        held_accelerated=held(fast),
        peak_accelerated=peak(fast),
    )


def held(training: Training) -> int:
    """Bytes of the storages, parameters aside, that autograd keeps for the backward."""
    storages: dict[int, int] = {}
    kept = []
    own = {p.untyped_storage().data_ptr() for p in training.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in own:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            kept.append(tensor.detach())  # no address is used twice while all of them live
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        training.forward()
    return sum(storages.values())


def peak(training: Training) -> int:
    """The highest sum of live allocations of forward and backward, above what was there before."""
    training.optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        training.forward().backward()
    events = [event for event in _events(recorded) if event.name() == "[memory]"]
    live, highest = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def _limits(training: Training) -> tuple[float, float, float]:
    """share, limit and free of a plain model."""
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as forward:
        loss = training.forward()
    with profile(activities=[ProfilerActivity.CPU]) as backward:
        loss.backward()
    training.optimizer.step()
    whole = time.perf_counter() - start
    norms = _time_in(forward, _FORWARD) + _time_in(backward, _BACKWARD)
    roof = _time_at_roof(training)
    return norms / whole, whole / (whole - norms + roof), whole / (whole - norms)


def _time_in(recorded: profile, names: frozenset[str]) -> float:
    """Seconds in the operations themselves, without what they call."""
    return sum(event.self_cpu_time_total for event in recorded.key_averages() if event.key in names) / 1e6


def _time_at_roof(training: Training) -> float:
    """Seconds that clone() would need to move the norms' fewest bytes; bn3 is followed by the residual's add."""
    seconds = 0.0
    clones: dict[int, float] = {}

    def add(name: str, output: Tensor) -> None:
        nonlocal seconds
        if output.numel() not in clones:
            clones[output.numel()] = statistics.median(_clone_seconds(output) for _ in range(5))
        tensors = 7 if name.endswith("bn3") else 5
        seconds += tensors / 2 * clones[output.numel()]

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: add(name, output.detach()))
        for name, module in training.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    try:
        training.forward()
    finally:
        for hook in hooks:
            hook.remove()
    return seconds


def _clone_seconds(tensor: Tensor) -> float:
    start = time.perf_counter()
    copied = tensor.clone()
    seconds = time.perf_counter() - start
    del copied
    return seconds


def _events(recorded: profile) -> list[Any]:
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    return recorded.profiler.kineto_results.events()


def _clocked(training: Training) -> Callable[[int], Seconds]:
    def call(index: int) -> Seconds:
        start = time.perf_counter()
        training.step()
        return Seconds(time.perf_counter() - start)

    return call


def _verify(losses: dict[str, float], dtype: str) -> None:
    """Both models start from the same parameters: their first losses differ by roundings only."""
    allowed = 1e-3 if dtype == "float32" else 5e-2  # of a loss near ln(classes), after some fifty rounded layers
    if not max(losses.values()) - min(losses.values()) <= allowed * abs(losses["plain"]):
        raise RuntimeError(f"not timed: the first losses differ: {losses}")


def _training(model: nn.Module, images: Tensor) -> Training:
    labels = torch.arange(len(images)) % 10
    return Training(model, images, labels, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))


def _format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "NHWC" else torch.contiguous_format
