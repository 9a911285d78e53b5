"""`nk.diagnose`: what is wrong with a model's normalization, in numbers, and the call that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _files
from ..info import version
from ..statistics.batches import Feed
from . import text
from .catalogue import chosen
from .checkpoint import state_of
from .evidence import Evidence, Request, gather, request
from .figures import of_evidence
from .finding import SEVERITIES, rounded
from .follow import follow
from .heal import Healing, heal
from .page import render
from .report import Layer, Report


@dataclass(frozen=True, eq=False)
class Diagnosis(Report):
    """A report that is shown as text, by rich and in notebooks, and that can mend what it names."""

    _asked: Request | None = field(default=None, repr=False)
    _evidence: Evidence | None = field(default=None, repr=False)

    def fix(self, model: nn.Module, *, inplace: bool = False) -> nn.Module:
        """A copy of `model` with the safe fixes made: statistics recalibrated on the batches of the diagnosis, eps and
        momentum set right, half-precision statistics made wide. What was done: :meth:`healing`.

        inplace: change `model` itself. Raises RuntimeError where it cannot be copied.
        """
        healed, _ = self.healing(model, inplace=inplace)
        return healed

    def healing(self, model: nn.Module, *, inplace: bool = False) -> tuple[nn.Module, Healing]:
        """As `fix`, with the list of what was done, the number before and after, and of what was not and why."""
        return heal(self, model, self._asked, diagnose, inplace)

    def to_html(self, path: str | Path, title: str | None = None) -> None:
        """Write the page: one HTML file that loads nothing, with each norm's statistics beside the data's.

        title: what was looked at; the model's class if not given. Raises UsageError where the file cannot be written.
        """
        assert self._evidence is not None
        about = {"normkit": version(), "torch": torch.__version__, "model": self.model, "norms": str(self.norms)}
        if self.batches:
            about |= {"batches": str(self.batches), "images": str(self.images)}
        page = render(title or self.model, about, self.findings, of_evidence(self._evidence, self.gap), self.gap)
        _files.update(Path(path), lambda: page)

    def __str__(self) -> str:
        return text.plain(self)

    def __rich__(self) -> Any:
        return text.rich(self)

    def _repr_html_(self) -> str:
        return text.html(self)


def diagnose(
    model: nn.Module | Mapping[str, Any],
    batches: Iterable[Any] | None = None,
    *,
    forward: Feed | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    metric: Callable[..., Any] | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
) -> Diagnosis:
    r"""What is wrong with a model's normalization: each finding with its layer, a number, its limit and what mends it.

    Evidence is gathered once, at three levels: the state (always); what the batches show, in evaluation mode: the exact
    statistics of every norm's inputs against the running ones, in units of :math:`\sqrt{\mathrm{var} + \epsilon}`, and
    what the difference does to the answer; and, in a model that trains, one step on a copy. The model is given back
    untouched: modes, buffers, hooks, gradients, random states.

    Severity follows measured harm: "error" is what is no number, or changes the answer by more than batches differ;
    "warning" is what harms a model in training; all else is a "note".

    Args:
        model: a module; or a state dict, or a mapping of names to state dicts, as in a checkpoint.
        batches: an iterable of batches, as for `nk.recalibrate`; the first 16 are looked at. None: the state alone.
        forward: ``forward(model, batch)`` runs the model on one batch of any form and returns its output.
        optimizer: of the training, for what parameters it decays and whether it has made a step.
        loss_fn: ``loss_fn(output, target)`` for the training step; the target is a batch's second entry.
        metric: for the train/eval gap.
        select, ignore: codes of rules, or their beginnings ("NK1").

    Returns:
        A :class:`Diagnosis`: `findings`, `healthy`, `fix(model)`, `to_json()`; printable.

    Raises:
        TypeError: no model; batches or a batch of a form that is not known or that the model does not take.
        ValueError: no batch; a code that no rule has.
    """
    rules = chosen(select, ignore)
    asked: Request | None = None
    if isinstance(model, nn.Module):
        asked = request(model, batches, forward, optimizer, loss_fn, metric)
        evidence = gather(model, asked)
    elif isinstance(model, Mapping):
        if batches is not None:
            raise TypeError("batches need a model to run through: a state dict alone has none")
        evidence = Evidence(state_of(model))
    else:
        raise TypeError(f"expected a model (a torch.nn.Module) or a state dict, got {model!r:.200}")
    found = [finding for rule in rules for finding in rule.check(evidence)]
    order = {norm.where: place for place, norm in enumerate(evidence.norms)}
    ranked = sorted(follow(found), key=lambda f: (-SEVERITIES.index(f.severity), order.get(f.where, -1), f.code))
    run = evidence.forward
    return Diagnosis(
        tuple(ranked),
        evidence.state.kind,
        len(evidence.norms),
        0 if run is None else run.batches,
        0 if run is None else run.images,
        None if run is None else rounded(run.change),
        None if run is None else rounded(run.noise),
        evidence.gap,
        _layers(evidence),
        select is not None,
        asked,
        evidence,
    )


def _layers(evidence: Evidence) -> tuple[Layer, ...]:
    measured = [(norm, run) for norm in evidence.norms if (run := evidence.measured(norm)) is not None]
    return tuple(
        Layer(norm.name, norm.kind, rounded(run.apart), rounded(run.margin), rounded(run.batch), rounded(run.change))
        for norm, run in measured
    )
