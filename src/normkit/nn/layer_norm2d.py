"""LayerNorm2d: layer norm over the channels of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.layer_norm import over_channels
from .base import Given
from .layer_norm import LayerNorm


class LayerNorm2d(LayerNorm):
    r"""Layer normalization over the channels of images: each pixel's C values get zero mean and unit variance.

    .. math:: y_{n,c,h,w} = \mathrm{activation}\Big(\frac{x - \mathrm{mean}_{n,h,w}}{\sqrt{\mathrm{var}_{n,h,w} +
              \epsilon}} \cdot \mathrm{weight}_c + \mathrm{bias}_c\Big)

    The layer of ConvNeXt, without the two permutations around it: the memory format is kept, and channels-last images
    are rows already. A state_dict of torchvision's or timm's layer of this name loads here and back; both write
    eps=1e-6 in their models, while the default here is torch.nn.LayerNorm's.

    Args:
        num_channels: C, the size of axis 1.
        eps: added to the (biased) variance, inside the square root.
        elementwise_affine: whether to learn weight and bias, both (C,).
        bias: False leaves the shift out.
        activation: None, a name in torch.nn.functional ("gelu"), or a module; applied last.

    Call: ``ln(x, mask=None, activation=None, modulate=None)``. x: (N, C, H, W). mask: bool, (N, H, W) or (N, 1, H, W),
    True = a real pixel: outputs elsewhere are zero. Training and evaluation are the same. activation: for this call, in
    place of the layer's own. modulate: (scale, shift), each (N, C), or of x's rank that broadcasts to it, or None:
    scale * norm(x) + shift, before the activation.

    Raises:
        ValueError: the input is not 4D, or a mask does not fit.
        RuntimeError: axis 1 is not num_channels.

    Reference: Liu et al. (2022), A ConvNet for the 2020s. https://arxiv.org/abs/2201.03545
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | nn.Module | None = None,
    ) -> None:
        super().__init__(num_channels, eps, elementwise_affine, bias, device, dtype, activation=activation)

    def forward(self, input: Tensor, mask: Maybe = None, activation: Given = None, modulate: Modulate = None) -> Tensor:
        """input: (N, C, H, W) -> the same shape, dtype and memory format."""
        if is_proxy(input):
            return module_node(self, input, mask=mask, activation=activation, modulate=modulate)
        if input.dim() != 4:
            raise ValueError(f"expected 4D input (got {input.dim()}D input)")
        if input.shape[1] != self.normalized_shape[0]:
            raise RuntimeError(
                f"expected {self.normalized_shape[0]} channels at axis 1, got an input of shape {tuple(input.shape)}"
            )
        return over_channels(self._spec(activation), input, *self._affine(), mask, modulate)
