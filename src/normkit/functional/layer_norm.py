"""Layer normalization as a function, alone, after an addition, and over the channels of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .. import _operands, _shapes
from .._activation import AFTER, NONE, Activation, resolve
from .._fx import traceable
from .._operands import Gradients, Maybe, Modulate, Needs, Operands, Saved
from ..kernels import composed
from . import _dtypes
from ._autocast import widen
from ._autograd import LAYER, apply_in_core
from ._operator import native_operator
from .add_norm import AddedOperator, run_added
from .modulate import lay_one, pair
from .road import run
from .row_blocks import RowNormSpec
from .spec import NormSpec


@traceable
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
    modulate: Modulate = None,
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
        modulate: (scale, shift): scale * norm(x) + shift, after the weight and bias and before the activation; each a
            floating-point tensor (N, *normalized_shape), or of the input's rank that broadcasts to it, or None.
            docs/modulate.md.

    Returns:
        The input's shape and dtype. Saved for the backward: the input and two numbers a position.

    Differences from torch: accumulation in float64, so mean >> std costs no digits; derivatives of every order.

    Raises:
        RuntimeError, NotImplementedError: as torch.nn.functional.layer_norm, with its texts.
        TypeError, ValueError: a mask that is not bool, or that covers a normalized axis.

    Reference: Ba, Kiros & Hinton (2016), Layer Normalization. https://arxiv.org/abs/1607.06450
    """
    return run(
        LayerNormSpec(resolve(activation), tuple(normalized_shape), eps),
        input,
        weight,
        bias,
        mask=mask,
        modulate=modulate,
    )


@traceable
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
    modulate: Modulate = None,
) -> tuple[Tensor, Tensor]:
    """Add, then layer norm: ``(layer_norm(input + residual), input + residual)``, the step of a transformer block.

    Arguments as :func:`layer_norm`; residual: the input's shape. The sum is returned as the next residual, in the dtype
    of ``input + residual``, to which it is rounded before it is normalized, and not masked. In the native core one pass
    over memory forward and one backward; to the bit what the addition and the norm give one after the other.
    """
    norm = LayerNormSpec(resolve(activation), tuple(normalized_shape), eps)
    return run_added(norm, input, residual, weight, bias, mask, modulate)


@dataclass(slots=True, eq=False)
class LayerNormSpec(RowNormSpec):
    """One layer norm; an activation is an operation of its own, and there is no residual."""

    normalized_shape: tuple[int, ...]
    eps: float

    name: ClassVar[str] = "layer_norm"
    rows: ClassVar[int] = LAYER

    def eps_of(self, input: Tensor) -> float:
        """eps."""
        return self.eps

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """By rows; the activation follows."""
        if len(self.normalized_shape) != 1:
            return None
        width = self.normalized_shape[0]
        y = apply_in_core(input, weight, bias, None, self, None, LAYER, width, True, self.eps, NONE.code, 0.0)
        return y if y is None else self.activation.function(y)

    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The operands, checked; under autocast in float32 where PyTorch's layer norm is; mask: the leading shape."""
        _shapes.verify_number("layer_norm", "eps", self.eps)
        input, weight, bias, _, mask, *_ = operands
        shape = self.normalized_shape
        _shapes.verify_normalized_shape(input, shape, F.layer_norm, weight=weight, bias=bias)
        _dtypes.verify("LayerNormKernelImpl", input, weight, bias)
        mask = None if mask is None else _shapes.leading_mask(mask, input, len(shape))
        return self, _operands.verified(operands, widen("layer_norm", input), operands.residual, mask)

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (3, rows)."""
        return kernel.layer_norm_forward(operands, self.size, self.eps, save=save)

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (*, D), weight and bias of normalized_shape."""
        return kernel.layer_norm_backward(dy, operands, saved, self.size, needs)

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations; contiguous, as kernels and PyTorch leave it whatever the input's strides."""
        activation = self.activation if stats is None else NONE  # kernels leave it to an operation of its own
        return composed.layer_norm(operands, len(self.normalized_shape), activation, self.eps).contiguous()

    def exported(self, operands: Operands) -> Tensor:
        """By torch.nn.functional.layer_norm."""
        input, weight, bias, *_ = operands
        y = F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return composed.add_and_activate(y, operands, self.activation)

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """By one opaque operator."""
        # not self.size: the Dynamo of torch 2.4 has no properties of objects that it saw made
        return OPERATOR(math.prod(self.normalized_shape), self.eps, activation, operands)[0]

    def added_operator(self, operands: Operands) -> tuple[Tensor, Tensor]:
        """The norm of input + residual, and the sum, by one opaque operator."""
        return ADDED(math.prod(self.normalized_shape), self.eps, operands)


def over_channels(
    norm: NormSpec, input: Tensor, weight: Maybe, bias: Maybe, mask: Maybe, modulate: Modulate = None
) -> Tensor:
    """A layer or RMS norm of (C,) over C of (N, C, *), in the input's memory format. mask: (N, *) or (N, 1, *).
    modulate: (N, C), or of the input's rank."""
    last = input.dim() - 1  # not -1: the tracing ONNX exporter writes it as it is
    rows = input.movedim(1, last)  # channels-last images are rows of C already
    mask = _shapes.optional_channel_mask(mask, input)
    # a module of somebody, such as a PReLU of C slopes, gets what it would get behind the layer, not rows
    after = norm.activation if norm.activation.code == AFTER else NONE
    norm = norm if after is NONE else replace(norm, activation=NONE)
    if modulate is not None:
        laid = (lay_one(name, t, input, 0) for name, t in zip(("scale", "shift"), pair(modulate), strict=True))
        scale, shift = (None if t is None else t.movedim(1, last) for t in laid)
        modulate = scale, shift
    mask_of_rows = None if mask is None else mask.movedim(1, last)
    y = run(norm, rows, weight, bias, mask=mask_of_rows, modulate=modulate).movedim(last, 1)
    y = y.contiguous() if input.is_contiguous() else y
    return y if after is NONE else composed.add_and_activate(y, Operands(input, weight, bias, None, mask), after)


OPERATOR = native_operator(
    "layer_norm",
    lambda size, eps, activation: LayerNormSpec(NONE, (size,), eps),
    lambda input, size: input.numel() // size,
)

ADDED = AddedOperator("add_layer_norm", rms=False)
