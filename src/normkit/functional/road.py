"""The one road of a norm's call: from the layer or function to a kernel.

    inside of `normkit.lengths`  ->  the mask that fits the input, then the same road
    plain eager call    ->  norm.in_core: one call of the native core, if it takes the tensors as they are
    else    norm.verified   torch's errors, operands made ready
            choose          (path, reason)
            composed -> norm.composed | exported -> norm.exported | native, aten -> the kernel under autograd

What a kernel does not fuse follows as operations of its own.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from .._activation import NONE, Activation
from .._operands import Operands
from ..kernels import aten, composed, native
from . import _autograd, _layout, _storage
from . import mask as masks
from .choose import choose, is_eager
from .spec import NormSpec

_KERNELS: dict[str, ModuleType] = {"native": native, "aten": aten}


def run(
    norm: NormSpec,
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The norm's output: ``activation(norm(input) + residual)``, zero under the mask.

    Raises:
        ValueError, RuntimeError, TypeError, NotImplementedError: what the norm's function documents.
    """
    if masks.follow is not None and not torch.compiler.is_compiling():
        y = masks.follow(norm, Operands(input, weight, bias, residual, mask))
        if y is not None:
            return y
    if mask is None and _autograd.output_listener is None and is_eager():
        y = norm.in_core(input, weight, bias, residual)
        if y is not None:
            return y
    operands = Operands(input, weight, bias, residual, mask)
    if input.is_nested:
        from . import jagged

        if jagged.serves(norm, operands):
            return jagged.rebuilt(run(norm, jagged.values(input), *operands[1:]), input)
    _layout.verify(norm, operands)
    _storage.verify((*operands, *norm.buffers()))  # first: what comes next may cast
    norm, operands = norm.verified(operands)
    path, _ = choose(norm, operands)
    if path == "composed":
        return norm.composed(operands)
    if path == "exported":
        return norm.exported(operands)
    kernel = _KERNELS[path]
    if norm.is_fused(kernel, operands):
        return _on_kernel(norm, kernel, operands, norm.activation)
    bare = Operands(operands.input, operands.weight, operands.bias, None, operands.mask)
    y = _on_kernel(norm, kernel, bare, NONE)
    return composed.add_and_activate(y, operands, norm.activation)


def _on_kernel(norm: NormSpec, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
    if torch.compiler.is_compiling():
        return norm.operator(operands, activation)
    if activation is not norm.activation:
        norm = replace(norm, activation=activation)
    return _autograd.apply(norm, kernel, operands)
