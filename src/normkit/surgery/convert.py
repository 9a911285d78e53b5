"""Turning normalization layers into another family: `nk.convert`.

Rules: one entry a layer in `nk.changes(model)`; a layer that cannot be converted is kept, with the reason. What a
layer holds comes along: the Parameter objects, running statistics, mode, hooks, requires_grad, names; a shared layer
stays shared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ..model.ambient import outside_of_inference_mode
from ..model.families import author, family
from ..model.select import Selector, Site, select, why_no_family
from ..model.swap import kind, parametrized, put, working_copy
from ..model.transaction import Transaction
from . import row_norms
from .build import TARGETS, Built, build
from .changes import Change, record
from .domains import Domains, owner, single, verify, why_not_of_domains
from .instance_forward import uninstall
from .layer_facts import facts_of
from .positions import Positions
from .probe import structure
from .thaw import put_away, remember, thawed, waiting_layers
from .undo import original, standing_aside, undo


def convert(
    model: nn.Module,
    target: str,
    only: Selector | None = None,
    skip: Selector | None = None,
    inplace: bool = False,
    example_inputs: Any = None,
    *,
    domains: int | None = None,
    shared_affine: bool = False,
    domain: int | str | None = None,
) -> nn.Module:
    """Replace the model's normalization layers by those of another family.

    - "batch", "sync", "ghost", "renorm", "frozen": batch normalization and its kin. Running statistics and counters
      come along from each other; from group, layer or instance norm they start afresh, and the entry says so.
    - "group": 32 groups, or the largest divisor of the channels below it that leaves two channels a group; the entry
      says so.
    - "layer": LayerNorm2d (over channels, at each position) on images, LayerNorm on (N, C).
    - "instance": per sample and channel.
    - "domain": DomainBatchNormNd, whose norm of each domain begins as the layer. The way back is any target with
      ``domain=``, as ``convert(model, "torch", domain=0)``.
    - "torch": the same family in torch.nn; a sync layer becomes the BatchNormNd that it was. The way back from
      ``nk.accelerate`` too: rewritten forwards and recomputation go, layers of other libraries are what they were.

    A layer that is the target already is kept. An activation inside of a layer (a subclass that a numeric probe shows
    to be activation(norm(x))) comes along as the new layer's ``activation``.

    Args:
        model: any module; in any mode, which stays.
        target: one of the above.
        only, skip: which layers: name patterns ("layer1", "*.bn2"), types, functions (name, module) -> bool, or lists.
        inplace: change `model` itself, with the same Parameter objects; otherwise a copy.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. A sync or group layer does not
            say how many spatial dimensions it sees: where the model does not show it otherwise, one run on them does.
        domains, shared_affine: of target "domain": how many there are, and whether they have one weight and bias.
        domain: the number of the domain whose norm takes the place of each layer of several domains; "all": the
            statistics of all of them as one set, where they share weight and bias. Other layers are left as they are.

    Returns: the changed model; ``nk.changes(model)`` lists every layer. Raises ValueError for an unknown target, for
    arguments that do not go with it, and where no normalization layer is selected, IndexError for a domain that is not
    there, RuntimeError where the model cannot be copied.
    """
    if target not in (*TARGETS, "domain"):
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, domain, but got {target!r}")
    verify(target, domains, shared_affine, domain)
    if domain is not None and not any(why_not_of_domains(module) is None for module in model.modules()):
        raise ValueError(
            f"domain={domain!r} needs a model with a domain batch norm, got {type(model).__name__} with none"
        )
    many = domain if domains is None else Domains(domains, shared_affine)
    return apply(model, "convert", target, only, skip, inplace, example_inputs, many)


@outside_of_inference_mode
def apply(
    model: nn.Module,
    operation: str,
    target: str,
    only: Selector | None,
    skip: Selector | None,
    inplace: bool,
    example_inputs: Any,
    domains: Domains | int | str | None = None,
) -> nn.Module:
    """What `convert` and `freeze` have in common. domains: those that a norm gets, or the one whose norm comes back."""
    unknown = _but_for_row_norms if target == "torch" else why_no_family
    if domains is not None and not isinstance(domains, Domains):
        unknown = why_not_of_domains
    select(model, only, skip, unknown)
    model = working_copy(model, inplace)
    with Transaction(model, *waiting_layers(model), *standing_aside(model)) as change, change:
        surroundings = Surroundings(model, Positions(model, example_inputs), domains)
        built = {site: _built(site, target, surroundings, inplace) for site in select(model, only, skip, unknown)}
        change.commit(lambda: _put(model, built, operation, target))
    return next((new[0] for site, new in built.items() if site.name == "" and not isinstance(new, str)), model)


def _built(site: Site, target: str, surroundings: Surroundings, inplace: bool) -> Built:
    make = successor if surroundings.returning is None else _of_one_domain
    built = site.refused or make(site, target, surroundings)
    if inplace and site.name == "" and not isinstance(built, str) and built[0] is not site.module:
        return "it is the model itself, which cannot be replaced in place"
    return built


def _of_one_domain(site: Site, target: str, surroundings: Surroundings) -> Built:
    """One batch norm in the place of the layer of several domains, and that as the target."""
    assert surroundings.returning is not None
    one = single(site.module, surroundings.returning)
    if isinstance(one, str):
        return one
    new = successor(replace(site, module=one), target, replace(surroundings, domains=None))
    return (one, "") if isinstance(new, str) and target == "batch" else new


def _put(model: nn.Module, built: dict[Site, Built], operation: str, target: str) -> None:
    root = model
    for site, new in built.items():
        if isinstance(new, str):
            continue
        if new[0] is site.module:
            uninstall(site.module)
        elif site.name == "":
            root = new[0]
        else:
            put(model, site.names, new[0])
        put_away(new[0])
    if target == "torch":
        undo(root)
    record(root, [entry(operation, site, new) for site, new in built.items()])


@dataclass(frozen=True)
class Surroundings:
    """What is known of a layer besides what it says itself."""

    model: nn.Module
    positions: Positions
    domains: Domains | int | str | None = None

    @property
    def returning(self) -> int | str | None:
        """The domain whose norm comes back; None where none does."""
        return None if isinstance(self.domains, Domains) else self.domains


def successor(site: Site, target: str, surroundings: Surroundings) -> Built:
    """The layer that takes the place of this one and a remark, or the reason why there is none."""
    norm = site.module
    if target == "torch" and row_norms.installed(norm):
        return norm, "what it was before accelerate"
    refusal = _refusal(norm, target)
    if refusal is not None:
        return refusal
    norm = thawed(norm, surroundings.model)
    before = original(norm) if target == "torch" else None
    if before is not None:
        return before, "what it was before accelerate"
    shape = structure(norm)
    if isinstance(shape, str):
        return shape
    where = surroundings.positions
    facts = facts_of(norm, shape, where.spatial(site.module))
    if isinstance(surroundings.domains, Domains):
        if owner(dict(surroundings.model.named_modules()), site.name) is not None:
            return "it is the norm of one of several domains already"
        return surroundings.domains.norm(facts, where.flat(site.module))
    built = build(facts, target, flat=where.flat(site.module), probably_flat=where.probably_flat(site.module))
    if not isinstance(built, str) and target == "frozen":
        remember(built[0], norm, surroundings.model)
    return built


def _but_for_row_norms(module: nn.Module) -> str | None:
    """The way back from `accelerate` knows those that it has given a forward."""
    return None if row_norms.installed(module) else why_no_family(module)


_STATE = frozenset(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


def _refusal(norm: nn.Module, target: str) -> str | None:
    if parametrized(norm):
        return "it has a parametrized weight, which no other layer can take over"
    own = [name for name in (*norm._parameters, *norm._buffers) if name not in _STATE]
    if own and author(type(norm)) != "normkit":
        return f"it holds {own[0]} (pruned, or a subclass), which no other layer can take over"
    if any(is_lazy(parameter) for parameter in (*norm.parameters(), *norm.buffers())):
        return "it is lazy and has no shape yet: run the model once first"
    library = "torch" if target == "torch" else "normkit"
    families = {"layer": ("layer", "layer2d")}.get(target, (target,))
    same = family(norm) in families or (target == "torch" and family(norm) != "sync")
    return "it is that already" if same and author(type(norm)) == library else None


def entry(operation: str, site: Site, built: Built) -> Change:
    before = kind(site.module)
    if isinstance(built, str):
        return Change(operation, site.name, "kept", before, before, built)
    return Change(operation, site.name, "replaced", before, kind(built[0]), built[1])
