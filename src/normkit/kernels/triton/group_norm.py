"""Group norm by Triton's kernels: what is launched on which tensors. Instance norm has C groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._activation import Activation
from ..._operands import Gradients, Needs, Operands, Saved
from ..._torch import wrap_triton
from . import _group_norm_backward, _group_norm_forward
from ._group_tile_plan import plan_group_tiles
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

_whole, _partial = _group_norm_forward.whole, _group_norm_forward.partial
_merge, _apply = _group_norm_forward.merge, _group_norm_forward.apply
_whole_backward, _sums = _group_norm_backward.whole, _group_norm_backward.sums
_merge_sums, _gradients = _group_norm_backward.merge, _group_norm_backward.gradients
_parameters = _group_norm_backward.parameters


def forward(
    operands: Operands, num_groups: int, activation: Activation, eps: float, save: bool
) -> tuple[Tensor, Saved | None]:
    """activation(group_norm(input) + residual); stats (5, N * G). The residual is kept, not its bits."""
    y, stats = run_forward(operands, num_groups, eps, activation.code, activation.param)
    return y, Saved(stats) if save else None


def run_forward(operands: Operands, num_groups: int, eps: float, code: int, param: float) -> tuple[Tensor, Tensor]:
    """(y, stats)."""
    input, weight, bias, residual, mask, *_ = operands
    x = dense(input)
    y, stats = torch.empty_like(x), x.new_empty((5, x.shape[0] * num_groups), dtype=torch.float32)
    if not x.numel():
        stats.zero_()[2].fill_(float("inf") if eps <= 0 else eps**-0.5)
        return y, stats
    if not has_memory():
        return y, stats
    plan = plan_group_tiles(x, num_groups)
    hidden = positions(mask, x)
    given = (x, beside(residual, x), hidden, vector(weight, x), vector(bias, x), stats, y)
    flags = compiled_for(operands, code)
    with on_device(x):
        if plan.whole:
            whole = wrap_triton(_whole) if is_traced() else _whole
            whole[plan.grid](
                *given, *plan.sizes, *plan.group_sizes, eps, param, **plan.constants, **flags, num_warps=plan.warps
            )
            return y, stats
        parts = x.new_empty((4, plan.parts, plan.n, plan.c), dtype=torch.float32)
        partial = wrap_triton(_partial) if is_traced() else _partial
        partial[plan.grid](
            x, hidden, parts, *plan.sizes, **plan.constants, MASKED=mask is not None, num_warps=plan.warps
        )
        merge = wrap_triton(_merge) if is_traced() else _merge
        merge[(plan.n * plan.g,)](
            parts, stats, plan.n, plan.c, *plan.group_sizes, plan.parts, eps, **plan.merge_constants, num_warps=4
        )
        apply = wrap_triton(_apply) if is_traced() else _apply
        apply[plan.grid](*given, *plan.sizes, *plan.group_sizes, param, **plan.constants, **flags, num_warps=plan.warps)
    return y, stats


def backward(
    dy: Tensor, operands: Operands, saved: Saved, num_groups: int, activation: Activation, needs: Needs
) -> Gradients:
    """The first derivative; the residual's is dy itself behind no activation."""
    found = run_backward(dy, operands, saved.stats, num_groups, activation.code, activation.param, needs)
    return with_residual(found, dy, operands, activation.code, needs)


def run_backward(
    dy: Tensor, operands: Operands, stats: Tensor, num_groups: int, code: int, param: float, needs: Needs
) -> Gradients:
    """The gradients that are wanted; without the residual's where there is neither activation nor mask."""
    input, weight, bias, residual, mask, *_ = operands
    x = dense(input)
    gradients = empty_gradients(operands, x, code, needs)
    dx, dweight, dbias, dresidual = gradients
    if not x.numel() or not has_memory():
        return gradients
    plan = plan_group_tiles(x, num_groups)
    given = (
        x, beside(dy, x), beside(residual, x), positions(mask, x), vector(weight, x), vector(bias, x),
        stats.contiguous(),
    )  # fmt: skip
    flags = compiled_for(operands, code)
    wants = {"WANTS_INPUT": dx is not None, "WANTS_RESIDUAL": dresidual is not None}
    of_parameters = dweight is not None or dbias is not None
    out = (x if dx is None else dx, x if dresidual is None else dresidual)
    found = x.new_empty((2 if plan.whole else 4, plan.parts, plan.n, plan.c), dtype=torch.float32)
    with on_device(x):
        if plan.whole:
            whole = wrap_triton(_whole_backward) if is_traced() else _whole_backward
            whole[plan.grid](
                *given, found, *out, *plan.sizes, *plan.group_sizes, param, **plan.constants, **flags, **wants,
                WANTS_PARAMETERS=of_parameters, num_warps=plan.warps,
            )  # fmt: skip
        else:
            if of_parameters or dx is not None:
                sums = wrap_triton(_sums) if is_traced() else _sums
                sums[plan.grid](
                    *given, found, *plan.sizes, *plan.group_sizes, param, **plan.constants, **flags,
                    num_warps=plan.warps,
                )  # fmt: skip
            totals = x.new_empty((2, plan.n * plan.g), dtype=torch.float32)
            if dx is not None:
                merge = wrap_triton(_merge_sums) if is_traced() else _merge_sums
                merge[(plan.n * plan.g,)](
                    found, vector(weight, x), totals, plan.n, plan.c, *plan.group_sizes, plan.parts,
                    **plan.merge_constants, HAS_WEIGHT=weight is not None, num_warps=4,
                )  # fmt: skip
            if dx is not None or dresidual is not None:
                apply = wrap_triton(_gradients) if is_traced() else _gradients
                apply[plan.grid](
                    *given, totals, *out, *plan.sizes, *plan.group_sizes, param, **plan.constants, **flags, **wants,
                    num_warps=plan.warps,
                )  # fmt: skip
        if of_parameters:
            parameters = wrap_triton(_parameters) if is_traced() else _parameters
            parameters[(-(-plan.c // plan.parameter_constants["BC"]),)](
                found, x if dweight is None else dweight, x if dbias is None else dbias, plan.parts * plan.n, plan.c,
                **plan.parameter_constants, HAS_LOST=not plan.whole, WANTS_WEIGHT=dweight is not None,
                WANTS_BIAS=dbias is not None, num_warps=4,
            )  # fmt: skip
    return gradients
