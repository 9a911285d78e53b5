"""Making a model of torch's norms run on ours, with additions and activations fused: `nk.accelerate`.

Rules: two steps, in one transaction. (1) every norm becomes the same norm of normkit, and an RMS or layer norm that is
a class of its own (LlamaRMSNorm) stays and gets a forward that calls normkit's kernels; (2) the forward of the smallest
block that adds to its output or activates it is rewritten to do so in the norm's call. Nothing else changes: layers
stay plain, activations stay modules, and whoever uses them otherwise gets what he got. The changed model must give what
the original gave, or the steps are undone.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

from torch import nn

from .._torch import has_own_forward, hooked
from ..model.ambient import outside_of_inference_mode
from ..model.dataflow import Flow, flow_of, refuse_lazy, refuse_meta
from ..model.families import BATCH_FAMILIES, author, author_of_forward, family, is_ours, rank
from ..model.kept import Kept
from ..model.restore import in_both_modes
from ..model.select import Selector, Site, select
from ..model.swap import kind, put, working_copy
from ..model.transaction import Transaction
from . import activations, row_norms
from .added_call import takes_addition
from .block import Block
from .build import Built
from .changes import Change, record
from .convert import Surroundings, successor
from .fused_call import FusedSequential, children_steps, ending, has_sequentials_forward
from .head import prepare
from .pattern import Pattern, pattern_of, sum_before
from .positions import Positions
from .recompute import add as add_recomputation
from .thaw import forget, waiting_layers
from .undo import remember, standing_aside
from .verify import behaviour_of_rounded, behaviours, check

_TARGETS = {"layer2d": "layer", "rms": "rms"}
_OF_ROWS = ("layer", "layer2d", "rms")
_RECOMPUTES = "in training its norms' outputs are computed again in the backward, by hooks around its forward"
_TAKE_RESIDUAL = BATCH_FAMILIES | {"group", "instance"}


@outside_of_inference_mode
def accelerate(
    model: nn.Module,
    example_inputs: Any,
    verify: bool = True,
    *,
    only: Selector | None = None,
    skip: Selector | None = None,
    inplace: bool = False,
    recompute: bool = False,
) -> nn.Module:
    """Replace torch's norms by normkit's, and fuse the addition and the activation that follow them.

    The same function, in training and evaluation: parameters, buffers, state_dict, names and the classes of the outer
    modules stay, activations too. RMS and layer norms of other classes are known by their numbers and stay what they
    are, with a new ``forward``. A block that adds to a norm's output or activates it keeps its class and gets a new
    ``forward``, written from a trace of that one forward, which gives both to the norm's call: other methods of the
    model, and code that uses its children, find what they found. Where what happens is not certain from a run and a
    trace that agree, only the layer is replaced.

    Args:
        model: in any mode, which stays.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. The model runs on them, in
            training mode too if it can (statistics and random state are given back).
        verify: compare the outputs with the original's in both modes; beyond the limits in
            ``nk.changes(model).errors`` the fusions, then the replacements, are undone.
        only, skip: which norms: name patterns, types, functions (name, module) -> bool, or lists of these.
        inplace: change `model` itself, with the same Parameter objects; otherwise a copy.
        recompute: less memory for a few percent of time: in training the model's forward runs under
            :func:`normkit.recompute_outputs`.

    Returns: the accelerated model; ``nk.changes(model)`` lists every norm. Raises ValueError where no normalization
    layer is selected, RuntimeError where the model cannot be copied.
    """
    select(model, only, skip, row_norms.why_unknown)
    refuse_lazy(model)
    refuse_meta(model)
    model = working_copy(model, inplace)
    with Transaction(model, *waiting_layers(model), *standing_aside(model)) as change, change:
        sites = select(model, only, skip, row_norms.why_unknown)
        before = behaviours(model, example_inputs) if verify else {}
        rounded = cache(lambda: change.before(lambda: behaviour_of_rounded(model, example_inputs)))
        built = _swap(model, sites, example_inputs)
        swapped = Kept(model)
        try:
            fused, unfused = _fuse(model, example_inputs, sites, built)
        except Exception:
            if not before:
                raise
            fused, unfused = {}, {}  # the check says what is wrong with the model by now
        errors, failure = check(model, example_inputs, before, rounded)
        if failure and fused:
            swapped.give_back()
            unfused |= dict.fromkeys(fused, f"fusion undone: {failure}")
            fused = {}
            errors, failure = check(model, example_inputs, before, rounded)
        if failure:
            change.undo()
            built = {name: new if isinstance(new, str) else f"undone: {failure}" for name, new in built.items()}
        entries = [_entry(site, built[site.name], fused.get(site.name), unfused.get(site.name, "")) for site in sites]
        change.commit(lambda: record(model, [*entries, *([_recomputing(model)] if recompute else [])], errors))
    return model


# -- step 1 -----------------------------------------------------------------------------------------------------------
def _swap(model: nn.Module, sites: list[Site], example_inputs: Any) -> dict[str, Built]:
    open_rank = any(family(site.module) == "frozen" and rank(site.module) is None for site in sites)
    surroundings = Surroundings(model, Positions(model, example_inputs if open_rank else None))
    built: dict[str, Built] = {}
    for site in sites:
        new = site.refused or _new(site, surroundings)
        if not isinstance(new, str) and new[0] is site.module:
            built[site.name] = new
            row_norms.install(site.module)
            continue
        if not isinstance(new, str):
            if "num_batches_tracked" not in site.module._buffers and family(new[0]) == "frozen":
                new[0]._buffers["num_batches_tracked"] = None  # the model saves what it saved before
            new = _held_otherwise(new[0], site.module) or new
        if not isinstance(new, str) and site.name == "":
            new = "it is the model itself: use the layer of normkit instead"
        built[site.name] = new
        if not isinstance(new, str):
            put(model, site.names, new[0])
            if not author(type(site.module)):
                remember(new[0], site.module)
                forget(new[0])  # nobody has frozen it here: it was frozen before
    return built


def _new(site: Site, surroundings: Surroundings) -> Built:
    """The layer that takes its place; the module itself where it stays, with a forward of its own."""
    target = family(site.module)
    if target is None or row_norms.installed(site.module):
        return row_norms.replacement(site.module)
    new = successor(site, _TARGETS.get(target, target), surroundings)
    if not isinstance(new, str) or author(type(site.module)):
        return new
    row = row_norms.replacement(site.module)  # a subclass that is not its base, as one with 1 + weight
    if isinstance(row, str):
        return f"{new}; {row}" if target in _OF_ROWS else new
    return row


def _held_otherwise(new: nn.Module, old: nn.Module) -> str | None:
    """What the two layers hold under other names, or one as a parameter and the other as a buffer."""
    held = [(list(dict(layer.named_parameters())), list(layer.state_dict())) for layer in (new, old)]
    return None if held[0] == held[1] else f"{kind(new)} has other parameters or another state_dict"


# -- step 2 ----------------------------------------------------------------------------------------------------
def _fuse(
    model: nn.Module, example_inputs: Any, sites: list[Site], built: dict[str, Built]
) -> tuple[dict[str, str], dict[str, str]]:
    """name -> what was fused, name -> why not."""
    if not sites:
        return {}, {}
    flows = _flows(model, example_inputs)
    modules = dict(model.named_modules())
    fused: dict[str, str] = {}
    unfused: dict[str, str] = {}
    by_scope: dict[str, dict[str, Pattern]] = {}
    for site in sites:
        pattern = _pattern(modules.get(site.name), site, modules, flows)
        if isinstance(pattern, str):
            unfused[site.name] = pattern
        else:
            by_scope.setdefault(pattern.scope, {})[site.name] = pattern
    for scope, patterns in by_scope.items():
        _rewrite(modules, scope, patterns, flows, fused, unfused)
    return fused, unfused


def _pattern(norm: Any, site: Site, modules: dict[str, nn.Module], flows: list[Flow]) -> Pattern | str:
    """What can be one call with the norm: what follows it, or the addition in front of it."""
    if row_norms.installed(site.module):
        reason = _hooked(norm)
        return reason or (sum_before(site.name, flows) if takes_addition(norm) else "it has no call behind an addition")
    reason = _unfusable(norm, site)
    if reason is not None:
        return reason
    found = pattern_of(site.name, modules, flows, adds=family(site.module) in _TAKE_RESIDUAL)
    if not isinstance(found, str) or not takes_addition(norm):
        return found
    before = sum_before(site.name, flows)
    return f"{found}; {before}" if isinstance(before, str) else before


def _flows(model: nn.Module, example_inputs: Any) -> list[Flow]:
    """A run in evaluation, and one in training if the model can, be it that a channel has one value only."""

    def run() -> Flow:
        for norm in model.modules():
            if is_ours(norm) and hasattr(
                norm, "small_batch"
            ):  # they take one value a channel, as a batch of one image may have
                norm.__dict__["small_batch"] = "running"
        return flow_of(model, example_inputs)

    return list(in_both_modes(model, run).values())


def _unfusable(norm: Any, site: Site) -> str | None:
    if site.refused or not is_ours(norm) or author_of_forward(norm) != "normkit":
        return "it was not replaced"
    if getattr(norm, "activation", None) is not None:
        return "its activation is in it already"
    return _hooked(norm)


def _hooked(norm: nn.Module) -> str | None:
    return "it has hooks, which see its output" if hooked(norm) else None


def _rewrite(
    modules: dict[str, nn.Module],
    scope: str,
    patterns: dict[str, Pattern],
    flows: list[Flow],
    fused: dict[str, str],
    unfused: dict[str, str],
) -> None:
    module = modules[scope]
    if has_sequentials_forward(module) and not has_own_forward(module):
        return _fuse_sequential(module, scope, patterns, modules, flows, fused, unfused)
    where = _forward_of(module, scope)
    found: dict[str, str | nn.Module | None] = {}
    try:
        block = Block(module, scope, flows)
        for name, pattern in patterns.items():
            try:
                if pattern.sums:
                    block.fuse_sum(name)
                    found[name] = None
                else:
                    found[name] = block.fuse(name, pattern)
            except ValueError as error:
                unfused[name] = f"{where} stays: {error}"
        if not found:
            return
        block.install()
    except ValueError as error:
        unfused.update(dict.fromkeys(patterns, f"{where} stays: {error}"))
        return
    for name, activation in found.items():
        parts = [*(["the addition"] if patterns[name].adds else []), *([_shown(activation)] if activation else [])]
        parts = ["the addition in front of it"] if patterns[name].sums else parts
        fused[name] = f"fused with {' and '.join(parts)}; {where} was rewritten"


def _fuse_sequential(
    module: nn.Module,
    scope: str,
    patterns: dict[str, Pattern],
    modules: dict[str, nn.Module],
    flows: list[Flow],
    fused: dict[str, str],
    unfused: dict[str, str],
) -> None:
    for name, pattern in patterns.items():
        try:
            prepare(modules[pattern.through], pattern.through, name, flows)
        except ValueError as error:
            unfused[name] = f"{pattern.through} stays: {error}"
            continue
        children, activation = children_steps(module), modules[str(pattern.activation)]
        behind = [after for step, after in pairwise(children) if ending(step) is modules[name]]
        if behind and all(step is activation for step in behind):
            fused[name] = (
                f"fused with {_shown(activations.of_module(activation))}; {_forward_of(module, scope)} does both"
            )
            activations.mark(activation)
            FusedSequential(module).install()
        else:
            unfused[name] = "its activation is not the next child"


def _forward_of(module: nn.Module, scope: str) -> str:
    return f"the forward of {scope or 'the model'} ({kind(module)})"


def _shown(activation: str | nn.Module | None) -> str:
    return activation if isinstance(activation, str) else str(activation)


# -- the record --------------------------------------------------------------------------------------------------------
def _recomputing(model: nn.Module) -> Change:
    if not any(is_ours(module) or row_norms.installed(module) for module in model.modules()):
        return Change(
            "accelerate", "", "kept", kind(model), kind(model), "no output to compute again: no norm is normkit's"
        )
    add_recomputation(model)
    return Change("accelerate", "", "replaced", kind(model), kind(model), _RECOMPUTES)


def _entry(site: Site, built: Built, fused: str | None, unfused: str) -> Change:
    before = kind(site.module)
    if isinstance(built, str) and fused is None:
        return Change("accelerate", site.name, "kept", before, before, built)
    after = before if isinstance(built, str) else kind(built[0])
    remark = "" if isinstance(built, str) else built[1]
    fusion = fused or (f"not fused: {unfused}" if unfused else "")
    stays = not isinstance(built, str) and built[0] is site.module  # what its new forward computes is said too
    reason = "; ".join(filter(None, (remark, fusion))) if stays else fusion or remark
    return Change("accelerate", site.name, "replaced", before, after, reason)
