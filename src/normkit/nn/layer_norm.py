"""LayerNorm: torch.nn's layer with activation and mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.layer_norm import LayerNormSpec
from ..functional.road import run
from .base import Given, Norm


class LayerNorm(Norm, nn.LayerNorm):
    r"""Layer normalization: each position gets zero mean and unit variance over its last axes.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}} \cdot
              \mathrm{weight} + \mathrm{bias}\Big)

    Training and evaluation are the same; there are no running statistics. The variance is biased.

    Args:
        normalized_shape: the sizes of the last axes, or one size.
        eps: added to the variance, inside the square root.
        elementwise_affine: whether to learn weight and bias, both of normalized_shape.
        bias: False leaves the shift out.
        activation: None, a name in torch.nn.functional ("gelu"), or a module; applied last.

    Call: ``ln(x, mask=None, activation=None, modulate=None)``. x: (*, *normalized_shape). mask: bool, the leading
    shape, True = a real position: outputs elsewhere are zero. It takes no residual: where one is added, the field adds
    before layer norm (:func:`normkit.functional.add_layer_norm`). activation: for this call, in place of the layer's
    own. modulate: (scale, shift), each (N, *normalized_shape), or of x's rank that broadcasts to it, or None: scale *
    norm(x) + shift, before the activation.

    Raises:
        RuntimeError: the input does not end in normalized_shape; torch's text.

    Reference: Ba, Kiros & Hinton (2016), Layer Normalization. https://arxiv.org/abs/1607.06450
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | nn.Module | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._set_activation(activation)

    def forward(self, input: Tensor, mask: Maybe = None, activation: Given = None, modulate: Modulate = None) -> Tensor:
        """input: (*, *normalized_shape) -> the same shape and dtype."""
        if is_proxy(input):
            return module_node(self, input, mask=mask, activation=activation, modulate=modulate)
        return run(self._spec(activation), input, *self._affine(), mask=mask, modulate=modulate)

    def _spec(self, activation: Given) -> LayerNormSpec:
        return LayerNormSpec(self._resolved_activation(activation), self.normalized_shape, self.__dict__["eps"])
