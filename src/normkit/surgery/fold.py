"""Folding batch normalization into the layer before or after it: `nk.fold`.

Rules:
- What feeds what is taken from a run of the model, never from its source; a value that anything else reads is not
  folded over.
- The layer in front is tried first, then the one after it; a fold makes its neighbours neighbours, so chains fold too.
- What cannot be folded exactly is kept with the reason; should the outputs differ after all, everything is put back.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .._torch import COMPILED_FROM
from ..model.ambient import outside_of_inference_mode
from ..model.dataflow import observe, refuse_lazy, refuse_meta
from ..model.select import Selector, Site, select
from ..model.swap import kind, working_copy
from ..model.transaction import Transaction
from .changes import Change, OutputError, record
from .fold_plan import FoldPlan
from .verify import compare, outputs_of

_TRAINING = "the model is in training mode, where statistics are the batch's: call model.eval() first"


@outside_of_inference_mode
def fold(
    model: nn.Module,
    example_inputs: Any,
    verify: bool = True,
    *,
    only: Selector | None = None,
    skip: Selector | None = None,
    inplace: bool = False,
) -> nn.Module:
    r"""Put evaluation-mode batch normalization into the weights of its neighbours; the norm is gone from the model.

    .. math:: \mathrm{norm}(W * x + b) = (s W) * x + (s b + t), \qquad s = \frac{\mathrm{weight}}{\sqrt{\mathrm{var} +
              \epsilon}}, \quad t = \mathrm{bias} - s\,\mathrm{mean}

    - Into the layer in front: convolutions and transposed convolutions (1d, 2d, 3d, any groups), linear layers. One
      norm after several of them folds into each. Into the layer after it: the same, where no border of zeros stands
      between.
    - Subclasses of these count when a numeric probe shows that their output is affine in weight and bias.
    - The arithmetic is float64, whatever the dtype of the model. A norm with an activation leaves the activation.
    - Kept, with the reason in ``nk.changes(model)``: a norm in training mode (call ``model.eval()`` first), one whose
      input or output something else reads, shared or parametrized weights, hooks, norms without running statistics.

    Args:
        model: in evaluation mode.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; the model runs on them.
        verify: run the model before and after, and report the largest error of each output in
            ``nk.changes(model).errors``; beyond the limit given there every fold is undone.
        only, skip: which norms: name patterns, types, functions (name, module) -> bool, or lists of these.
        inplace: change `model` itself, with the same Parameter objects; otherwise a copy.

    Returns: the folded model. Raises ValueError where no normalization layer is selected, RuntimeError where the model
    cannot be copied.

    Reference: Jacob et al. (2018), Quantization and Training of Neural Networks, section 3.2.
    https://arxiv.org/abs/1712.05877
    """
    select(model, only, skip)
    refuse_lazy(model)
    refuse_meta(model)
    model = working_copy(model, inplace)
    with Transaction(model) as change, change:
        sites = select(model, only, skip)
        if getattr(model, COMPILED_FROM, model).training:  # before torch 2.5 the compiled one has a mode of its own
            change.commit(lambda: record(model, [_entry(site, {}, {}, _TRAINING) for site in sites]))
            return model
        plan = FoldPlan(model, observe(model, example_inputs))
        before = outputs_of(model, example_inputs) if verify else {}
        for site in sites:
            plan.add(site)
        done = plan.fold_all()
        plan.write(change)
        errors, failure = _verified(model, example_inputs, before) if done else ((), None)
        if failure is not None:
            change.undo()
            done = {}
        change.commit(lambda: record(model, [_entry(site, done, plan.reasons, failure) for site in sites], errors))
    return model


def _verified(
    model: nn.Module, example_inputs: Any, before: dict[str, Any]
) -> tuple[tuple[OutputError, ...], str | None]:
    if not before:
        return (), None
    try:
        errors = compare("fold", before, outputs_of(model, example_inputs))
    except Exception as error:
        return (), f"undone: the folded model fails with {type(error).__name__}: {error}"
    worst = [error for error in errors if not error.largest <= error.limit]
    if worst:
        return errors, f"undone: {worst[0].output} differs by {worst[0].largest:.3g} (limit {worst[0].limit:.3g})"
    return errors, None


def _entry(site: Site, done: dict[str, tuple[str, str]], reasons: dict[str, str], failure: str | None) -> Change:
    before = kind(site.module)
    if site.name in done:
        after, reason = done[site.name]
        return Change("fold", site.name, "replaced", before, after, reason)
    reason = site.refused or reasons.get(site.name) or failure or ""
    return Change("fold", site.name, "kept", before, before, reason)
