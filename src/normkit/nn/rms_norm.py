"""RMSNorm: torch.nn's layer with activation and mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.rms_norm import RMSNormSpec
from ..functional.road import run
from .base import Given, Norm


class RMSNorm(Norm, nn.RMSNorm):
    r"""RMS normalization: each position is divided by the root mean square of its last axes; no mean, no bias.

    .. math:: y = \mathrm{activation}\Big(\frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}} \cdot \mathrm{weight}\Big)

    Training and evaluation are the same; there are no running statistics.

    Args:
        normalized_shape: the sizes of the last axes, or one size.
        eps: added to the mean square, inside the square root; None: the machine epsilon of float32 (float64 for
            float64 inputs).
        elementwise_affine: whether to learn weight, of normalized_shape.
        activation: None, a name in torch.nn.functional, or a module; applied last.

    Call: ``rms(x, mask=None, activation=None, modulate=None)``. x: (*, *normalized_shape). mask: bool, the leading
    shape, True = a real position: outputs elsewhere are zero. It takes no residual: where one is added, the field adds
    before the norm (:func:`normkit.functional.add_rms_norm`). activation: for this call, in place of the layer's own.
    modulate: (scale, shift), each (N, *normalized_shape), or of x's rank that broadcasts to it, or None: scale *
    norm(x) + shift, before the activation.

    Raises:
        RuntimeError: the input does not end in normalized_shape; torch's text.

    Reference: Zhang & Sennrich (2019), Root Mean Square Layer Normalization. https://arxiv.org/abs/1910.07467
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | nn.Module | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._set_activation(activation)

    def forward(self, x: Tensor, mask: Maybe = None, activation: Given = None, modulate: Modulate = None) -> Tensor:
        """x: (*, *normalized_shape) -> the same shape and dtype."""
        if is_proxy(x):
            return module_node(self, x, mask=mask, activation=activation, modulate=modulate)
        spec = RMSNormSpec(self._resolved_activation(activation), self.normalized_shape, self.__dict__["eps"])
        return run(spec, x, self.weight, mask=mask, modulate=modulate)
