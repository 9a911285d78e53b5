"""Batch norm by Triton's kernels: what is launched on which tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from ..._activation import Activation
from ..._operands import Gradients, Maybe, Needs, Operands, Saved
from ..._torch import increment_versions
from ..native import count_bit_bytes, keeps_bits
from . import _batch_norm_backward, _batch_norm_forward, _running
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
from ._plan import Plan, plan

_partial, _merge, _apply = _batch_norm_forward.partial, _batch_norm_forward.merge, _batch_norm_forward.apply
_whole, _move = _batch_norm_forward.whole, _running.move
_sums, _merge_sums = _batch_norm_backward.sums, _batch_norm_backward.merge
_gradients, _whole_backward = _batch_norm_backward.gradients, _batch_norm_backward.whole


def forward(
    operands: Operands, activation: Activation, eps: float, save: bool, running: Any
) -> tuple[Tensor, Saved]:  # fmt: skip
    """By the batch's statistics; running: as :func:`normkit.kernels.triton.batch_norm_forward` has it."""
    y, stats, bits = run_forward(operands, eps, activation.code, activation.param, save, running)
    return y, Saved(stats, bits)


def run_forward(
    operands: Operands, eps: float, code: int, param: float, save: bool, running: Any = None
) -> tuple[Tensor, Tensor, Maybe]:
    """(y, stats (5, C), bits or None)."""
    input, weight, bias, residual, mask, *_ = operands
    x = dense(input)
    y, stats = torch.empty_like(x), x.new_empty((5, x.shape[1]), dtype=torch.float32)
    bits = _new_bits(x, residual, code, save)
    if not x.numel():
        return y, _without_values(stats, eps), bits
    if not has_memory():
        return y, stats, bits
    cut = plan(x)
    hidden = positions(mask, x)
    given = (x, beside(residual, x), hidden, vector(weight, x), vector(bias, x))
    flags = compiled_for(operands, code) | {"KEEPS_BITS": bits is not None}
    out = (y, x if bits is None else bits)
    mean, var, batches, momentum = (x, x, None, 0.0) if running is None else running
    moved = (mean, var, x if batches is None else batches, 0.0 if momentum is None else float(momentum))
    counting = {"COUNTS": batches is not None, "CUMULATIVE": momentum is None}
    with on_device(x):
        if cut.whole:
            whole = wrap_triton(_whole) if is_traced() else _whole
            whole[cut.grid](*given, stats, *out, *cut.sizes, eps, param, **cut.constants, **flags, num_warps=cut.warps)
            if running is not None:
                _move[(1,)](stats, *moved, cut.c, **counting, num_warps=4)
        else:
            _find_statistics(x, hidden, cut, stats, eps, mask is not None)
            apply = wrap_triton(_apply) if is_traced() else _apply
            apply[cut.grid](
                *given, stats, stats, stats, *out, *moved[:3], *cut.sizes, cut.tiles, cut.each, eps, param, *moved[3:],
                **cut.constants, **flags, GIVEN=False, MOVES=running is not None, **counting, num_warps=cut.warps,
            )  # fmt: skip
    if running is not None:  # as torch's own in-place operations do
        increment_versions([t for t in (mean, var, batches) if t is not None and not t.is_inference()])
    return y, stats, bits


def _find_statistics(x: Tensor, hidden: Tensor, cut: Plan, stats: Tensor, eps: float, masked: bool) -> None:
    parts = x.new_empty((4, cut.parts, cut.c), dtype=torch.float32)
    partial = wrap_triton(_partial) if is_traced() else _partial
    partial[cut.grid](
        x, hidden, parts, *cut.sizes, cut.tiles, cut.each, **cut.constants, MASKED=masked, num_warps=cut.warps
    )
    merge = wrap_triton(_merge) if is_traced() else _merge
    merge[cut.merge_grid](parts, stats, cut.c, cut.parts, eps, **cut.merge_constants, num_warps=4)


