"""Batch norm as operators of a compiled graph: the compiler sees the kernels in them and orders memory around them.

Functional: running statistics move outside, by operations that the compiler fuses. torch reads the schemas from these
annotations, so they stay objects here. One derivative: that is what compiled graphs have.
"""

from torch import Tensor

from ..._operands import Needs, Operands, Saved
from ._operators import like, none, operator
from .batch_norm import run_forward
from .batch_norm_gradients import run_backward

KEEPS_BITS = True


@operator("normkit::triton_batch_norm")
def forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, size: int, eps: float,
    activation: int, param: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y like the input, stats (5, C), bits); size is not read."""
    y, stats, bits = run_forward(Operands(input, weight, bias, residual), eps, activation, param, True)
    return like(y, input), stats, none(input) if bits is None else bits


@operator("normkit::triton_batch_norm_backward")
def backward(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: Tensor, bits: Tensor | None, size: int, eps: float, activation: int, param: float, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients; empty where there is none."""
    operands = Operands(input, weight, bias, residual)
    dx, dweight, dbias, dresidual = run_backward(dy, operands, Saved(stats, bits), activation, param, Needs(*needs))
    return (
        none(input) if dx is None else like(dx, input),
        none(input) if dweight is None else dweight,
        none(input) if dbias is None else dbias,
        none(input) if dresidual is None else like(dresidual, input),
    )
