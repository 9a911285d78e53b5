"""Group normalization as a function: statistics of each sample's groups of channels."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

from .. import _shapes
from .._activation import NONE, Activation, resolve
from ..kernels import aten, composed, native
from . import _dtypes
from ._autocast import widen
from ._choose import choose, is_eager, is_exporting
from ._fused import Call, Forwarded, Gradients, Needs, Operands, after, run, run_channels
from ._opaque import Opaque

KERNELS: dict[str, ModuleType] = {"native": native, "aten": aten}


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Group normalization: mean and variance of each sample's groups of channels; no batch, no running statistics.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}_{n,g}}{\sqrt{\mathrm{var}_{n,g} + \epsilon}} \cdot
              \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\Big)

    Args:
        input: (N, C, *), real floating point. Training and evaluation are the same.
        num_groups: G, divides C; a group is C/G neighbouring channels with all positions. The variance is biased.
        weight, bias: (C,) or None (1 and 0).
        eps: added to the variance, inside the square root.
        residual: input's shape; added before the activation.
        activation: None, a name in torch.nn.functional, or a module.
        mask: bool, (N, *) or (N, 1, *), True = a real value. A sample's statistics are those of its real values;
            outputs under the mask are zero.

    Returns:
        The input's shape, dtype and memory format.

    Raises:
        RuntimeError: fewer than two axes, or groups that do not divide the channels; torch's texts.
        ValueError: one value per group.

    Reference: Wu & He (2018), Group Normalization. https://arxiv.org/abs/1803.08494
    """
    return apply(input, num_groups, weight, bias, eps, residual=residual, activation=resolve(activation), mask=mask)


def apply(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """What :func:`group_norm` and the layer share."""
    if mask is None and is_eager() and num_groups > 0:
        count = native.ready(input, residual, weight, bias, None, None)  # the common call: one look at all tensors
        if count and not input.shape[1] % num_groups and input.numel() > input.shape[0] * num_groups:
            call = GroupNormCall(native, activation, num_groups, eps)
            return run_channels(call, None, num_groups, True, eps, input, weight, bias, residual)
    _verify(input, num_groups, weight, bias, residual)
    input = widen("group_norm", input)
    if mask is not None:
        mask = _shapes.channel_mask(mask, input)
    path, _ = choose("group_norm", input, activation, mask, (residual, weight, bias))
    if path == "composed":
        return composed.group_norm(
            input, num_groups, weight, bias, eps, residual=residual, activation=activation, mask=mask
        )
    if path == "aten" and is_exporting():
        return after(F.group_norm(input, num_groups, weight, bias, eps), residual, activation)
    return run(GroupNormCall(KERNELS[path], activation, num_groups, eps), input, weight, bias, residual)


def _verify(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> None:
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    if num_groups < 1:
        raise ValueError(f"num_groups must be a positive integer, got {num_groups}")
    size = [input.size(0) * input.size(1) // num_groups, num_groups, *input.size()[2:]]
    if _shapes.values_per_channel(size) == 1:
        raise ValueError(_shapes.ONE_VALUE.format(size))
    if input.size(1) % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dim() != 1 or tensor.numel() != input.size(1)):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of "
                f"shape {list(tensor.shape)} and input of shape {list(input.shape)}"
            )
    _dtypes.verify("GroupNormKernelImpl", input, weight, bias)
    _shapes.verify_residual(residual, input)


@dataclass(slots=True, eq=False)
class GroupNormCall(Call):
    """One group norm on a fused kernel."""

    num_groups: int
    eps: float

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (3, N*G) float64: mean, biased var, rstd; bits)."""
        return self.kernel.group_norm_forward(
            of.input, self.num_groups, *of[1:], self.activation.code, self.activation.param, self.eps,
            save_for_backward=save,
        )  # fmt: skip

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        return self.kernel.group_norm_backward(
            dy, of.input, self.num_groups, *of[1:], bits, stats, self.activation.code, self.activation.param,
            needs=needs,
        )  # fmt: skip

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        input, weight, bias, residual = of
        return composed.group_norm(
            input, self.num_groups, weight, bias, self.eps, residual=residual, activation=activation
        )

    def compiled(self, of: Operands) -> Tensor:
        """The same as one opaque operator of torch.compile."""
        return OPAQUE(self.num_groups, self.eps, self.activation, *of)[0]


OPAQUE = Opaque(
    "group_norm",
    lambda size, eps, activation: GroupNormCall(native, activation, size, eps),
    lambda input, size: input.shape[0] * size,
)
