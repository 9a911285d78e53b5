"""The norms of the state dicts in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._checkpoint import state_dicts
from .state import NormState, State, of_tensors

_NORM_NAME = re.compile(r"(norm|bn|ln)_?\d*$", re.IGNORECASE)


def state_of(content: Mapping[Any, Any]) -> State:
    """The norms of all state dicts in a mapping. ValueError where one has no values at all."""
    found = dict(state_dicts(content))
    for place, tensors in found.items():
        if all(tensor.is_meta for tensor in tensors.values()):
            where = f" {place!r}" if place else ""
            raise ValueError(f"the state dict{where} is on the meta device and has no values: save it with its weights")
    states = {name: norms for name, tensors in found.items() if (norms := (*of_tensors(tensors), *_others(tensors)))}
    copies = {"" if len(states) == 1 else name: norms for name, norms in states.items()}
    norms = tuple(_in_copy(norm, copy) for copy, own in copies.items() for norm in own)
    return State(norms, "state dict")


def _in_copy(norm: NormState, copy: str) -> NormState:
    return norm if not copy else NormState(**{**norm.__dict__, "copy": copy})


def _others(tensors: Mapping[str, Tensor]) -> Iterator[NormState]:
    """What is called a norm and has one gamma a channel and no statistics."""
    for key, gamma in tensors.items():
        layer, _, name = key.rpartition(".")
        if (
            name == "weight"
            and _NORM_NAME.search(layer)
            and gamma.dim() == 1
            and f"{layer}.running_mean" not in tensors
        ):
            beta = tensors.get(f"{layer}.bias")
            wide = [None if t is None else t.detach().to("cpu", torch.float64) for t in (gamma, beta)]
            yield NormState(layer, "norm", None, weight=wide[0], bias=wide[1], dtypes={"weight": gamma.dtype})
