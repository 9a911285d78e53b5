"""Batch norm's backward by Triton's kernels: what is launched on which tensors. sizes: as in the forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._activation import Activation
from ..._operands import Gradients, Needs, Operands, Saved
from ..._torch import wrap_triton
from . import _batch_norm_backward, _group_norm_backward
from ._group_tile_plan import parameter_constants
from ._launch import (
    beside,
    compiled_for,
    dense,
    empty_gradients,
    has_memory,
    is_traced,
    on_device,
    positions,
    vector,
    with_residual,
)  # fmt: skip
from ._tile_plan import TilePlan, plan_tiles

_sums, _merge_sums = _batch_norm_backward.sums, _batch_norm_backward.merge
_gradients, _whole_backward = _batch_norm_backward.gradients, _batch_norm_backward.whole
_parameters = _group_norm_backward.parameters


class _Call(NamedTuple):
    """What every launch of one backward takes."""

    x: Tensor
    plan: TilePlan
    given: tuple[Tensor, ...]
    flags: dict[str, Any]


def backward(  # the call, and what a norm adds to it
    dy: Tensor, operands: Operands, saved: Saved, activation: Activation, needs: Needs, training: bool,
    sizes: Sequence[int],
) -> Gradients:  # fmt: skip
    """The first derivative; the residual's is dy itself behind no activation."""
    found = run_backward(dy, operands, saved, activation.code, activation.param, needs, training, sizes)
    return with_residual(found, dy, operands, activation.code, needs)


def run_backward(
    dy: Tensor, operands: Operands, saved: Saved, code: int, param: float, needs: Needs, training: bool = True,
    sizes: Sequence[int] = (),
) -> Gradients:  # fmt: skip
    """The gradients that are wanted; without the residual's where there is neither activation nor mask."""
    x = dense(operands.input)
    found = empty_gradients(operands, x, code, needs)
    dx, dweight, dbias, dresidual = found
    if not x.numel() or not has_memory():
        return found
    call = _call(dy, operands, saved, code, x, sizes)
    plan, of_parameters = call.plan, dweight is not None or dbias is not None
    to_vectors = (x if dweight is None else dweight, x if dbias is None else dbias)
    wanted = {"WANTS_WEIGHT": dweight is not None, "WANTS_BIAS": dbias is not None}
    with on_device(x):
        totals = x.new_empty((2, plan.sets), dtype=torch.float32) if sizes or not plan.whole else x
        of_sets = (totals, x) if sizes else to_vectors
        if plan.whole:
            whole = wrap_triton(_whole_backward) if is_traced() else _whole_backward
            whole[plan.grid](
                *call.given, x if dx is None else dx, x if dresidual is None else dresidual, *of_sets, *plan.sizes,
                param, **plan.constants, **call.flags, **wanted, WANTS_INPUT=dx is not None,
                WANTS_RESIDUAL=dresidual is not None, TRAINING=training, num_warps=plan.warps,
            )  # fmt: skip
        else:
            if of_parameters or (training and dx is not None):
                _find_totals(call, param, totals, of_sets, dict.fromkeys(wanted, False) if sizes else wanted)
            _launch_gradients(call, param, totals, found, TRAINING=training, SHARED=False)
        if sizes and of_parameters:
            constants = parameter_constants(len(sizes))
            parameters = wrap_triton(_parameters) if is_traced() else _parameters
            parameters[(-(-plan.c // constants["BC"]),)](
                totals, *to_vectors, len(sizes), plan.c, **constants, HAS_LOST=False, **wanted, num_warps=4
            )
    return found


def sums(dy: Tensor, operands: Operands, saved: Saved, activation: Activation) -> Tensor:
    """The sums of g and of g * xhat over the batch, float32 (2, C): the gradients of bias and weight."""
    return run_sums(dy, operands, saved, activation.code, activation.param)


def run_sums(dy: Tensor, operands: Operands, saved: Saved, code: int, param: float) -> Tensor:
    """The same, by an activation's code."""
    x = dense(operands.input)
    if not x.numel():
        return x.new_zeros((2, x.shape[1]), dtype=torch.float32)
    found = x.new_empty((2, x.shape[1]), dtype=torch.float32)
    if has_memory():
        call = _call(dy, operands, saved, code, x, ())
        with on_device(x):
            _find_totals(call, param, found, (x, x), {"WANTS_WEIGHT": False, "WANTS_BIAS": False})
    return found


def by_shares(  # the call, and what is known beside it
    dy: Tensor, operands: Operands, saved: Saved, shares: Tensor, activation: Activation, needs: Needs
) -> Gradients:  # fmt: skip
    """dx = rstd * weight * g - shares[0] - xhat * shares[1], and the residual's gradient. shares: float32 (2, C)."""
    found = run_by_shares(dy, operands, saved, shares, activation.code, activation.param, needs)
    return with_residual(found, dy, operands, activation.code, needs)


def run_by_shares(
    dy: Tensor, operands: Operands, saved: Saved, shares: Tensor, code: int, param: float, needs: Needs
) -> Gradients:
    """The same; without the residual's gradient where there is neither activation nor mask."""
    x = dense(operands.input)
    found = empty_gradients(operands, x, code, needs._replace(weight=False, bias=False))
    if x.numel() and has_memory():
        call = _call(dy, operands, saved, code, x, ())
        with on_device(x):
            _launch_gradients(call, param, shares.contiguous(), found, TRAINING=True, SHARED=True)
    return found


def _call(  # what the launches of one backward share
    dy: Tensor, operands: Operands, saved: Saved, code: int, x: Tensor, sizes: Sequence[int]
) -> _Call:  # fmt: skip
    bits, stats = saved.bits, saved.stats.contiguous()
    given = (
        x, beside(dy, x), beside(operands.residual, x), positions(operands.mask, x),
        x if bits is None else bits.contiguous(), vector(operands.weight, x), vector(operands.bias, x), stats,
    )  # fmt: skip
    return _Call(x, plan_tiles(x, sizes), given, compiled_for(operands, code) | {"HAS_BITS": bits is not None})


def _find_totals(
    call: _Call, param: float, totals: Tensor, to_vectors: tuple[Tensor, Tensor], wanted: dict[str, bool]
) -> None:
    x, plan, given, flags = call
    parts = x.new_empty((4, plan.parts, plan.sets), dtype=torch.float32)
    kernel = wrap_triton(_sums) if is_traced() else _sums
    kernel[plan.grid](*given, parts, *plan.sizes, plan.each, param, **plan.constants, **flags, num_warps=plan.warps)
    merge = wrap_triton(_merge_sums) if is_traced() else _merge_sums
    merge[plan.merge_grid](
        parts, totals, *to_vectors, plan.sets, plan.parts, **plan.merge_constants, **wanted, num_warps=4
    )  # fmt: skip


def _launch_gradients(call: _Call, param: float, totals: Tensor, found: Gradients, **kinds: bool) -> None:
    """dx and the residual's gradient, where they are wanted."""
    x, plan, given, flags = call
    dx, dresidual = found.input, found.residual
    if dx is None and dresidual is None:
        return
    gradients = wrap_triton(_gradients) if is_traced() else _gradients
    gradients[plan.grid](
        *given, totals, x if dx is None else dx, x if dresidual is None else dresidual, *plan.sizes, plan.each, param,
        **plan.constants, **flags, **kinds, WANTS_INPUT=dx is not None, WANTS_RESIDUAL=dresidual is not None,
        num_warps=plan.warps,
    )  # fmt: skip
