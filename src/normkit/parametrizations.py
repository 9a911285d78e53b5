"""Normalized weights, in place of normalized activations or beside them: what a parameter is computed from."""

from __future__ import annotations

from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._operands import Operands
from .kernels import composed
from .moments import Moments

Module = TypeVar("Module", bound=nn.Module)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_standardization(
    module: Module, name: str = "weight", eps: float = 1e-5, *, gain: float | None = None
) -> Module:
    r"""Standardize the weight of a layer: the filter of each output has zero mean and unit variance.

    .. math:: \hat W_o = \mathrm{gain}_o \cdot \frac{W_o - \mathrm{mean}(W_o)}{\sqrt{\mathrm{var}(W_o) + \epsilon}}

    mean and the biased var run over all but the output axis of the weight. It goes with group norm, for small batches;
    the scaled form (a gain, and 1 / sqrt(fan-in) in it) trains without norms of activations.

    Args:
        module: changed in place: a convolution (transposed too, of one group), a linear layer, or any module with such
            a parameter, whose axis 0 is the output's.
        name: the parameter.
        eps: added to the variance, inside the square root.
        gain: None, or what a learned gain of each output begins with, kept as the parametrization's `gain`.

    Returns:
        The module. `module.parametrizations[name].original` is what is trained and saved;
        ``torch.nn.utils.parametrize.remove_parametrizations(module, name)`` leaves the standardized weight.

    Raises:
        AttributeError: the module has no such parameter.
        ValueError: it has one axis only, or is a transposed convolution of several groups; eps is not above 0.
        TypeError: the gain is no number.

    Reference: Qiao et al. (2019), Micro-Batch Training with Batch-Channel Normalization and Weight Standardization.
    https://arxiv.org/abs/1903.10520. The gain: Brock et al. (2021), https://arxiv.org/abs/2101.08692
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise AttributeError(f"{type(module).__name__} has no parameter {name!r} to standardize")
    if weight.dim() < 2:
        raise ValueError(f"{name} has the shape {tuple(weight.shape)}: a filter of one value has no variance")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}: a filter of equal values has no variance")
    if gain is not None and (isinstance(gain, bool) or not isinstance(gain, Real)):
        raise TypeError(f"gain must be a number, what each output's begins with, got a {type(gain).__name__}")
    transposed = isinstance(module, _TRANSPOSED)
    if transposed and module.groups != 1:
        raise ValueError("the filters of a transposed convolution of several groups do not lie along one axis")
    axis = 1 if transposed else 0
    gains = None if gain is None else torch.full((weight.shape[axis],), gain, device=weight.device, dtype=weight.dtype)
    parametrize.register_parametrization(module, name, WeightStandardization(axis, eps, gains))
    return module


class WeightStandardization(nn.Module):
    """The parametrization of :func:`weight_standardization`. axis: the outputs'; gain: (outputs,), or None."""

    def __init__(self, axis: int, eps: float, gain: Tensor | None = None) -> None:
        super().__init__()
        self.axis, self.eps = axis, eps
        self.gain = None if gain is None else nn.Parameter(gain.detach())

    def forward(self, weight: Tensor) -> Tensor:
        """weight: outputs at `axis` -> the same shape and dtype, computed in the accumulator's dtype."""
        wide = composed.widened(Operands(weight))  # once: two casts would round two halves of the gradient
        moments = Moments.of(wide, [axis for axis in range(weight.dim()) if axis != self.axis])
        standard = composed.standardize(wide, moments, self.eps, None)
        if self.gain is not None:
            shape = [1] * weight.dim()
            shape[self.axis] = -1
            standard = standard * self.gain.to(wide.dtype).view(shape)
        return standard.to(weight.dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"axis={self.axis}, eps={self.eps}"
