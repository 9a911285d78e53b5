"""`normalize`: lay moments on an input. With :class:`normkit.Moments` it makes any norm."""

from __future__ import annotations

from torch import Tensor

from .. import _shapes
from .._activation import NONE
from .._fx import traceable
from .._operands import Operands
from ..kernels import composed
from ..moments import Moments
from . import _storage


@traceable
def normalize(
    input: Tensor, moments: Moments, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    r"""Normalize an input by moments, then scale and shift; differentiable through all four tensors.

    .. math:: y = \frac{x - \mathrm{mean}}{\sqrt{m_2 / n + \epsilon}} \cdot \mathrm{weight} + \mathrm{bias}

    Args:
        input: any shape, real floating point.
        moments: from :meth:`Moments.of` (its `dim` says how the statistics lie beside the input), or one value per
            channel (axis 1), or anything that broadcasts. The variance is the biased one.
        weight, bias: (C,) for an input (N, C, *), or anything that broadcasts against the input; None = 1 and 0.
        eps: added to the variance, inside the square root.

    Returns:
        The input's shape and dtype, computed in the moments' dtype. An empty set of moments gives NaN-free
        output: its variance counts as 0.

    Raises:
        TypeError: the input is not floating point, or `moments` is not Moments.
        ValueError: moments, weight or bias do not fit the input.

    Example, a norm of one's own over height only:
        >>> normkit.functional.normalize(x, normkit.Moments.of(x, dim=2))
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"moments must be normkit.Moments (see Moments.of), got {type(moments).__name__}")
    if not input.is_floating_point():
        raise TypeError(f"input must be real floating point, got {input.dtype}")
    _shapes.verify_number("normalize", "eps", eps)
    _storage.verify((input, weight, bias, moments.mean, moments.m2))
    operands = Operands(input, _lay("weight", weight, input), _lay("bias", bias, input))
    return composed.normalize(operands, moments, NONE, eps)


def _lay(name: str, parameter: Tensor | None, input: Tensor) -> Tensor | None:
    """(C,) belongs to axis 1 of (N, C, *); every other shape must broadcast as it is."""
    if parameter is None:
        return None
    if parameter.dim() == 1 and input.dim() >= 2 and parameter.shape[0] == input.shape[1]:
        return parameter.reshape(1, -1, *[1] * (input.dim() - 2))
    sizes = zip(parameter.shape[::-1], input.shape[::-1], strict=False)
    if parameter.dim() > input.dim() or any(a not in (1, b) for a, b in sizes):
        raise ValueError(
            f"{name} of shape {tuple(parameter.shape)} does not fit an input of shape {tuple(input.shape)}: expected "
            f"one value per channel (axis 1) or a shape that broadcasts"
        )
    return parameter
