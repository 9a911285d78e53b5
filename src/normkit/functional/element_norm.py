"""A modulation of one number per element, z = scale * norm(x) + shift, in the passes over memory that the norm makes.

Forward: each set of values that has statistics is summed, and z written from cache. Backward: dy = dz * scale is made
where it is used; dx and dscale come from one pass, dshift is dz. Batch norm in training: the statistics first, then as
by given ones; in the backward what all values of a channel want of its mean and variance follows, as in
`plane_batch_norm.py`. A residual and an activation are operations of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import _shapes
from .._activation import NONE
from .._operands import Maybe, Operands, in_dtype_of
from .._shapes import is_channels_last
from ..kernels import composed, native
from ..kernels.native_means import in_float32
from . import _storage
from ._autograd import BATCH, LAYER, RMS, differentiated, takes_operations, unpacked_statistics
from .spec import Elements, NormSpec


def served(norm: NormSpec, operands: Operands) -> Tensor:
    """The output; asked for where `why_not_elements` has no reason."""
    input, weight, bias, residual, _, scale, shift = operands
    bare = replace(norm, activation=NONE)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias, scale, shift)):
        z = _apply(input, weight, bias, scale, shift, bare)
    else:
        z, _ = _forward(bare, Operands(input, weight, bias, None, None, scale, shift), save=False)
    return composed.add_and_activate(z, Operands(input, residual=residual), norm.activation)


class Modulated(torch.autograd.Function):
    """The two halves. Saved: input, weight, bias, scale, and the statistics as bytes (`_autograd.py` says why)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        input, weight, bias, scale, shift, norm = arguments
        z, stats = _forward(norm, Operands(input, weight, bias, None, None, scale, shift), save=True)
        assert stats is not None
        ctx.save_for_backward(input, weight, bias, scale, stats.view(torch.uint8))
        ctx.norm = norm
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        norm, (dz,), needs = ctx.norm, gradients, ctx.needs_input_grad
        input, weight, bias, scale, stats = saved = ctx.saved_tensors  # once: a checkpoint unpacks them once
        _storage.verify((*saved, dz if native.plain_gradient(dz) else None))
        stats = unpacked_statistics(stats, native.STATISTICS)
        input, scale = input.to(dz.dtype), scale.to(dz.dtype)
        operands = Operands(input, weight, bias, None, None, scale)
        dshift = dz if needs[4] else None
        if not takes_operations(dz):
            return (*_backward(norm, dz, operands, stats, needs[:4]), dshift, None)
        if dz.layout is not torch.strided:  # sparse, which the derivatives of torch's casts and broadcasts refuse
            dz = dz.to_dense()
        if _facts(norm, input).kind == BATCH:
            stats = stats[:, : input.shape[1]]  # a channel's are those of each of its planes
        dx, dweight, dbias, _, _, dscale = differentiated(
            norm, dz, operands, stats, (*needs[:3], False, False, needs[3])
        )
        return dx, dweight, dbias, dscale, dshift, None


_apply = super(torch.autograd.Function, Modulated).apply


def _facts(norm: NormSpec, input: Tensor) -> Elements:
    facts = norm.elements(input)
    assert facts is not None
    return facts


def _forward(norm: NormSpec, operands: Operands, *, save: bool) -> tuple[Tensor, Maybe]:
    kind, size, eps, _ = _facts(norm, operands.input)
    given = norm.element_statistics(operands.input) if kind == BATCH else None
    z, stats = native.element_forward(operands, given, kind, size, eps, save=save)
    input = operands.input
    if not input.is_contiguous() and (kind == RMS or (kind < LAYER and is_channels_last(input))):
        z = torch.empty_like(input).copy_(z)  # as the norm alone leaves it; layer norm's output is row-major
    return z, stats


def _backward(
    norm: NormSpec, dz: Tensor, operands: Operands, stats: Tensor, needs: tuple[bool, ...]
) -> tuple[Maybe, ...]:
    kind, size, eps, constant = _facts(norm, operands.input)
    if kind == BATCH and not constant and needs[0]:
        return in_float32(lambda dz, operands: _batch_backward(dz, operands, stats, eps, needs), dz, operands)
    return native.element_backward(dz, operands, stats, kind, size, needs, training=kind != BATCH)


def _batch_backward(
    dz: Tensor, operands: Operands, stats: Tensor, eps: float, needs: tuple[bool, ...]
) -> tuple[Maybe, ...]:
    """dx as if the statistics were constants, then what they add to it: one more batch norm of x."""
    input, weight, bias, _, _, scale, _ = operands
    c, kind = input.shape[1], torch.float64  # so are the sums then
    mean, var, _ = (row[:c] for row in stats)
    wide = torch.ones(c, dtype=kind) if weight is None else weight.to(kind)
    moved = torch.zeros(c, dtype=kind) if bias is None else bias.to(kind)
    constant = Operands(input, wide, moved, None, None, scale)
    asked = (True, True, True, needs[3])
    dx, dweight, dbias, dscale = native.element_backward(dz, constant, stats, BATCH, 0, asked, training=False)
    assert dweight is not None
    assert dbias is not None
    assert dx is not None
    share = -wide / _shapes.values_per_channel(input.shape)
    dx = native.add_means(dx, input, share * dweight, share * dbias, mean, var, eps)
    return (
        dx,
        in_dtype_of(weight, dweight, needs[1]),
        in_dtype_of(bias, dbias, needs[2]),
        dscale,
    )
