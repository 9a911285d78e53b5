"""What stands in a folded norm's place: nothing, its activation, or the residual's addition and the activation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class AddActivation(nn.Module):
    """activation(input + residual): what a fused layer of normkit still has to do once its norm is folded away.

    input, residual: (N, C, *). The same in training and evaluation.
    """

    def __init__(self, activation: str | nn.Module | None = None) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        y = input if residual is None else input + residual
        if isinstance(self.activation, str):
            return getattr(F, self.activation)(y)
        return y if self.activation is None else self.activation(y)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}" if isinstance(self.activation, str) else ""


def folded_rest(activation: str | nn.Module | None, *, residual: bool) -> nn.Module:
    """The plainest module that does the rest."""
    if residual or isinstance(activation, str):
        return AddActivation(activation)
    return nn.Identity() if activation is None else activation
