"""A norm for each domain in the place of one, and one of them back: ``nk.convert(model, "domain", domains=3)``.

Rules: the first domain's norm holds the Parameter objects of the norm that was there, so an optimizer keeps them; every
domain begins as that norm. The way back gives the layer whose statistics are one domain's, or all domains' as one set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .. import nn as layers
from ..model.swap import take_over
from ..nn.domain_batch_norm import _DomainBatchNorm
from .build import Built, build
from .layer_facts import LayerFacts

ALL = "all"
_NOT_SYNCHRONISED = 'its domains are not synchronised: nk.convert(model, "sync") makes their norms so'


@dataclass(frozen=True)
class Domains:
    """count: how many there are; shared: whether they have one weight and bias."""

    count: int
    shared: bool

    def norm(self, facts: LayerFacts, flat: bool | None) -> Built:
        """The layer that takes the place of a norm, or why there is none."""
        made = build(replace(facts, activation=None), "batch", flat=flat, probably_flat=bool(flat))
        if isinstance(made, str):
            return made
        one: Any = made[0]
        one.activation = facts.activation
        kind = getattr(layers, f"DomainBatchNorm{facts.spatial}d")
        new = kind.from_norm(one, self.count, shared_affine=self.shared)
        for name in ("weight", "bias"):
            if one._parameters.get(name) is not None:
                new.norms[0]._parameters[name] = one._parameters[name]
        if self.shared:
            new._share()
        take_over(new, facts.module)
        remark = _NOT_SYNCHRONISED if facts.family == "sync" else ""
        return new, "; ".join(filter(None, (made[1], remark)))


def verify(target: str, domains: Any, shared_affine: Any, domain: Any) -> None:
    """Raise ValueError where the arguments of `convert` that speak of domains do not fit its target or each other."""
    if target == "domain":
        if domain is not None:
            raise ValueError("domain says which norm is to come back: it does not go with target 'domain'")
        if isinstance(domains, bool) or not isinstance(domains, int) or domains < 1:
            raise ValueError(f"target 'domain' needs domains, how many there are, 1 or more; got {domains!r}")
    elif domains is not None or shared_affine:
        raise ValueError(f"domains and shared_affine go with target 'domain', got target {target!r}")
    elif domain is not None and domain != ALL and (isinstance(domain, bool) or not isinstance(domain, int)):
        raise ValueError(f"domain must be the number of a domain or {ALL!r}, got {domain!r}")


def owner(modules: Mapping[str, nn.Module], name: str) -> _DomainBatchNorm | None:
    """The layer of whose domains the norm of this name is one."""
    found = modules.get(name.rpartition("norms.")[0].rstrip("."))
    return found if isinstance(found, _DomainBatchNorm) and "norms." in name else None


def why_not_of_domains(module: nn.Module) -> str | None:
    """For `select`: the layers of several domains, and no other."""
    return None if isinstance(module, _DomainBatchNorm) else ""


def single(layer: Any, domain: int | str) -> nn.Module | str:
    """The one batch norm that comes back for a layer of several domains, with its Parameter objects; or why none does.

    Raises IndexError for a domain that is not there.
    """
    try:
        one = layer.to_norm(None if domain == ALL else domain)
    except ValueError as error:  # domains that differ in weight or bias
        return str(error)
    source = layer.norms[0 if domain == ALL else domain]
    for name, parameter in source._parameters.items():
        if parameter is not None:
            one._parameters[name] = parameter
    take_over(one, layer)
    found: nn.Module = one
    return found
