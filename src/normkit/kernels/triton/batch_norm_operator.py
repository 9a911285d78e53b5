"""Batch norm as operators of a compiled graph: the compiler sees the kernels in them and orders memory around them.

Functional: running statistics move outside, by operations that the compiler fuses. torch reads the schemas from these
annotations, so they stay objects here, and finds the kernels by the names of the functions that are called, which
therefore are imported one by one. One derivative: that is what compiled graphs have.

`forward` and `backward` are the norm, of the batch or of its slices; the others its passes over memory one by one, for
norms that compute between them.
"""

from torch import Tensor

from ..._operands import Needs, Operands, Saved
from ..._shapes import even_sizes
from ._operators import laid, like, marked, operator, unmarked, vector
from .batch_norm import run_by_statistics, run_forward
from .batch_norm import statistics as find_statistics
from .batch_norm_gradients import run_backward, run_by_shares, run_sums

KEEPS_BITS = True


@operator("normkit::triton_batch_norm")
def forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None, size: int,
    eps: float, activation: int, param: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y like the input, stats (5, sets), bits, marked); size: how many slices have statistics of their own, or 0."""
    y, stats, bits = run_forward(
        Operands(input, weight, bias, residual, mask), eps, activation, param, True, sizes=_slices(input, size)
    )
    return like(y, input), stats, marked(bits, input)


@operator("normkit::triton_batch_norm_backward")
def backward(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mask: Tensor | None, stats: Tensor, bits: Tensor | None, size: int, eps: float, activation: int, param: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients; empty where there is none."""
    input, bits = unmarked(input, bits)
    operands, sizes = Operands(input, weight, bias, residual, mask), _slices(input, size)
    dx, dweight, dbias, dresidual = run_backward(
        dy, operands, Saved(stats, bits), activation, param, Needs(*needs), sizes=sizes
    )
    return laid(dx, input), vector(dweight, input), vector(dbias, input), laid(dresidual, input)


@operator("normkit::triton_batch_norm_statistics")
def statistics(input: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """stats (5, C) of the batch."""
    return find_statistics(Operands(input, mask=mask), eps)


@operator("normkit::triton_batch_norm_by_statistics")
def by_statistics(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None,
    stats: Tensor, activation: int, param: float, group: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y like the input, bits, marked) by statistics (5, C); group: of which ranks they are, for the derivative."""
    operands = Operands(input, weight, bias, residual, mask)
    y, bits = run_by_statistics(operands, stats, activation, param, True)
    return like(y, input), marked(bits, input)


@operator("normkit::triton_batch_norm_sums")
def sums(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mask: Tensor | None, stats: Tensor, bits: Tensor | None, activation: int, param: float,
) -> Tensor:  # fmt: skip
    """The gradients of bias and weight, float32 (2, C)."""
    input, bits = unmarked(input, bits)
    operands = Operands(input, weight, bias, residual, mask)
    return run_sums(dy, operands, Saved(stats, bits), activation, param)


@operator("normkit::triton_batch_norm_by_shares")
def by_shares(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mask: Tensor | None, stats: Tensor, bits: Tensor | None, shares: Tensor, activation: int, param: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of input and residual, where what the statistics take off is known; empty where there is none."""
    input, bits = unmarked(input, bits)
    operands, (of_input, of_residual) = Operands(input, weight, bias, residual, mask), needs
    dx, _, _, dresidual = run_by_shares(
        dy, operands, Saved(stats, bits), shares, activation, param, Needs(of_input, False, False, of_residual)
    )
    return laid(dx, input), laid(dresidual, input)


def _slices(input: Tensor, number: int) -> list[int]:
    """How many samples each slice has; none where the batch is whole."""
    return even_sizes(int(input.shape[0]), number) if number > 1 else []
