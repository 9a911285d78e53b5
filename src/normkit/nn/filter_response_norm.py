"""FilterResponseNorm: a norm of single channels of single samples, with a learned threshold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.filter_response_norm import filter_response_norm


class FilterResponseNorm(nn.Module):
    r"""Filter response normalization with its thresholded linear unit, in place of batch norm and ReLU.

    .. math:: y = \max\Big(\frac{x}{\sqrt{\mathrm{mean}_{n,c}(x^2) + \epsilon + |\mathrm{extra\_eps}|}} \cdot
              \mathrm{weight}_c + \mathrm{bias}_c,\ \mathrm{threshold}_c\Big)

    Training and evaluation are the same; there are no running statistics.

    Args:
        num_features: C, the size of axis 1.
        eps: added to the mean square, inside the square root.
        affine: whether to learn weight (ones at first) and bias (zeros).
        threshold: whether to learn the threshold (zeros at first: a ReLU); False: no threshold.
        extra_eps: None, or what a learned addition to eps begins with: the paper takes 1e-4 where there are few
            positions (1x1 maps), of which the mean square may be near 0.

    Call: ``frn(x, mask=None, modulate=None)``. x: (N, C, *). mask: bool, (N, *) or (N, 1, *), True = a real value.
    modulate: (scale, shift), each (N, C), or of x's rank that broadcasts to it, or None: scale * y + shift before the
    threshold.

    Reference: Singh & Krishnan (2020), Filter Response Normalization Layer. https://arxiv.org/abs/1911.09737
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        threshold: bool = True,
        extra_eps: float | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self._first_extra_eps = extra_eps

        def made(wanted: bool, *size: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(size, device=device, dtype=dtype)) if wanted else None

        self.weight, self.bias = made(affine, num_features), made(affine, num_features)
        self.threshold, self.extra_eps = made(threshold, num_features), made(extra_eps is not None, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What the parameters are at first."""
        first = {"weight": 1.0, "bias": 0.0, "threshold": 0.0, "extra_eps": self._first_extra_eps or 0.0}
        for name, parameter in self._parameters.items():
            if parameter is not None:
                nn.init.constant_(parameter, first[name])

    def forward(self, input: Tensor, mask: Maybe = None, modulate: Modulate = None) -> Tensor:
        """input: (N, C, *) -> the same shape and dtype."""
        if is_proxy(input):
            return module_node(self, input, mask=mask, modulate=modulate)
        eps = self.eps if self.extra_eps is None else self.eps + self.extra_eps.abs()
        return filter_response_norm(input, self.weight, self.bias, self.threshold, eps, mask=mask, modulate=modulate)

    def extra_repr(self) -> str:
        """The arguments."""
        shown = f"{self.num_features}, eps={self.eps}, affine={self.affine}, threshold={self.threshold is not None}"
        return shown if self.extra_eps is None else f"{shown}, extra_eps={self._first_extra_eps}"
