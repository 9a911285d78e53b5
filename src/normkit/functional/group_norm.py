"""Group normalization as a function: statistics of each sample's groups of channels."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .. import _operands, _shapes
from .._activation import Activation, resolve
from .._fx import traceable
from .._operands import Gradients, Maybe, Modulate, Needs, Operands, Saved
from ..kernels import composed, native
from . import _dtypes, planes
from ._autocast import widen
from ._autograd import GROUPS, apply_in_core
from ._operator import native_operator, triton_operator
from .road import run
from .spec import Elements, NormSpec, strides_may_change


@traceable
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
    modulate: Modulate = None,
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
        modulate: (scale, shift): scale * norm(x) + shift, after weight and bias and before the residual; each a
            floating-point tensor (N, C), or of the input's rank that broadcasts to it, or None. docs/modulate.md.

    Returns:
        The input's shape, dtype and memory format.

    Raises:
        RuntimeError: fewer than two axes, or groups that do not divide the channels; torch's texts.
        ValueError: one value per group.

    Reference: Wu & He (2018), Group Normalization. https://arxiv.org/abs/1803.08494
    """
    return run(GroupNormSpec(resolve(activation), num_groups, eps), input, weight, bias, residual, mask, modulate)


@dataclass(slots=True, eq=False)
class GroupNormSpec(NormSpec):
    """One group norm."""

    num_groups: int
    eps: float

    name: ClassVar[str] = "group_norm"
    has_triton: ClassVar[bool] = True

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """By groups of channels."""
        activation = self.activation
        if activation.code not in native.FUSED_ACTIVATIONS:
            return None
        return apply_in_core(
            input, weight, bias, residual, self, None, GROUPS, self.num_groups, True, self.eps, activation.code,
            activation.param,
        )  # fmt: skip

    def modulated_in_core(
        self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, modulate: Modulate
    ) -> Maybe:
        """By planes, as of one sample; channels last sample by sample."""
        if self.num_groups < 1 or input.dim() < 2 or input.shape[1] % self.num_groups:
            return None
        return planes.groups_in_core(
            lambda groups: GroupNormSpec(self.activation, groups, self.eps), self.num_groups, self.eps, input, weight,
            bias, residual, modulate,
        )  # fmt: skip

    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The operands, checked; under autocast in float32 where PyTorch's group norm is; mask (N, 1, *)."""
        _shapes.verify_number("group_norm", "eps", self.eps)
        _verify(operands, self.num_groups)
        input = operands.input
        residual = _shapes.fitting_residual(operands.residual, input)
        mask = _shapes.optional_channel_mask(operands.mask, input)
        return self, _operands.verified(operands, widen("group_norm", input), residual, mask)

    def why_not_native(self, operands: Operands) -> str | None:
        """Under a mask the kernels take each channel of each sample for a channel of one large sample."""
        return why_not_masked(operands)

    def why_not_operator(self, kernel: ModuleType, operands: Operands) -> str | None:
        """Triton's takes masks."""
        return "a mask is given" if operands.mask is not None and kernel is native else None

    def why_not_affine(self, operands: Operands) -> str | None:
        """A group's statistics are of one sample."""
        return planes.why_not(operands, self.activation)

    def as_affine(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """Row-major N * C channels of one sample, in N * G groups."""
        groups = planes.samples(operands) * self.num_groups
        return GroupNormSpec(self.activation, groups, self.eps), planes.as_planes(operands)

    def elements(self, input: Tensor) -> Elements | None:
        """By groups of channels."""
        return Elements(GROUPS, self.num_groups, self.eps)

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (3, N * G)."""
        return kernel.group_norm_forward(operands, self.num_groups, self.activation, self.eps, save=save)

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        return kernel.group_norm_backward(dy, operands, saved, self.num_groups, self.activation, needs)

    def input_of_bits(self, kernel: ModuleType, operands: Operands) -> Tensor:
        """As the native kernels see it under a mask."""
        return input_of_masked_bits(kernel, operands)

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations."""
        return composed.group_norm(operands, self.num_groups, self.activation, self.eps)

    def exported(self, operands: Operands) -> Tensor:
        """By torch.nn.functional.group_norm."""
        input, weight, bias, *_ = operands
        return composed.add_and_activate(
            F.group_norm(input, self.num_groups, weight, bias, self.eps), operands, self.activation
        )

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """By one operator."""
        operator = OPERATOR if kernel is native else TRITON_OPERATOR
        return operator(self.num_groups, self.eps, activation, operands)[0]


def why_not_masked(operands: Operands) -> str | None:
    """Why the native kernels cannot serve a mask, if there is one: they read the channels of all samples as one's, an
    input that is not contiguous as a copy; bits of an activation behind a residual would be those of the copy."""
    if operands.mask is None:
        return None
    if operands.input.numel() == 0:
        return "a mask is given, and the input is empty"
    input, residual = operands.input, operands.residual
    if residual is None or (input.is_contiguous() and residual.is_contiguous() and not strides_may_change()):
        return None
    return "a mask and a residual are given, and they are not contiguous, or may not be when a checkpoint recomputes"


def input_of_masked_bits(kernel: ModuleType, operands: Operands) -> Tensor:
    """The input as the native kernels see it under a mask: one large sample."""
    input = operands.input
    if kernel is not native or operands.mask is None:
        return input
    return input.contiguous().view(1, -1, *input.shape[2:])


def _verify(operands: Operands, num_groups: int) -> None:
    input, weight, bias, *_ = operands
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    _shapes.verify_num_groups(num_groups)
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
    if input.numel() == 0:  # which torch 2.15 refuses unless the batch is what is empty, and 2.13 takes: torch is asked
        F.group_norm(input, num_groups)


OPERATOR = native_operator(
    "group_norm",
    lambda size, eps, activation: GroupNormSpec(activation, size, eps),
    lambda input, size: input.shape[0] * size,
)
TRITON_OPERATOR = triton_operator("group_norm")
