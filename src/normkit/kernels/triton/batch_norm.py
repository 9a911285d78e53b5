"""Batch norm's forward by Triton's kernels: what is launched on which tensors.

sizes: how many samples each slice has, where slices have statistics of their own; sets are slices times channels then.
running: (mean, var, batches or None, momentum or None) to be moved by the kernels; None: nothing moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._activation import Activation
from ..._operands import Maybe, Operands, Saved
from ..._torch import increment_versions, wrap_triton
from ..native import count_bit_bytes, keeps_bits
from . import _batch_norm_forward, _running
from ._launch import beside, compiled_for, dense, has_memory, is_traced, on_device, positions, vector
from ._tile_plan import TilePlan, plan_tiles

_partial, _merge, _apply = _batch_norm_forward.partial, _batch_norm_forward.merge, _batch_norm_forward.apply
_whole, _merge_slices, _move = _batch_norm_forward.whole, _batch_norm_forward.merge_slices, _running.move


def forward(  # the call, and what a norm adds to it
    operands: Operands, activation: Activation, eps: float, save: bool, running: Any, sizes: Sequence[int]
) -> tuple[Tensor, Saved]:  # fmt: skip
    """By the batch's statistics, or each slice's."""
    y, stats, bits = run_forward(operands, eps, activation.code, activation.param, save, running, sizes)
    return y, Saved(stats, bits)


def run_forward(
    operands: Operands, eps: float, code: int, param: float, save: bool, running: Any = None,
    sizes: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Maybe]:  # fmt: skip
    """(y, stats (5, sets), bits or None)."""
    x = dense(operands.input)
    y, stats = torch.empty_like(x), x.new_empty((5, x.shape[1] * max(1, len(sizes))), dtype=torch.float32)
    bits = _new_bits(x, operands.residual, code, save)
    if not x.numel():
        return y, _without_values(stats, eps), bits
    if not has_memory():
        return y, stats, bits
    plan, hidden = plan_tiles(x, sizes), positions(operands.mask, x)
    with on_device(x):
        if plan.whole:
            whole = wrap_triton(_whole) if is_traced() else _whole
            whole[plan.grid](
                x, beside(operands.residual, x), hidden, vector(operands.weight, x), vector(operands.bias, x), stats,
                y, x if bits is None else bits, *plan.sizes, eps, param, **plan.constants,
                **compiled_for(operands, code), KEEPS_BITS=bits is not None, num_warps=plan.warps,
            )  # fmt: skip
        else:
            _find_statistics(x, operands.mask, hidden, plan, stats, eps)
            moved = None if sizes else running
            _launch_apply(x, operands, hidden, plan, stats, y, bits, eps, code, param, running=moved)
        if running is not None and (plan.whole or sizes):
            _launch_move(x, plan, stats, running)
    if running is not None:
        _changed(running)
    return y, stats, bits


def statistics(operands: Operands, eps: float) -> Tensor:
    """stats (5, C) of the batch alone, without an output."""
    x = dense(operands.input)
    stats = x.new_empty((5, x.shape[1]), dtype=torch.float32)
    if not x.numel():
        return _without_values(stats, eps)
    if not has_memory():
        return stats
    with on_device(x):
        _find_statistics(x, operands.mask, positions(operands.mask, x), plan_tiles(x), stats, eps)
    return stats


def by_statistics(  # the call, and what a norm adds to it
    operands: Operands, stats: Tensor, activation: Activation, save: bool, running: Any
) -> tuple[Tensor, Saved | None]:  # fmt: skip
    """By statistics that are given as kernels save them, (5, C)."""
    y, bits = run_by_statistics(operands, stats, activation.code, activation.param, save, running)
    return y, Saved(stats, bits) if save else None


def run_by_statistics(
    operands: Operands, stats: Tensor, code: int, param: float, save: bool, running: Any = None
) -> tuple[Tensor, Maybe]:
    """(y, bits or None)."""
    x, stats = dense(operands.input), stats.contiguous()
    y, bits = torch.empty_like(x), _new_bits(x, operands.residual, code, save)
    if x.numel() and has_memory():
        with on_device(x):
            hidden = positions(operands.mask, x)
            _launch_apply(x, operands, hidden, plan_tiles(x), stats, y, bits, 0.0, code, param, running=running)
        if running is not None:
            _changed(running)
    return y, bits


def inference(
    operands: Operands, mean: Tensor, var: Tensor, activation: Activation, eps: float, save: bool
) -> tuple[Tensor, Saved | None]:
    """By given statistics (C,): one launch."""
    x, after = dense(operands.input), (activation.code, activation.param)
    y, stats = torch.empty_like(x), x.new_empty((5, x.shape[1]), dtype=torch.float32)
    bits = _new_bits(x, operands.residual, activation.code, save)
    if x.numel():
        with on_device(x):
            hidden, given = positions(operands.mask, x), (mean.contiguous(), var.contiguous())
            _launch_apply(x, operands, hidden, plan_tiles(x), stats, y, bits, eps, *after, given=given)
    else:
        wide, nothing = var.float(), torch.zeros_like(mean, dtype=torch.float32)
        stats = torch.stack([mean.float(), wide, (wide + eps).rsqrt(), nothing, nothing])
    return y, Saved(stats, bits) if save else None


def _find_statistics(  # what one launch reads and writes
    x: Tensor, mask: Maybe, hidden: Tensor, plan: TilePlan, stats: Tensor, eps: float
) -> None:  # fmt: skip
    parts = x.new_empty((4, plan.parts, plan.sets), dtype=torch.float32)
    partial = wrap_triton(_partial) if is_traced() else _partial
    partial[plan.grid](
        x, hidden, parts, *plan.sizes, plan.each, **plan.constants, MASKED=mask is not None, num_warps=plan.warps
    )
    merge = wrap_triton(_merge) if is_traced() else _merge
    merge[plan.merge_grid](parts, stats, plan.sets, plan.parts, eps, **plan.merge_constants, num_warps=4)


def _launch_apply(  # what one launch reads and writes
    x: Tensor, operands: Operands, hidden: Tensor, plan: TilePlan, stats: Tensor, y: Tensor, bits: Maybe, eps: float,
    code: int, param: float, *, given: tuple[Tensor, Tensor] | None = None, running: Any = None,
) -> None:  # fmt: skip
    """given: mean and variance; None: `stats` are the statistics."""
    mean, var = (stats, stats) if given is None else given
    new_mean, new_var, batches, momentum = (x, x, None, 0.0) if running is None else running
    apply = wrap_triton(_apply) if is_traced() else _apply
    apply[plan.grid](
        x, beside(operands.residual, x), hidden, vector(operands.weight, x), vector(operands.bias, x), mean, var, stats,
        y, x if bits is None else bits, new_mean, new_var, x if batches is None else batches, *plan.sizes, plan.each,
        eps, param, 0.0 if momentum is None else float(momentum), **plan.constants, **compiled_for(operands, code),
        KEEPS_BITS=bits is not None, GIVEN=given is not None, MOVES=running is not None, COUNTS=batches is not None,
        CUMULATIVE=momentum is None, num_warps=plan.warps,
    )  # fmt: skip


def _launch_move(x: Tensor, plan: TilePlan, stats: Tensor, running: Any) -> None:
    """Move the running statistics, by the slices merged where there are slices."""
    mean, var, batches, momentum = running
    if plan.slices is not None:
        whole, block = x.new_empty((5, plan.c), dtype=torch.float32), 128
        _merge_slices[(-(-plan.c // block),)](stats, whole, plan.c, plan.slices.number, BC=block, num_warps=4)
        stats = whole
    _move[(1,)](
        stats, mean, var, x if batches is None else batches, 0.0 if momentum is None else float(momentum), plan.c,
        COUNTS=batches is not None, CUMULATIVE=momentum is None, num_warps=4,
    )  # fmt: skip


def _changed(running: Any) -> None:
    """Count the buffers' versions, as torch's own in-place operations do."""
    increment_versions([t for t in running[:3] if t is not None and not t.is_inference()])


def _new_bits(x: Tensor, residual: Maybe, code: int, save: bool) -> Maybe:
    """Memory for the bits of a piecewise linear activation behind a residual."""
    if not save or residual is None or not keeps_bits(code):
        return None
    return x.new_empty((count_bit_bytes(x),), dtype=torch.uint8)


def _without_values(stats: Tensor, eps: float) -> Tensor:
    """The statistics of no values: mean, variance and count are 0."""
    stats.zero_()[2].fill_(float("inf") if eps <= 0 else eps**-0.5)
    return stats
