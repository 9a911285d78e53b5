"""What a rewritten forward calls: a norm that does the addition behind it too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def norm_and_add(norm: nn.Module, input: Tensor, residual: Tensor) -> Tensor:
    """``norm(input, residual=residual)`` with what an addition allows and a layer does not.

    input: (N, C, *). residual: what broadcasts to it; as in an addition, the result has the wider dtype of both.
    """
    if residual.shape != input.shape:
        residual = residual.expand(input.shape)
    if residual.dtype != input.dtype:
        input = input.to(torch.promote_types(input.dtype, residual.dtype))
    output: Tensor = norm(input, residual=residual)
    return output
