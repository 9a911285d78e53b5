"""What the rules judge by, gathered once: the state always, the runs where there are batches.

A rule reads evidence and runs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..model.dataflow import refuse_lazy
from ..model.recorder import RecordedCall
from ..statistics import batches as feeding
from .finding import Severity
from .forward import Forward, NormRun, look
from .gap import attribute_gap
from .gap_report import Gap
from .scale import Metric
from .state import NormState, State, of_model
from .training import Training, train

BATCHES = 16  # that are looked at
GAP_BATCHES, GAP_ORDERS = 8, 2  # of the gap: at most 39 passes over 8, about what the passes of `look` cost over 16


@dataclass(frozen=True, eq=False)
class Evidence:
    """state: always. forward: what batches showed; training: what a step on a copy showed; None without them. failure:
    what the model raised. gap: the train/eval gap with each layer's share, where answers differ or a metric came."""

    state: State
    forward: Forward | None = None
    training: Training | None = None
    failure: str | None = None
    gap: Gap | None = None

    @property
    def norms(self) -> tuple[NormState, ...]:
        return self.state.norms

    def run(self, norm: NormState) -> NormRun | None:
        """What batches showed of a norm; None where nothing."""
        return None if self.forward is None or norm.copy else self.forward.norms.get(norm.name)

    def measured(self, norm: NormState) -> NormRun | None:
        """As `run`, of norms whose statistics were measured."""
        run = self.run(norm)
        return run if run is not None and run.distance is not None else None

    def severity(self, norm: NormState, otherwise: Severity = "note") -> Severity:
        """ "error" where the layer's statistics change the answer by more than batches differ."""
        run = self.measured(norm)
        return "error" if run is not None and run.harmful and not self.untrained else otherwise

    @property
    def untrained(self) -> bool:
        """Whether no training has touched the norms yet: gamma and beta are where they began, and the statistics are
        those of a new model, or an optimizer came that has made no step."""
        norms = [norm for norm in self.norms if norm.tracked and norm.fixed is None]
        begun = all(norm.affine_at_start for norm in norms)
        return begun and (self.state.stepped is False or all(norm.at_start for norm in norms))

    def in_training(self, norm: NormState | None = None) -> Severity:
        """ "warning" in a model that trains, "note" else."""
        trains = self.state.trains and (norm is None or norm.training is not False)
        return "warning" if trains else "note"

    def calls(self, norm: NormState) -> list[RecordedCall]:
        """The calls of a norm in the recorded run."""
        if self.forward is None or self.forward.flow is None or norm.copy:
            return []
        return self.forward.flow.calls_of(norm.name)

    def fed_by(self, norm: NormState) -> RecordedCall | None:
        """What made the input of the norm's first call."""
        calls = self.calls(norm)
        if not calls or not calls[0].inputs or self.forward is None or self.forward.flow is None:
            return None
        return self.forward.flow.producer(calls[0].inputs[0])

    def feeds(self, norm: NormState) -> Iterator[RecordedCall]:
        """What reads the output of the norm's first call."""
        calls = self.calls(norm)
        if calls and calls[0].outputs and self.forward is not None and self.forward.flow is not None:
            yield from self.forward.flow.consumers(calls[0].outputs[0])


@dataclass(frozen=True)
class Request:
    """What came with the model."""

    batches: list[Any] | None
    forward: feeding.Feed | None
    optimizer: torch.optim.Optimizer | None
    loss_fn: Callable[..., Tensor] | None
    metric: Metric | None = None

    def measure(self) -> Metric | None:
        """What the gap is measured in: the metric, or the loss where batches bring its target."""
        loss_fn = self.loss_fn
        if self.metric is not None or loss_fn is None or not self.batches:
            return self.metric
        if any(not isinstance(batch, (list, tuple)) or len(batch) < 2 for batch in self.batches):
            return None

        def loss(output: Any, batch: Any) -> Any:
            return loss_fn(output, batch[1])

        return loss


def request(
    model: nn.Module,
    batches: Iterable[Any] | None,
    forward: feeding.Feed | None,
    optimizer: torch.optim.Optimizer | None,
    loss_fn: Callable[..., Tensor] | None,
    metric: Metric | None = None,
) -> Request:
    """The first batches, taken. TypeError, ValueError: there is none, or the model does not take their form."""
    if batches is None:
        return Request(None, forward, optimizer, loss_fn, metric)
    taken = feeding.taken(batches, BATCHES)
    if forward is None:
        for batch in taken:
            _verify(model, batch)
    return Request(taken, forward, optimizer, loss_fn, metric)


def gather(model: nn.Module, asked: Request) -> Evidence:
    """State, then the runs; what the model raises is evidence too."""
    state = of_model(model, asked.optimizer)
    if asked.batches is None or not state.norms:
        return Evidence(state)
    inner, failure, forward, training = feeding.unwrapped(model), None, None, None
    try:
        refuse_lazy(inner)
        forward = look(inner, state, asked.batches, asked.forward)
        if state.trains:
            training = train(inner, state, asked.batches[0], asked.forward, asked.loss_fn)
    except Exception as error:
        failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    gap = None if failure else _gap(inner, asked, forward)
    return Evidence(state, forward, training, failure, gap)


def _gap(model: nn.Module, asked: Request, forward: Forward | None) -> Gap | None:
    """Where running statistics change the answer, or a metric came that says by how much. Raises what that raises."""
    if forward is None or not asked.batches or not (forward.harmful or asked.metric is not None):
        return None
    try:
        return attribute_gap(
            model,
            asked.batches,
            forward=asked.forward,
            metric=asked.measure(),
            max_batches=GAP_BATCHES,
            orders=GAP_ORDERS,
            progress=sys.stderr.isatty(),
        )
    except (TypeError, ValueError):
        if asked.metric is not None:
            raise
        return None  # answers that cannot be compared without one


def _verify(model: nn.Module, batch: Any) -> None:
    """Raise TypeError where a batch is of no known form, or the model's forward does not take it."""
    args, kwargs = feeding.arguments(batch)
    try:
        signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{type(model).__name__}.forward does not take such a batch: {error}. Pass forward=lambda model, batch: ..."
        ) from None
    except ValueError:  # a forward without a signature
        return
