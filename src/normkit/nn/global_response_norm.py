"""GlobalResponseNorm: ConvNeXt V2's layer, with channels at axis 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.global_response_norm import global_response_norm


class GlobalResponseNorm(nn.Module):
    r"""Global response normalization: channels of a sample compete by their norms over the positions.

    .. math:: g_{n,c} = \|x_{n,c}\|_2, \qquad
              y = x + \mathrm{weight}_c \cdot x \cdot \frac{g_{n,c}}{\mathrm{mean}_c(g_{n,c}) + \epsilon} +
              \mathrm{bias}_c

    Training and evaluation are the same. Weight and bias begin at zero: the layer is the identity at first. ConvNeXt V2
    keeps (N, H, W, C) and parameters of (1, 1, 1, C): move the channels to axis 1, and flatten the parameters.

    Args:
        num_features: C, the size of axis 1.
        eps: added to the mean norm.

    Call: ``grn(x, mask=None, modulate=None)``. x: (N, C, *). mask: bool, (N, *) or (N, 1, *), True = a real value.
    modulate: (scale, shift), each (N, C), or of x's rank that broadcasts to it, or None: scale * y + shift.

    Reference: Woo et al. (2023), ConvNeXt V2. https://arxiv.org/abs/2301.00808
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros: the identity."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, mask: Maybe = None, modulate: Modulate = None) -> Tensor:
        """input: (N, C, *) -> the same shape and dtype."""
        if is_proxy(input):
            return module_node(self, input, mask=mask, modulate=modulate)
        return global_response_norm(input, self.weight, self.bias, self.eps, mask=mask, modulate=modulate)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps}"
