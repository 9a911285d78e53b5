"""The one road of a norm's call: from the layer or function to a kernel.

    inside of `normkit.lengths`  ->  the mask that fits the input, then the same road
    plain eager call    ->  norm.in_core: one call of the native core, if it takes the tensors as they are
    else    norm.verified   torch's errors, operands made ready; modulate.lay: scale and shift beside the input
            choose          (path, reason)
            composed -> norm.composed | exported -> norm.exported | native, aten, triton -> the kernel under autograd

What a kernel does not fuse follows as operations of its own. A modulation that is the same at all of a
sample's positions, or in all of its rows, is the weight and bias of a kernel (`planes.py`, `row_blocks.py`); one per
element has kernels of its own (`element_norm.py`).
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from .._activation import NONE, Activation
from .._operands import Modulate, Operands, is_modulated
from .._torch import reshaped_as_no_view
from ..kernels import aten, composed, native, triton
from . import _autograd, _layout, _storage
from . import mask as masks
from .choose import choose, is_eager
from .modulate import lay, pair
from .spec import NormSpec

_KERNELS: dict[str, ModuleType] = {"native": native, "aten": aten, "triton": triton}


def run(
    norm: NormSpec,
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> Tensor:
    """The norm's output: ``activation(scale * norm(input) + shift + residual)``, zero under the mask.

    Raises:
        ValueError, RuntimeError, TypeError, NotImplementedError: what the norm's function documents.
    """
    if masks.follow is not None and not torch.compiler.is_compiling():
        y = masks.follow(norm, Operands(input, weight, bias, residual, mask, *pair(modulate)))
        if y is not None:
            return y
    if mask is None and _autograd.output_listener is None and is_eager():
        if modulate is None:
            y = norm.in_core(input, weight, bias, residual)
        elif input.is_nested or input.layout is not torch.strided:
            y = None
        else:
            y = norm.modulated_in_core(input, weight, bias, residual, modulate)
        if y is not None:
            return y
    operands = Operands(input, weight, bias, residual, mask, *pair(modulate))
    if input.is_nested:
        from . import jagged

        if jagged.serves(norm, operands):
            lay(operands)  # which says that there is no modulation of a nested input
            return jagged.rebuilt(run(norm, jagged.values(input), weight, bias, residual, mask), input)
    _layout.verify(norm, operands)
    _storage.verify((*operands, *norm.buffers()))  # first: what comes next may cast
    norm, operands = norm.verified(operands)
    modulated = is_modulated(operands)
    if modulated:
        operands = lay(operands, norm.normalized_axes())
    path, _ = choose(norm, operands)
    if path == "composed":
        return norm.composed(operands)
    if path == "exported":
        return norm.exported(operands)
    kernel = _KERNELS[path]
    if modulated and path == "native" and norm.why_not_affine(operands) is None:
        norm, operands = norm.as_affine(operands)
        y = _served(norm, kernel, operands)
        return y if y.shape == input.shape else reshaped_as_no_view(y, input.shape)
    if modulated and path == "native" and norm.why_not_elements(operands) is None:
        from . import element_norm  # here: few calls are of this kind, all would load it

        return element_norm.served(norm, operands)
    return _served(norm, kernel, operands)


def _served(norm: NormSpec, kernel: ModuleType, operands: Operands) -> Tensor:
    """By a kernel, and by operations of their own what it does not fuse."""
    if norm.is_fused(kernel, operands):
        return _on_kernel(norm, kernel, operands, norm.activation)
    y = _on_kernel(norm, kernel, composed.bare(operands), NONE)
    return composed.add_and_activate(y, operands, norm.activation)


def _on_kernel(norm: NormSpec, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
    if torch.compiler.is_compiling():
        return norm.operator(kernel, operands, activation)
    if activation is not norm.activation:
        norm = replace(norm, activation=activation)
    return _autograd.apply_kernel(norm, kernel, operands)
