"""`nk.diagnose`: what is wrong with a model's normalization, in numbers, and the call that mends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..info import version
from ..statistics.batches import Feed
from . import text
from .catalogue import chosen
from .checkpoint import state_of
from .evidence import Evidence, Request, gather, request
from .finding import SEVERITIES, Finding, at_least
from .follow import follow
from .heal import Healing, heal

SCHEMA = "normkit.diagnosis/1"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found. findings: the worst first, then in the model's order. model: its class. norms: how many it has.
    batches, images: how many were looked at, 0 for a state alone. change, noise: of the answer by the running
    statistics, and by single batches' (see `Forward`). gap: the train/eval gap with each layer's share, or None."""

    findings: tuple[Finding, ...]
    model: str
    norms: int
    batches: int = 0
    images: int = 0
    change: float | None = None
    noise: float | None = None
    gap: object | None = None
    _asked: Request | None = field(default=None, repr=False)

    @property
    def healthy(self) -> bool:
        """Whether nothing is above a note."""
        return not any(at_least(finding.severity, "warning") for finding in self.findings)

    def at_least(self, severity: Any) -> tuple[Finding, ...]:
        """The findings of this severity ("note", "warning", "error") or worse."""
        return tuple(finding for finding in self.findings if at_least(finding.severity, severity))

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

    def to_json(self) -> str:
        """The form of schema.json: the same input gives the same text."""
        document = {
            "schema": SCHEMA, "normkit": version(), "model": self.model, "norms": self.norms, "batches": self.batches,
            "images": self.images, "change": self.change, "noise": self.noise, "healthy": self.healthy,
            "findings": [finding.to_json() for finding in self.findings],
        }  # fmt: skip
        return json.dumps(document, allow_nan=False, indent=1)

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
        asked = request(model, batches, forward, optimizer, loss_fn)
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
        None if run is None else text.finite(run.change),
        None if run is None else text.finite(run.noise),
        evidence.gap,
        asked,
    )
