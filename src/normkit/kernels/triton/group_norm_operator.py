"""Group norm as operators of a compiled graph; instance norm has C groups. As `batch_norm_operator`."""

from torch import Tensor

from ..._operands import Needs, Operands
from ._operators import like, none, operator
from .group_norm import run_backward, run_forward

KEEPS_BITS = False


@operator("normkit::triton_group_norm")
def forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, size: int, eps: float,
    activation: int, param: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y like the input, stats (5, N * size), no bits); size: the number of groups."""
    y, stats = run_forward(Operands(input, weight, bias, residual), size, eps, activation, param)
    return like(y, input), stats, none(input)


@operator("normkit::triton_group_norm_backward")
def backward(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: Tensor, bits: Tensor | None, size: int, eps: float, activation: int, param: float, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients; empty where there is none."""
    operands = Operands(input, weight, bias, residual)
    dx, dweight, dbias, dresidual = run_backward(dy, operands, stats, size, activation, param, Needs(*needs))
    return (
        none(input) if dx is None else like(dx, input),
        none(input) if dweight is None else dweight,
        none(input) if dbias is None else dbias,
        none(input) if dresidual is None else like(dresidual, input),
    )
