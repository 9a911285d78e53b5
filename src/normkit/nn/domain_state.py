"""A domain batch norm from one batch norm, and one batch norm from it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .._torch import BatchNormBase

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def arguments_of(norm: nn.Module, like: type[nn.Module]) -> dict[str, Any]:
    """What makes a batch norm of normkit that is as this one. like: the class of torch.nn that it must be.

    Raises TypeError for another layer.
    """
    if not isinstance(norm, BatchNormBase) or not isinstance(norm, like):
        raise TypeError(f"expected a {like.__name__} of torch.nn or normkit, got {type(norm).__name__}")
    held = norm.weight if norm.weight is not None else norm.running_mean
    device = None if held is None else held.device
    return {
        "num_features": norm.num_features, "eps": norm.eps, "momentum": norm.momentum,
        "affine": norm.weight is not None, "track_running_stats": norm.track_running_stats, "device": device,
        "dtype": None if norm.weight is None else norm.weight.dtype, "bias": norm.bias is not None,
        "activation": getattr(norm, "activation", None), "small_batch": getattr(norm, "small_batch", "error"),
    }  # fmt: skip


def copied(norm: nn.Module, into: nn.Module) -> None:
    """Give a batch norm what another of its form holds: values, mode, and which parameters are trained."""
    into.load_state_dict(norm.state_dict())
    into.train(norm.training)
    for name, parameter in norm.named_parameters(recurse=False):
        into.get_parameter(name).requires_grad_(parameter.requires_grad)


def spread(state: dict[str, Any], prefix: str, domains: int) -> None:
    """Let the state of one batch norm be that of every domain; a state of domains stays."""
    found = {name: state[prefix + name] for name in _STATE if prefix + name in state}
    if not found or any(key.startswith(f"{prefix}norms.") for key in state):
        return
    for name, value in found.items():
        del state[prefix + name]
        for number in range(domains):
            state[f"{prefix}norms.{number}.{name}"] = value


def merged(norms: list[Any]) -> Any:
    """A copy of the first norm with the statistics of all of them as one set, each weighing its batches.

    mean = sum p_k mean_k, var = sum p_k (var_k + (mean_k - mean)^2), p_k: batches counted, or 1 / K where none counts.

    Raises ValueError where weights or biases differ.
    """
    one = copy.deepcopy(norms[0])
    for name in ("weight", "bias"):
        first, *others = (getattr(norm, name) for norm in norms)
        if any((first is None) != (b is None) or (b is not None and not torch.equal(first, b)) for b in others):
            raise ValueError(
                f"the domains differ in {name}, which no single batch norm can have: name one, to_norm(domain), or "
                "make the layer with shared_affine=True"
            )
    if one.running_mean is None or one.running_var is None:
        return one
    batches = torch.stack([norm.num_batches_tracked.double() for norm in norms])
    share = batches / batches.sum() if batches.sum() > 0 else torch.full_like(batches, 1 / len(norms))
    means, variances = (torch.stack([getattr(norm, name).double() for norm in norms]) for name in _STATE[2:4])
    mean = (share.unsqueeze(1) * means).sum(0)
    one.running_mean.copy_(mean)
    one.running_var.copy_((share.unsqueeze(1) * (variances + (means - mean).square())).sum(0))
    one.num_batches_tracked.copy_(batches.sum())
    return one
