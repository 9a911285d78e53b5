"""Root mean square normalization as a function, alone and after an addition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _operands, _shapes
from .._activation import NONE, Activation, resolve
from .._fx import traceable
from .._operands import Gradients, Maybe, Modulate, Needs, Operands, Saved
from .._torch import traces_for_onnx
from ..kernels import composed
from . import _dtypes
from ._autocast import widen
from ._autograd import RMS, apply_in_core
from ._operator import native_operator
from .add_norm import AddedOperator, run_added
from .road import run
from .row_blocks import RowNormSpec
from .spec import NormSpec

_EPS = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps  # the default, by whether the input is float64


@traceable
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> Tensor:
    r"""RMS normalization: each position is divided by the root mean square of its last axes; no mean, no bias.

    .. math:: y = \mathrm{activation}\Big(\frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}} \cdot \mathrm{weight}\Big)

    Args:
        input: (*, *normalized_shape), real floating point. Training and evaluation are the same.
        normalized_shape: the sizes of the last axes, over which the mean of squares runs.
        weight: normalized_shape, or None (1).
        eps: added to the mean square, inside the square root; None: the machine epsilon of float32 (float64 for
            float64), as torch.
        activation: None, a name in torch.nn.functional, or a module.
        mask: bool, the leading shape (all axes but the normalized ones) or that with an axis of size 1 for each
            normalized one; True = a real position. Outputs elsewhere are zero.
        modulate: (scale, shift): scale * norm(x) + shift, after the weight and before the activation; each a
            floating-point tensor (N, *normalized_shape), or of the input's rank that broadcasts to it, or None.
            docs/modulate.md.

    Returns:
        The input's shape and dtype, whatever the weight's dtype. Saved for the backward: the input and one number a
        position.

    Differences from torch: accumulation in float64 (the square of 1e30 does not overflow); a complex or nested input is
    computed by torch itself.

    Raises:
        RuntimeError, NotImplementedError: as torch.nn.functional.rms_norm, with its texts.
        TypeError, ValueError: a mask that is not bool, or that covers a normalized axis.

    Reference: Zhang & Sennrich (2019), Root Mean Square Layer Normalization. https://arxiv.org/abs/1910.07467
    """
    norm = RMSNormSpec(resolve(activation), tuple(normalized_shape), eps)
    return run(norm, input, weight, mask=mask, modulate=modulate)


@traceable
def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> tuple[Tensor, Tensor]:
    """Add, then RMS norm: ``(rms_norm(input + residual), input + residual)``, the step of a decoder block.

    Arguments as :func:`rms_norm`; residual: the input's shape. The sum is returned as the next residual, in the dtype
    of ``input + residual``, to which it is rounded before it is normalized, and not masked. In the native core one pass
    over memory forward and one backward; to the bit what the addition and the norm give one after the other.
    """
    norm = RMSNormSpec(resolve(activation), tuple(normalized_shape), eps)
    return run_added(norm, input, residual, weight, mask=mask, modulate=modulate)


@dataclass(slots=True, eq=False)
class RMSNormSpec(RowNormSpec):
    """One RMS norm; an activation is an operation of its own, and there is neither bias nor residual.

    eps: None stands for the machine epsilon of float32, of float64 for a float64 input.
    """

    normalized_shape: tuple[int, ...]
    eps: float | None

    name: ClassVar[str] = "rms_norm"
    rows: ClassVar[int] = RMS

    def eps_of(self, input: Tensor) -> float:
        """eps, or its default for this input."""
        if self.eps is not None:
            return self.eps
        return _EPS[1] if input.dtype == torch.float64 else _EPS[0]

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """By rows; the activation follows."""
        if len(self.normalized_shape) != 1:
            return None
        width, eps = self.normalized_shape[0], self.eps_of(input)
        y = apply_in_core(input, weight, None, None, self, None, RMS, width, True, eps, NONE.code, 0.0)
        return y if y is None else self.activation.function(y)

    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The operands, checked; under autocast in float32 where PyTorch's RMS norm is; mask: the leading shape."""
        input, weight, mask = operands.input, operands.weight, operands.mask
        shape = self.normalized_shape
        _shapes.verify_normalized_shape(input, shape, F.rms_norm, weight=weight)
        if not input.is_complex():
            _dtypes.verify("rms_norm", input)
        mask = None if mask is None else _shapes.leading_mask(mask, input, len(shape))
        _shapes.verify_number("rms_norm", "eps", self.eps_of(input))
        norm = RMSNormSpec(self.activation, shape, self.eps_of(input))  # before autocast widens the input
        return norm, _operands.verified(operands, widen("rms_norm", input), operands.residual, mask)

    def why_not_exported(self) -> str | None:
        """The tracing ONNX exporter does not know PyTorch's RMS norm, the newer one does."""
        return "the tracing ONNX exporter does not know PyTorch's RMS norm" if traces_for_onnx() else None

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (3, rows): 0, mean of squares, rstd."""
        output, saved = kernel.rms_norm_forward(operands, self.size, self.eps_of(operands.input), save=save)
        if not operands.input.is_contiguous():
            output = torch.empty_like(operands.input).copy_(output)  # keeps channels_last, as PyTorch's operations do
        return output, saved

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (*, D) and weight of normalized_shape."""
        return kernel.rms_norm_backward(dy, operands, saved, self.size, needs)

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations."""
        activation = self.activation if stats is None else NONE  # kernels leave it to an operation of its own
        return composed.rms_norm(operands, len(self.normalized_shape), activation, self.eps_of(operands.input))

    def exported(self, operands: Operands) -> Tensor:
        """By torch.nn.functional.rms_norm."""
        input, weight, *_ = operands
        y = F.rms_norm(input, self.normalized_shape, weight, self.eps_of(input))
        return composed.add_and_activate(y, operands, self.activation)

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """By one opaque operator."""
        # not self.size: the Dynamo of torch 2.4 has no properties of objects that it saw made
        return OPERATOR(math.prod(self.normalized_shape), self.eps_of(operands.input), activation, operands)[0]

    def added_operator(self, operands: Operands) -> tuple[Tensor, Tensor]:
        """The norm of input + residual, and the sum, by one opaque operator."""
        return ADDED(math.prod(self.normalized_shape), self.eps_of(operands.input), operands)


OPERATOR = native_operator(
    "rms_norm",
    lambda size, eps, activation: RMSNormSpec(NONE, (size,), eps),
    lambda input, size: input.numel() // size,
)

ADDED = AddedOperator("add_rms_norm", rms=True)
