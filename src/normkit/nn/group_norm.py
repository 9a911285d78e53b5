"""GroupNorm: torch.nn's layer with residual, activation and mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _shapes
from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.group_norm import GroupNormSpec
from ..functional.road import run
from ._bias import BiasOption
from .base import Given, Norm


class GroupNorm(BiasOption, Norm, nn.GroupNorm):
    r"""Group normalization: each sample's groups of channels get zero mean and unit variance, whatever the batch size.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}_{n,g}}{\sqrt{\mathrm{var}_{n,g} + \epsilon}} \cdot
              \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\Big)

    Training and evaluation are the same; there are no running statistics. The variance is biased.

    Args:
        num_groups: G, divides C. 1 is layer norm over (C, *), C is instance norm.
        num_channels: C, the size of axis 1.
        eps: added to the variance, inside the square root.
        affine: whether to learn weight and bias, both (C,).
        bias: False leaves the shift out.
        activation: None, a name in torch.nn.functional ("relu"), or a module; applied last.

    Call: ``gn(x, residual=None, mask=None, activation=None, modulate=None)``. x: (N, C, *). residual: x's shape, added
    before the activation. mask: bool, (N, *) or (N, 1, *), True = a real value: a sample's statistics are those of its
    real values, outputs elsewhere are zero. activation: for this call, in place of the layer's own. modulate: (scale,
    shift), each (N, C), or of x's rank that broadcasts to it, or None: scale * norm(x) + shift, before the residual.

    Raises:
        ValueError: num_groups is below 1, or does not divide num_channels (torch's text).

    Reference: Wu & He (2018), Group Normalization. https://arxiv.org/abs/1803.08494
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | nn.Module | None = None,
    ) -> None:
        _shapes.verify_num_groups(num_groups)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, bias=bias)
        self._set_activation(activation)

    def forward(
        self, input: Tensor, residual: Maybe = None, mask: Maybe = None, activation: Given = None,
        modulate: Modulate = None,
    ) -> Tensor:  # fmt: skip
        """input: (N, C, *) -> the same shape, dtype and memory format."""
        if is_proxy(input):
            given = {"residual": residual, "mask": mask, "activation": activation, "modulate": modulate}
            return module_node(self, input, **given)
        spec = GroupNormSpec(self._resolved_activation(activation), self.num_groups, self.__dict__["eps"])
        return run(spec, input, *self._affine(), residual, mask, modulate)
