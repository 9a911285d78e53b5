"""Which normalization layers of a model an operation is about: `only=` and `skip=`.

A selector is a name or pattern ("layer1", "layer1.*", "*.bn2": a name stands for everything below it too), a type, a
function `(name, module) -> bool`, or a list of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import nn

from .aside import held_aside
from .families import NORM_TYPES, family, is_like_norm

# Why what a module computes is not known; "" where it is no norm, None where it is known.
Unknown: TypeAlias = Callable[[nn.Module], "str | None"]
Selector: TypeAlias = "str | type[nn.Module] | Callable[[str, nn.Module], bool] | Iterable[Selector]"


@dataclass(frozen=True)
class Site:
    """A normalization layer and every qualified name it has in the model; `refused` says why it was not selected."""

    module: nn.Module
    names: tuple[str, ...]
    refused: str | None

    @property
    def name(self) -> str:
        return self.names[0]


def why_no_family(module: nn.Module) -> str | None:
    """An `Unknown`: what has a family is known."""
    if family(module) is not None:
        return None
    return (
        f"{type(module).__name__} is a class of its own, and what it computes is not known"
        if is_like_norm(module)
        else ""
    )


def select(
    model: nn.Module, only: Selector | None, skip: Selector | None, unknown: Unknown = why_no_family
) -> list[Site]:
    """Every normalization layer of `model`, each once, in order, with those that `only` and `skip` leave out marked.

    unknown: which layers the operation knows.

    Raises ValueError where nothing is selected: the one refusal that is an exception; TypeError for what is no model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (a torch.nn.Module), got {model!r}")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_scripted(module) or unknown(module) != "":
            names.setdefault(module, []).append(name)
    sites = [
        Site(module, tuple(found), _refusal(found, module, only, skip, unknown)) for module, found in names.items()
    ]
    if not any(site.refused is None for site in sites):
        raise ValueError(_nothing_selected(model, sites, only, skip, unknown))
    aside = held_aside(model)
    return [replace(site, refused=site.refused or _held(aside.get(site.module))) for site in sites]


def matches(selector: Selector, name: str, module: nn.Module) -> bool:
    """Whether one layer under one of its names is meant."""
    if isinstance(selector, str):
        return name == selector or name.startswith(selector + ".") or fnmatchcase(name, selector)
    if isinstance(selector, type):
        return isinstance(module, selector)
    if callable(selector):
        return bool(selector(name, module))
    if isinstance(selector, Iterable):
        return any(matches(one, name, module) for one in selector)
    raise TypeError(f"only= and skip= take a name pattern, a type, a function or a list of these, not {selector!r}")


def _is_scripted(module: nn.Module) -> bool:
    """Whether it was a norm of torch.nn before torch.jit compiled it."""
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    kind = getattr(nn, str(module.original_name), None)
    return isinstance(kind, type) and issubclass(kind, NORM_TYPES)


def _refusal(
    names: list[str], module: nn.Module, only: Selector | None, skip: Selector | None, unknown: Unknown
) -> str | None:
    if _is_scripted(module):
        return "torch.jit has compiled it: change the model before that"
    reason = unknown(module)
    if reason is not None:
        return reason
    if only is not None and not any(matches(only, name, module) for name in names):
        return "not selected by only="
    if skip is not None and any(matches(skip, name, module) for name in names):
        return "left out by skip="
    return None


def _held(where: str | None) -> str | None:
    return None if where is None else f"it is held outside of the module tree too ({where}), where no new layer gets"


def _nothing_selected(
    model: nn.Module, sites: list[Site], only: Selector | None, skip: Selector | None, known: Unknown
) -> str:
    if not sites:
        return f"expected a model with a normalization layer, got {type(model).__name__} with none"
    if all(_is_scripted(site.module) for site in sites):
        return f"all {len(sites)} normalization layers are compiled by torch.jit: change the model before that"
    unknown = [site for site in sites if known(site.module) is not None]
    if len(unknown) == len(sites):
        first = f"{unknown[0].name or '(the model itself)'} ({type(unknown[0].module).__name__})"
        why = str(known(unknown[0].module)).partition(": ")[2]
        return f"expected a model with a normalization layer, got {len(sites)} of unknown classes, as {first}" + (
            f": {why}" if why else ""
        )
    shown = ", ".join(f"{site.name or '(the model itself)'} ({type(site.module).__name__})" for site in sites[:5])
    return (
        f"only={only!r} and skip={skip!r} select none of the {len(sites)} normalization layers; "
        f"they are {shown}{', ...' if len(sites) > 5 else ''}"
    )
