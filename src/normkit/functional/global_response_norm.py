"""Global response normalization as a function: channels of a sample compete by their norms (ConvNeXt V2)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _shapes
from .._fx import traceable
from .._operands import Modulate, Operands
from ..kernels import composed
from . import _storage
from .filter_response_norm import _verify
from .mask import known_mask
from .modulate import lay, pair


@traceable
def global_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> Tensor:
    r"""Global response normalization: a channel is amplified by its norm beside the mean norm of its sample's channels.

    .. math:: g_{n,c} = \|x_{n,c}\|_2, \qquad
              y = x + \mathrm{weight}_c \cdot x \cdot \frac{g_{n,c}}{\mathrm{mean}_c(g_{n,c}) + \epsilon} +
              \mathrm{bias}_c

    Args:
        input: (N, C, *), real floating point. Training and evaluation are the same.
        weight, bias: (C,), or None (1 and 0). Zeros, as the layer begins with, are the identity.
        eps: added to the mean norm.
        mask: bool, (N, *) or (N, 1, *), True = a real value: norms are those of the real values, outputs elsewhere are
            zero.
        modulate: (scale, shift): scale * y + shift; each a floating-point tensor (N, C), or of the input's rank that
            broadcasts to it, or None. docs/modulate.md.

    Returns:
        The input's shape and dtype, computed in float64 (float32 on MPS), differentiable through all tensors; a channel
        of zeros has the gradient of its norm 0.

    Raises:
        RuntimeError: an input of fewer than 2 axes; parameters without one value a channel.
        TypeError, ValueError: a mask that is not bool, or that does not fit.

    Reference: Woo et al. (2023), ConvNeXt V2. https://arxiv.org/abs/2301.00808
    """
    _verify("global_response_norm", input, weight=weight, bias=bias)
    scale, shift = pair(modulate)
    _storage.verify((input, weight, bias, mask, scale, shift))
    mask = known_mask(input) if mask is None else mask
    operands = lay(Operands(input, None, None, None, _shapes.optional_channel_mask(mask, input), scale, shift))
    x = composed.cleared(composed.widened(operands), operands.mask)
    beside = _shapes.channel_shape(x.dim(), x.shape[1])
    positions = tuple(range(2, x.dim()))
    norm = torch.linalg.vector_norm(x, dim=positions, keepdim=True) if positions else x.abs()
    scaled = x * (norm / (norm.mean(1, keepdim=True) + eps))
    if weight is not None:
        scaled = scaled * weight.to(x.dtype).reshape(beside)
    y = x + scaled
    if bias is not None:
        y = y + bias.to(x.dtype).reshape(beside)
    return composed.cleared(composed.modulated(y, operands).to(input.dtype), operands.mask)
