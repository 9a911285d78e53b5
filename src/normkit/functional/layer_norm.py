"""Layer normalization as a function, alone, after an addition, and over the channels of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

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


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Layer normalization: each position gets zero mean and unit variance over its last axes.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}} \cdot
              \mathrm{weight} + \mathrm{bias}\Big)

    Args:
        input: (*, *normalized_shape), real floating point. Training and evaluation are the same.
        normalized_shape: the sizes of the last axes, over which mean and the biased variance run.
        weight, bias: normalized_shape, or None (1 and 0).
        eps: added to the variance, inside the square root.
        activation: None, a name in torch.nn.functional, or a module.
        mask: bool, the leading shape (all axes but the normalized ones) or that with an axis of size 1 for each
            normalized one; True = a real position. Outputs elsewhere are zero, and nothing under the mask is read into
            any output or gradient. No statistic changes: they belong to one position.

    Returns:
        The input's shape and dtype. Saved for the backward: the input and two numbers a position.

    Differences from torch: accumulation in float64, so mean >> std costs no digits; derivatives of every order.

    Raises:
        RuntimeError, NotImplementedError: as torch.nn.functional.layer_norm, with its texts.
        TypeError, ValueError: a mask that is not bool, or that covers a normalized axis.

    Reference: Ba, Kiros & Hinton (2016), Layer Normalization. https://arxiv.org/abs/1607.06450
    """
    return apply(input, tuple(normalized_shape), weight, bias, eps, activation=resolve(activation), mask=mask)


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add, then layer norm: ``(layer_norm(input + residual), input + residual)``, the step of a transformer block.

    Arguments as :func:`layer_norm`; residual: the input's shape. The sum is returned as the next residual, in the dtype
    of ``input + residual`` and not masked.
    """
    _shapes.verify_residual(residual, input)
    total = input + residual
    return layer_norm(total, normalized_shape, weight, bias, eps, activation=activation, mask=mask), total


def apply(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """What :func:`layer_norm` and the layer share."""
    if mask is None and len(normalized_shape) == 1 and is_eager():
        width = normalized_shape[0]
        if native.rows_ready(input, width, weight, bias):  # the common call: one look at all tensors
            call = LayerNormCall(native, NONE, normalized_shape, eps)
            return activation(run_rows(call, width, False, eps, input, weight, bias))
    _verify(input, normalized_shape, weight, bias)
    input = widen("layer_norm", input)
    if mask is not None:
        mask = _shapes.leading_mask(mask, input, len(normalized_shape))
    path, _ = choose("layer_norm", input, activation, mask, (weight, bias))
    if path == "composed":
        return composed_rows.layer_norm(
            input, len(normalized_shape), weight, bias, eps, activation=activation, mask=mask
        )
    if path == "aten" and is_exporting():
        return activation(F.layer_norm(input, normalized_shape, weight, bias, eps))
    return activation(run(LayerNormCall(KERNELS[path], NONE, normalized_shape, eps), input, weight, bias, None))


def apply_2d(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """Layer norm over C of (N, C, *), in the input's memory format. weight, bias: (C,); mask: (N, *) or (N, 1, *)."""
    last = input.dim() - 1  # not -1: the tracing ONNX exporter writes it as it is
    rows = input.movedim(1, last)  # channels-last images are rows of C already
    if mask is not None:
        mask = _shapes.channel_mask(mask, input).movedim(1, last)
    y = apply(rows, (input.shape[1],), weight, bias, eps, activation=activation, mask=mask).movedim(last, 1)
    return y.contiguous() if input.is_contiguous() else y


def _verify(input: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> None:
    _shapes.verify_normalized_shape(input, normalized_shape, "[*, {}]", weight=weight, bias=bias)
    _dtypes.verify("LayerNormKernelImpl", input, weight, bias)


@dataclass(slots=True, eq=False)
class LayerNormCall(Call):
    """One layer norm on a fused kernel; an activation is an operation of its own."""

    normalized_shape: tuple[int, ...]
    eps: float

    @property
    def size(self) -> int:
        """D: how many values a position has."""
        return _shapes.product(self.normalized_shape)

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (3, rows) float64: mean, biased var, rstd; no bits)."""
        output, stats = self.kernel.layer_norm_forward(of.input, self.size, of.weight, of.bias, self.eps)
        return output, stats, None

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (*, D), weight and bias of normalized_shape."""
        dx, dweight, dbias = self.kernel.layer_norm_backward(
            dy, of.input, self.size, of.weight, of.bias, stats, needs=needs[:3]
        )[:3]
        return dx, dweight, dbias, None

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        return composed_rows.layer_norm(
            of.input, len(self.normalized_shape), of.weight, of.bias, self.eps, activation=activation
        )

    def compiled(self, of: Operands) -> Tensor:
        """The same as one opaque operator of torch.compile."""
        return OPAQUE(self.size, self.eps, self.activation, *of)[0]


OPAQUE = Opaque(
    "layer_norm",
    lambda size, eps, activation: LayerNormCall(native, NONE, (size,), eps),
    lambda input, size: input.numel() // size,
)
