"""The running statistics of several models as those of all their data: `nk.merge_statistics`.

Rules: what a state holds is told by its keys and shapes: `running_mean` and `running_var` under one name, both (C,).
Everything is checked before anything is merged; float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._precision import wide_dtype
from ..moments import Moments

State: TypeAlias = "Mapping[str, Tensor]"
_MEAN, _VAR, _COUNTER = "running_mean", "running_var", "num_batches_tracked"


def merge_statistics(
    models: Sequence[nn.Module | State], weights: Sequence[float] | Tensor | None = None
) -> dict[str, Tensor]:
    r"""The running statistics that belong to the data of several models together, as in federated averaging.

    .. math:: \mathrm{mean} = \sum_k p_k\, \mathrm{mean}_k, \quad
              \mathrm{var} = \sum_k p_k \big(\mathrm{var}_k + (\mathrm{mean}_k - \mathrm{mean})^2\big), \quad
              p_k = w_k / \sum_j w_j

    The second part of the variance, the spread between the models' means, is what an average of the variances misses.
    The pairs (mean, var) merge as moments do, exactly. Where running variances are unbiased estimates, each from m_k =
    w_k values, the unbiased variance of all M values is smaller, by (sum of var_k - var) / M: nothing for thousands.

    Args:
        models: models of one architecture, or their state dicts (mixed as you like).
        weights: how many samples each has seen; only their ratios count. None: the same number. A model of weight 0
            is left out.

    Returns:
        running_mean, running_var (float32 or wider) and num_batches_tracked (the largest: the stretch of training
        since the models parted was the same one) of every layer that keeps one mean and variance a channel, by
        state_dict key, on the first model's device, for ``model.load_state_dict(merged, strict=False)`` or ``{**state,
        **merged}``.

    Raises:
        TypeError: not a sequence of models or state dicts.
        ValueError: no model, no running statistics, unequal keys or shapes, a tensor without values (meta, lazy) or
            with NaN or Inf, weights that are not one finite number >= 0 for each model with a sum above 0.

    Reference: Chan, Golub & LeVeque (1979); McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, 2017, for the averaging around it.
    """
    states = _states(models)
    shares = _weights(weights, len(states))
    found = [statistics_of(state) for state in states]
    for index, other in enumerate(found):
        _check_same(found[0], other, index)
    used = [(part, share, index) for index, (part, share) in enumerate(zip(found, shares, strict=True)) if share > 0]
    for part, _, index in used:
        check_finite(part, f"models[{index}]")
    merged: dict[str, Tensor] = {}
    for key, first in found[0].items():
        parts = [part[key].detach() for part, _, _ in used]
        if key.endswith(_COUNTER):
            merged[key] = torch.stack([part.to(first.device) for part in parts]).amax(0)
        elif key.endswith(_MEAN):
            var = key.removesuffix(_MEAN) + _VAR
            both = _merged(parts, [part[var].detach() for part, _, _ in used], [share for _, share, _ in used], first)
            for name, value in zip((key, var), both, strict=True):
                merged[name] = value.to(torch.promote_types(found[0][name].dtype, torch.float32))
    return {key: merged[key] for key in found[0]}


def _merged(means: list[Tensor], variances: list[Tensor], weights: list[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, var) of all, (C,) each; K models."""
    dtype = wide_dtype(like.device)
    count = torch.tensor(weights, dtype=torch.float64).mul(len(weights) / math.fsum(weights))  # their mean is 1
    column = count.to(device=like.device, dtype=dtype).unsqueeze(1)  # (K, 1)
    mean, var = (torch.stack([part.to(like.device, dtype) for part in parts]) for parts in (means, variances))
    both = Moments.of_stats(column, mean, var).merge_along(0)
    return both.mean, both.var(correction=0)


def _states(models: Sequence[nn.Module | State]) -> list[State]:
    if isinstance(models, (nn.Module, Mapping, str)):
        raise TypeError(f"expected a list of models or state dicts, got one {type(models).__name__}")
    found: list[State] = []
    for index, model in enumerate(models):
        if not isinstance(model, (nn.Module, Mapping)):
            raise TypeError(f"models[{index}] must be a model or a state dict, got {type(model).__name__}")
        found.append(model.state_dict() if isinstance(model, nn.Module) else model)
    if not found:
        raise ValueError("expected at least one model or state dict, got none")
    return found


def _weights(weights: Sequence[float] | Tensor | None, models: int) -> list[float]:
    if weights is None:
        return [1.0] * models
    found = [float(weight) for weight in (weights.tolist() if isinstance(weights, Tensor) else weights)]
    if len(found) != models:
        raise ValueError(f"weights must be one number for each model, got {len(found)} for {models} models")
    if not all(math.isfinite(weight) and weight >= 0 for weight in found) or sum(found) <= 0:
        raise ValueError(f"weights must be finite, at least 0 and not all 0, got {found}")
    return found


def statistics_of(state: State) -> dict[str, Tensor]:
    """The entries of the layers that keep one mean and variance a channel."""
    layers = [key.removesuffix(_MEAN) for key in state if key == _MEAN or key.endswith("." + _MEAN)]
    kept = {layer for layer in layers if layer + _VAR in state and _per_channel(state, layer)}
    return {
        key: value
        for key, value in state.items()
        for layer, name in [(key[: key.rfind(".") + 1], key.rpartition(".")[2])]
        if name in (_MEAN, _VAR, _COUNTER) and layer in kept and isinstance(value, Tensor)
    }


def _per_channel(state: State, layer: str) -> bool:
    mean, var = state[layer + _MEAN], state[layer + _VAR]
    return is_lazy(mean) or (mean.dim() == 1 and mean.shape == var.shape and mean.is_floating_point())


def _check_same(first: dict[str, Tensor], other: dict[str, Tensor], index: int) -> None:
    if not first:
        raise ValueError(f"models[{index}] keeps no running statistics (one mean and one variance a channel): no merge")
    for what, keys in (("lacks", first.keys() - other.keys()), ("has besides", other.keys() - first.keys())):
        if keys:
            shown = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise ValueError(f"models[{index}] {what} {shown}: expected the keys of models[0], of one architecture")
    check_readable(other, f"models[{index}]")
    for key, value in other.items():
        if value.shape != first[key].shape:
            expected, got = tuple(first[key].shape), tuple(value.shape)
            raise ValueError(f"{key} of models[{index}] has shape {got}, expected {expected} as in models[0]")


def check_readable(part: dict[str, Tensor], model: str) -> None:
    """ValueError for a tensor without a shape or without values; `model`: what the error calls its model."""
    for key, value in part.items():
        if is_lazy(value) or value.is_meta:
            why = "is lazy and has no shape yet" if is_lazy(value) else "is on the meta device and has no values"
            raise ValueError(f"{key} of {model} {why}")


def check_finite(part: dict[str, Tensor], model: str) -> None:
    """ValueError for NaN or Inf."""
    for key, value in part.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{key} of {model} holds NaN or Inf: leave that model out, or give it weight 0")
