"""Group norm as operators of a compiled graph; instance norm has C groups. As `batch_norm_operator`."""

from torch import Tensor

from ..._operands import Needs, Operands
from ._operators import laid, like, none, operator, vector
from .group_norm import run_backward, run_forward

KEEPS_BITS = False


@operator("normkit::triton_group_norm")
def forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None, size: int,
    eps: float, activation: int, param: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y like the input, stats (5, N * size), no bits); size: the number of groups."""
    y, stats = run_forward(Operands(input, weight, bias, residual, mask), size, eps, activation, param)
    return like(y, input), stats, none(input)


@operator("normkit::triton_group_norm_backward")
def backward(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mask: Tensor | None, stats: Tensor, bits: Tensor | None, size: int, eps: float, activation: int, param: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients; empty where there is none."""
    operands = Operands(input, weight, bias, residual, mask)
    dx, dweight, dbias, dresidual = run_backward(dy, operands, stats, size, activation, param, Needs(*needs))
    return laid(dx, input), vector(dweight, input), vector(dbias, input), laid(dresidual, input)
