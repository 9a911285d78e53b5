"""Freezing batch normalization against everything, `train()` included, and the way back: `nk.freeze`, `nk.unfreeze`.

Rules: a frozen layer is a FrozenBatchNorm that holds the tensors of the layer it replaces, and that layer itself, so
that the way back restores class, momentum, counter, hooks and requires_grad by putting it back.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model.ambient import outside_of_inference_mode
from ..model.families import family
from ..model.select import Selector, Site, select
from ..model.swap import kind, put, working_copy
from ..model.transaction import Transaction
from .changes import Change, record
from .convert import Surroundings, apply, successor
from .positions import Positions
from .thaw import remembered, thawed, waiting_layers


def freeze(
    model: nn.Module,
    only: Selector | None = None,
    skip: Selector | None = None,
    inplace: bool = False,
    example_inputs: Any = None,
) -> nn.Module:
    """Fix statistics and affine parameters of every batch normalization, whatever ``train()`` says later.

    Evaluation-mode arithmetic with the running statistics in both modes; they and the counter stand still. Weight and
    bias are buffers while frozen; the Parameter objects wait with requires_grad=False and without a pending gradient,
    which an optimizer would apply. BatchNorm1d/2d/3d, sync, ghost and renorm layers and recognised subclasses; others
    are kept, with the reason in ``nk.changes(model)``.

    Args: only, skip, inplace, example_inputs as in ``nk.convert``. Returns: the frozen model; `nk.unfreeze` is the way
    back. Raises ValueError where no normalization layer is selected, RuntimeError where the model cannot be copied.
    """
    return apply(model, "freeze", "frozen", only, skip, inplace, example_inputs)


@outside_of_inference_mode
def unfreeze(
    model: nn.Module, only: Selector | None = None, skip: Selector | None = None, inplace: bool = False
) -> nn.Module:
    """Put back what `nk.freeze` replaced: class, momentum, counter, hooks, requires_grad, parameters, all as they were.

    The layer's mode is what it was when it was frozen, or the model's where that has changed since. A frozen layer
    that never was another one becomes a trainable BatchNorm.

    Args: only, skip, inplace as in ``nk.convert``. Returns: the model. Raises ValueError where no normalization layer
    is selected, RuntimeError where the model cannot be copied.
    """
    select(model, only, skip)
    model = working_copy(model, inplace)
    with Transaction(model, *waiting_layers(model)) as change, change:
        surroundings = Surroundings(model, Positions(model))
        back = {site: site.refused or _unfrozen(model, site, surroundings) for site in select(model, only, skip)}
        change.commit(lambda: _put(model, back))
    return next((new for site, new in back.items() if site.name == "" and not isinstance(new, str)), model)


def _put(model: nn.Module, back: dict[Site, nn.Module | str]) -> None:
    root, entries = model, []
    for site, new in back.items():
        if isinstance(new, str):
            entries.append(Change("unfreeze", site.name, "kept", kind(site.module), kind(site.module), new))
            continue
        entries.append(Change("unfreeze", site.name, "replaced", kind(site.module), kind(new)))
        if site.name == "":
            root = new
        else:
            put(model, site.names, new)
    record(root, entries)


def _unfrozen(model: nn.Module, site: Site, surroundings: Surroundings) -> nn.Module | str:
    if family(site.module) != "frozen":
        return "it is not frozen"
    if remembered(site.module) is not None:
        return thawed(site.module, model)
    built = successor(site, "batch", surroundings)
    if isinstance(built, str):
        return built
    built[0].train(model.training)
    return built[0]