def inference(
    operands: Operands, mean: Tensor, var: Tensor, activation: Activation, eps: float, save: bool
) -> tuple[Tensor, Saved | None]:
    """By given statistics (C,): one launch."""
    input, weight, bias, residual, mask, *_ = operands
    x, code = dense(input), activation.code
    y, stats = torch.empty_like(x), x.new_empty((5, x.shape[1]), dtype=torch.float32)
    bits = _new_bits(x, residual, code, save)
    if not x.numel():
        wide, nothing = var.float(), torch.zeros_like(mean, dtype=torch.float32)
        given = torch.stack([mean.float(), wide, (wide + eps).rsqrt(), nothing, nothing])
        return y, Saved(given, bits) if save else None
    cut = plan(x)
    with on_device(x):
        _apply[cut.grid](
            x, beside(residual, x), positions(mask, x), vector(weight, x), vector(bias, x), mean.contiguous(),
            var.contiguous(), stats, y, x if bits is None else bits, x, x, x, *cut.sizes, cut.tiles, cut.each, eps,
            activation.param, 0.0, **cut.constants, **compiled_for(operands, code), KEEPS_BITS=bits is not None,
            GIVEN=True, MOVES=False, COUNTS=False, CUMULATIVE=False, num_warps=cut.warps,
        )  # fmt: skip
    return y, Saved(stats, bits) if save else None


def backward(
    dy: Tensor, operands: Operands, saved: Saved, activation: Activation, needs: Needs, training: bool
) -> Gradients:
    """The first derivative; the residual's is dy itself behind no activation."""
    found = run_backward(dy, operands, saved, activation.code, activation.param, needs, training)
    return with_residual(found, dy, operands, activation.code, needs)


def run_backward(
    dy: Tensor, operands: Operands, saved: Saved, code: int, param: float, needs: Needs, training: bool = True
) -> Gradients:
    """The gradients that are wanted; without the residual's where there is neither activation nor mask."""
    input, weight, bias, residual, mask, *_ = operands
    x = dense(input)
    found = empty_gradients(operands, x, code, needs)
    dx, dweight, dbias, dresidual = found
    if not x.numel() or not has_memory():
        return found
    cut = plan(x)
    bits, stats = saved.bits, saved.stats.contiguous()
    given = (
        x, beside(dy, x), beside(residual, x), positions(mask, x), x if bits is None else bits.contiguous(),
        vector(weight, x), vector(bias, x), stats,
    )  # fmt: skip
    flags = compiled_for(operands, code) | {"HAS_BITS": bits is not None}
    wants = {"WANTS_INPUT": dx is not None, "WANTS_RESIDUAL": dresidual is not None, "TRAINING": training}
    of_parameters = {"WANTS_WEIGHT": dweight is not None, "WANTS_BIAS": dbias is not None}
    to_tensors = (x if dx is None else dx, x if dresidual is None else dresidual)
    to_vectors = (x if dweight is None else dweight, x if dbias is None else dbias)
    elementwise = dx is not None or dresidual is not None
    with on_device(x):
        if cut.whole:
            whole = wrap_triton(_whole_backward) if is_traced() else _whole_backward
            whole[cut.grid](
                *given, *to_tensors, *to_vectors, *cut.sizes, param, **cut.constants, **flags, **wants,
                **of_parameters, num_warps=cut.warps,
            )  # fmt: skip
            return found
        totals = x.new_empty((2, cut.c), dtype=torch.float32)
        if any(of_parameters.values()) or (training and dx is not None):
            parts = x.new_empty((4, cut.parts, cut.c), dtype=torch.float32)
            sums = wrap_triton(_sums) if is_traced() else _sums
            sums[cut.grid](
                *given, parts, *cut.sizes, cut.tiles, cut.each, param, **cut.constants, **flags, num_warps=cut.warps
            )
            merge = wrap_triton(_merge_sums) if is_traced() else _merge_sums
            merge[cut.merge_grid](
                parts, totals, *to_vectors, cut.c, cut.parts, **cut.merge_constants, **of_parameters, num_warps=4
            )
        if elementwise:
            apply = wrap_triton(_gradients) if is_traced() else _gradients
            apply[cut.grid](
                *given, totals, *to_tensors, *cut.sizes, cut.tiles, cut.each, param, **cut.constants, **flags, **wants,
                num_warps=cut.warps,
            )  # fmt: skip
    return found


def _new_bits(x: Tensor, residual: Maybe, code: int, save: bool) -> Maybe:
    """Memory for the bits of a piecewise linear activation behind a residual."""
    if not save or residual is None or not keeps_bits(code):
        return None
    return x.new_empty((count_bit_bytes(x),), dtype=torch.uint8)


def _without_values(stats: Tensor, eps: float) -> Tensor:
    """The statistics of no values: mean, variance and count are 0."""
    stats.zero_()[2].fill_(float("inf") if eps <= 0 else eps**-0.5)
    return stats
