"""A ResNet-50 training step, plain, accelerated and recomputing: time, the share that norms have in it, memory.

Each model trains in a process of its own, the way a user runs it; steps are timed in turn. By default freed outputs of
the native kernels serve the next ones; "nothing kept" is the accelerated model with that switched off. The share is
measured: one step of the plain model under the profiler, the time of batch norm, ReLU and residual add, forward and
backward. It bounds what faster norms can do (Amdahl): `free` if they took no time, `limit` if they ran at the roof,
moving the fewest bytes as fast as clone() does. Memory is counted, not sampled, with nothing kept, from the allocations
that the profiler sees (PyTorch's own; what oneDNN allocates for itself is not among them): what is still live after the
forward, and the highest sum of live allocations of forward and backward, the parameters' gradients among them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import normkit as nk

from ..kernels import native
from ..kernels.memory import to_keep
from .isolated import Isolated
from .problem import DTYPES
from .resnet import ResNet50
from .results import Network, Variant
from .timing import Seconds, interleave, paired

PLAIN = "plain"
CONTENDERS = ("accelerated", "nothing kept", "recomputing")
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


class Subject:
    """One model of the comparison in its process: the plain one, or what nk.accelerate makes of it."""

    def __init__(self, name: str, network: Network, size: int = 224, model: Callable[[], nn.Module] = ResNet50) -> None:
        torch.set_num_threads(network.threads)
        torch.manual_seed(0)
        dtype, memory_format = DTYPES[network.dtype], _format(network.layout)
        plain = model().train().to(dtype)
        plain = plain.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's stub
        images = torch.randn(network.batch, 3, size, size).to(dtype=dtype, memory_format=memory_format)
        if name != PLAIN:
            plain = nk.accelerate(plain, images, inplace=True, recompute=name == "recomputing")
        self.kept = 0 if name == "nothing kept" else to_keep()
        self.training = _training(plain, images)
        _keep(self.kept)

    def loss(self) -> float:
        """One step; its loss."""
        return self.training.step()

    def seconds(self) -> Seconds:
        """The time of one step."""
        start = time.perf_counter()
        self.training.step()
        return Seconds(time.perf_counter() - start)

    def limits(self) -> tuple[float, float, float]:
        """share, limit and free, as a `Network` has them."""
        return _limits(self.training)

    def memory(self) -> Memory:
        """What a step allocates."""
        return memory(self.training, self.kept)


def measure(
    batch: int,
    layout: str,
    dtype: str,
    threads: int,
    seconds: float,
    model: Callable[[], nn.Module] = ResNet50,
    size: int = 224,
) -> Network:
    """Time and profile a training step at `size` x `size` pixels. `model` must be picklable.

    Raises:
        RuntimeError: a changed model's first loss differs from the plain one's.
    """
    network = Network(batch, layout, dtype, threads)
    with ExitStack() as stack:
        subjects = {
            name: stack.enter_context(Isolated(Subject, name, network, size, model)) for name in (PLAIN, *CONTENDERS)
        }
        return _measure(subjects, network, seconds)


def _measure(subjects: dict[str, Isolated], network: Network, seconds: float) -> Network:
    _verify({name: subject.call("loss") for name, subject in subjects.items()}, network.dtype)
    share, limit, free = subjects[PLAIN].call("limits")
    memories = {name: subject.call("memory") for name, subject in subjects.items()}
    times = interleave({name: _remote(subject) for name, subject in subjects.items()}, seconds, most=50)
    seconds_of = {name: [t.total for t in found] for name, found in times.items()}
    contenders = {}
    for name in CONTENDERS:
        ratio = paired(seconds_of[PLAIN], seconds_of[name])
        contenders[name] = Variant(ratio.median, ratio.low, ratio.high, memories[name].held, memories[name].peak)
    return replace(
        network, rounds=len(times[PLAIN]), step_ms=1e3 * statistics.median(seconds_of[PLAIN]), share=share, limit=limit,
        free=free, held=memories[PLAIN].held, peak=memories[PLAIN].peak, contenders=contenders,
    )  # fmt: skip


def _remote(subject: Isolated) -> Callable[[int], Seconds]:
    def call(index: int) -> Seconds:
        return subject.call("seconds")

    return call


class Memory(NamedTuple):
    """Bytes above what was there before: live after the forward, and the most that was live in a step."""

    held: int
    peak: int


class Steps(Protocol):
    """What a training step is made of."""

    optimizer: torch.optim.Optimizer

    def forward(self) -> Tensor:
        """The loss."""
        ...


def memory(training: Steps, kept: int | None = None) -> Memory:
    """What a step allocates, as PyTorch's allocator counts it; freed outputs may keep `kept` bytes after it."""
    training.optimizer.zero_grad(set_to_none=True)
    _keep(0)  # large outputs of the native kernels come from PyTorch's allocator, too
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
            loss = training.forward()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
            loss.backward()
    finally:
        _keep(to_keep() if kept is None else kept)
    live = list(accumulate(_allocations(forward)))
    return Memory(live[-1], max(*live, *accumulate(_allocations(backward), initial=live[-1])))


def _allocations(recorded: profile) -> list[int]:
    """Bytes allocated (freed: negative), in order."""
    events = [event for event in _events(recorded) if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


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


def _keep(limit: int) -> None:
    if native.available():
        native.keep_memory(limit)


def _verify(losses: dict[str, float], dtype: str) -> None:
    """All models start from the same parameters: their first losses differ by roundings only."""
    allowed = 1e-3 if dtype == "float32" else 5e-2  # of a loss near ln(classes), after some fifty rounded layers
    if not max(losses.values()) - min(losses.values()) <= allowed * abs(losses[PLAIN]):
        raise RuntimeError(f"not timed: the first losses differ: {losses}")


def _training(model: nn.Module, images: Tensor) -> Training:
    labels = torch.arange(len(images)) % 10
    return Training(model, images, labels, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))


def _format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "NHWC" else torch.contiguous_format
