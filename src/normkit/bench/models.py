"""Whole models, plain against accelerated and compiled: a training step and inference, and what the norms could give.

Each model runs in a process of its own; calls are timed in turn. The norms' share and the limit are measured apart:
every norm of the plain model and of the accelerated one is called alone, on tensors of the shapes that it gets in the
model. share = the plain norms' time / the plain model's; limit = how much faster the model is where nothing but its
norms becomes as much faster as they are alone. Fused additions and activations may go beyond it.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import normkit as nk

from . import network
from .isolated import Isolated
from .nets import Net
from .problem import DTYPES
from .results import Model, Versus
from .timing import Seconds, interleave, milliseconds, paired

PLAIN, ACCELERATED, COMPILED = "plain", "accelerated", "compile"
MODES = ("training", "inference")
_LARGEST = 5e-2  # of the largest output, by which a changed model may differ in half precision; 1e-3 in float32


class Steps:
    """One model and what a training step needs."""

    def __init__(self, model: nn.Module, input: Tensor) -> None:
        self.model, self.input = model, input
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def forward(self) -> Tensor:
        """The loss."""
        return self.model(self.input).float().square().mean()

    def training(self) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.forward().backward()
        self.optimizer.step()

    def inference(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.input)


class Subject:
    """One model of the comparison in its process."""

    def __init__(self, name: str, net: Net, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        model, input = _made(net, dtype)
        if name == ACCELERATED:
            model = nk.accelerate(model, input, inplace=True)
        self._steps = Steps(model, input)
        if name == COMPILED:
            self._steps.model = torch.compile(model)  # type: ignore[assignment]  # what it gives is called like one

    def output(self) -> Tensor:
        self._steps.model.eval()
        return self._steps.inference().float()

    def training(self) -> Seconds:
        """The time of a step."""
        self._steps.model.train()
        start = time.perf_counter()
        self._steps.training()
        return Seconds(time.perf_counter() - start)

    def inference(self) -> Seconds:
        """The time of a forward without gradients."""
        self._steps.model.eval()
        start = time.perf_counter()
        self._steps.inference()
        return Seconds(time.perf_counter() - start)

    def peak(self) -> int:
        """The most bytes that are live in a training step."""
        self._steps.model.train()
        return network.memory(self._steps).peak


class Norms(NamedTuple):
    """Seconds that all norms of a model take alone, plain and accelerated, by mode."""

    plain: dict[str, float]
    fast: dict[str, float]


class Alone:
    """The norms of a model, called alone."""

    def __init__(self, net: Net, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model, self._input = _made(net, dtype)
        self._fast = nk.accelerate(self._model, self._input)

    def norms(self) -> Norms:
        calls = self._calls()
        found = Norms(dict.fromkeys(MODES, 0.0), dict.fromkeys(MODES, 0.0))
        for (name, shape, dtype), count in calls.items():
            x = torch.randn(shape).to(dtype)
            for mode in MODES:
                timed = {
                    PLAIN: _alone(self._model.get_submodule(name), x, mode == "training"),
                    ACCELERATED: _alone(self._fast.get_submodule(name), x, mode == "training"),
                }
                times = interleave(timed, 0.0)
                for total, key in ((found.plain, PLAIN), (found.fast, ACCELERATED)):
                    total[mode] += count * statistics.median(t.total for t in times[key])
        return found

    def _calls(self) -> Counter[tuple[str, torch.Size, torch.dtype]]:
        """(a norm of that kind, its input's shape and dtype) -> how often a forward calls such."""
        names = [change.name for change in nk.changes(self._fast) if change.action == "replaced"]
        calls: Counter[Any] = Counter()
        first: dict[Any, str] = {}

        def count(name: str, module: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
            kind = (type(module), given[0].shape, given[0].dtype)
            calls[(first.setdefault(kind, name), *kind[1:])] += 1

        hooks = [self._model.get_submodule(name).register_forward_hook(partial(count, name)) for name in names]
        with torch.no_grad():
            self._model(self._input)
        for hook in hooks:
            hook.remove()
        return calls


def _alone(norm: nn.Module, x: Tensor, training: bool) -> Callable[[int], Seconds]:
    norm.train(training)
    x = x.requires_grad_(training)
    slope = torch.randn_like(x)
    wanted = [x, *norm.parameters()]

    def call(_: int) -> Seconds:
        start = time.perf_counter()
        with torch.set_grad_enabled(training):
            y = norm(x)
        middle = time.perf_counter()
        if training:
            torch.autograd.grad(y, wanted, slope)
        return Seconds(middle - start, time.perf_counter() - middle)

    return call


def measure(
    net: Net, dtype: str, threads: int, seconds: float, contenders: Sequence[str] = (ACCELERATED, COMPILED)
) -> list[Model]:
    """Both modes of one model.

    Raises:
        RuntimeError: the accelerated model gives other outputs than the plain one.
    """
    with Isolated(Alone, net, dtype, threads) as alone:
        norms: Norms = alone.call("norms")
    with ExitStack() as stack:
        subjects = {
            name: stack.enter_context(Isolated(Subject, name, net, dtype, threads)) for name in (PLAIN, *contenders)
        }
        outputs = {name: subjects[name].call("output") for name in (PLAIN, ACCELERATED)}
        verify(outputs[PLAIN], outputs[ACCELERATED], dtype)
        peaks = {name: subjects[name].call("peak") for name in (PLAIN, ACCELERATED)}
        absent = without_failing(subjects)
        return [_model(net, dtype, threads, mode, subjects, norms, peaks, absent, seconds) for mode in MODES]


def without_failing(subjects: dict[str, Isolated]) -> dict[str, str]:
    """Take the compiled model out of the subjects where it does not run, and say why."""
    if COMPILED not in subjects:
        return {}
    try:
        for mode in MODES:
            subjects[COMPILED].call(mode)
    except Exception as error:
        del subjects[COMPILED]
        return {COMPILED: f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {}


def _model(
    net: Net, dtype: str, threads: int, mode: str, subjects: dict[str, Isolated], norms: Norms, peaks: dict[str, int],
    absent: dict[str, str], seconds: float,
) -> Model:  # fmt: skip
    calls = {name: (lambda _, subject=subject: subject.call(mode)) for name, subject in subjects.items()}
    times = {name: [t.total for t in found] for name, found in interleave(calls, seconds, most=50).items()}
    contenders = {}
    for name in subjects:
        if name != PLAIN:
            ratio = paired(times[PLAIN], times[name])
            contenders[name] = Versus(ratio.median, ratio.low, ratio.high)
    whole = statistics.median(times[PLAIN])
    rest = max(whole - norms.plain[mode], 0.0)
    training = mode == "training"
    return Model(
        name=net.name, shape=net.shape, dtype=dtype, threads=threads, mode=mode, rounds=len(times[PLAIN]),
        ms=milliseconds(times[PLAIN]), share=min(norms.plain[mode] / whole, 1.0),
        limit=whole / (rest + norms.fast[mode]), peak=peaks[PLAIN] if training else 0,
        fast_peak=peaks[ACCELERATED] if training else 0, contenders=contenders, absent=absent,
    )  # fmt: skip


def verify(plain: Tensor, fast: Tensor, dtype: str) -> None:
    """The same output but for roundings, or RuntimeError."""
    gap = float((plain - fast).abs().max() / plain.abs().max())
    allowed = 1e-3 if dtype in ("float32", "float64") else _LARGEST
    if not gap <= allowed:
        raise RuntimeError(f"not timed: the accelerated model's output differs by {gap:.3g} of the largest")


def _made(net: Net, dtype: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return net.make(*net.arguments).to(DTYPES[dtype]).eval(), net.input(DTYPES[dtype])
