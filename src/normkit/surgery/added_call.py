"""What rewritten forwards call where an addition lies in front of a norm of rows: both in one pass over memory.

Rules: as in `fused_call`: the norm stays a module that computes what it did for whoever calls it otherwise. Where it is
not one of ours by now, where somebody listens to its calls, or for tensors that do not fit, addition and norm run one
after the other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional as f
from .. import nn as layers
from .._fx import is_proxy
from .._torch import hooked, is_watched
from .row_norms import RowForward


def takes_addition(norm: nn.Module) -> bool:
    """Whether the norm has a call after an addition."""
    forward = norm.__dict__.get("forward")
    return forward.row.adds if isinstance(forward, RowForward) else type(norm) in (layers.LayerNorm, layers.RMSNorm)


def added_call(norm: nn.Module, left: Any, right: Any) -> tuple[Any, Any]:
    """(norm(left + right), left + right)."""
    made = None
    if _fits(left, right) and not hooked(norm) and not is_watched():
        made = _in_one(norm, left, right)
    if made is not None:
        return made
    total = left + right
    return norm(total), total


def _fits(left: Any, right: Any) -> bool:
    tensors = isinstance(left, Tensor) and isinstance(right, Tensor)
    return tensors and not is_proxy(left) and left.shape == right.shape and left.dtype == right.dtype


def _in_one(norm: Any, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor] | None:
    forward = norm.__dict__.get("forward")
    if isinstance(forward, RowForward):
        return forward.added(left, right)
    if forward is not None or getattr(norm, "activation", None) is not None:
        return None
    if type(norm) is layers.LayerNorm:
        return f.add_layer_norm(left, right, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    if type(norm) is layers.RMSNorm:
        return f.add_rms_norm(left, right, norm.normalized_shape, norm.weight, norm.eps)
    return None
