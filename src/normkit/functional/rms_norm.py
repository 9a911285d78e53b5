"""Root mean square normalization as a function, alone and after an addition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _shapes
from .._activation import NONE, Activation, resolve
from ..kernels import aten, composed_rows, native
from . import _dtypes
from ._autocast import widen
from ._choose import choose, is_eager, is_exporting
from ._fused import Call, Forwarded, Gradients, Needs, Operands, run, run_rows
from ._opaque import Opaque

KERNELS: dict[str, ModuleType] = {"native": native, "aten": aten}

_EPS = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps  # the default, by whether the input is float64


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
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

    Returns:
        The input's shape and dtype, whatever the weight's dtype. Saved for the backward: the input and one number a
        position.

    Differences from torch: accumulation in float64 (the square of 1e30 does not overflow); complex input is refused.

    Raises:
        RuntimeError, NotImplementedError: as torch.nn.functional.rms_norm, with its texts.
        TypeError, ValueError: a mask that is not bool, or that covers a normalized axis.

    Reference: Zhang & Sennrich (2019), Root Mean Square Layer Normalization. https://arxiv.org/abs/1910.07467
    """
    return apply(input, tuple(normalized_shape), weight, eps, activation=resolve(activation), mask=mask)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add, then RMS norm: ``(rms_norm(input + residual), input + residual)``, the step of a decoder block.

    Arguments as :func:`rms_norm`; residual: the input's shape. The sum is returned as the next residual, in the dtype
    of ``input + residual`` and not masked.
    """
    _shapes.verify_residual(residual, input)
    total = input + residual
    return rms_norm(total, normalized_shape, weight, eps, activation=activation, mask=mask), total


def apply(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None,
    eps: float | None,
    *,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """What :func:`rms_norm` and the layer share."""
    if eps is None:
        eps = _EPS[input.dtype == torch.float64]
    if mask is None and len(normalized_shape) == 1 and is_eager():
        width = normalized_shape[0]
        if native.rows_ready(input, width, weight, None):  # the common call: one look at all tensors
            call = RMSNormCall(native, NONE, normalized_shape, eps)
            return activation(run_rows(call, width, True, eps, input, weight, None))
    _shapes.verify_normalized_shape(input, normalized_shape, "[*{}]", weight=weight)
    _dtypes.verify("rms_norm", input)
    input = widen("rms_norm", input)
    if mask is not None:
        mask = _shapes.leading_mask(mask, input, len(normalized_shape))
    path, _ = choose("rms_norm", input, activation, mask, (weight,))
    # the tracing ONNX exporter does not know PyTorch's rms_norm, the newer one does
    if path == "composed" or (is_exporting() and torch._C._get_tracing_state() is not None):
        return composed_rows.rms_norm(input, len(normalized_shape), weight, eps, activation=activation, mask=mask)
    if path == "aten" and is_exporting():
        return activation(F.rms_norm(input, normalized_shape, weight, eps))
    return activation(run(RMSNormCall(KERNELS[path], NONE, normalized_shape, eps), input, weight, None, None))


@dataclass(slots=True, eq=False)
class RMSNormCall(Call):
    """One RMS norm on a fused kernel; an activation is an operation of its own."""

    normalized_shape: tuple[int, ...]
    eps: float

    @property
    def size(self) -> int:
        """D: how many values a position has."""
        return _shapes.product(self.normalized_shape)

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (3, rows) float64: 0, mean of squares, rstd; no bits)."""
        output, stats = self.kernel.rms_norm_forward(of.input, self.size, of.weight, self.eps)
        if not of.input.is_contiguous():
            output = torch.empty_like(of.input).copy_(output)  # keeps channels_last, as PyTorch's operations do
        return output, stats, None

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (*, D) and weight of normalized_shape."""
        dx, dweight = self.kernel.rms_norm_backward(dy, of.input, self.size, of.weight, stats, needs=needs[:2])[:2]
        return dx, dweight, None, None

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        return composed_rows.rms_norm(of.input, len(self.normalized_shape), of.weight, self.eps, activation=activation)

    def compiled(self, of: Operands) -> Tensor:
        """The same as one opaque operator of torch.compile."""
        return OPAQUE(self.size, self.eps, self.activation, *of)[0]


OPAQUE = Opaque(
    "rms_norm",
    lambda size, eps, activation: RMSNormCall(native, NONE, (size,), eps),
    lambda input, size: input.numel() // size,
)
