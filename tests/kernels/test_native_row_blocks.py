"""Rows with a weight and a bias for each block: the core's result is that of the blocks by themselves, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit._operands import Needs, Operands
from normkit.kernels import native
from tests.cases import EPS, gaussian, generator
from tests.functional.norms import threads
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

# (blocks, rows of a block, width): few and many blocks, rows for tiles (width above 16384), tails of every vector width
SHAPES = [(2, 3, 5), (5, 70, 33), (40, 3, 17), (64, 1, 8), (3, 2, 20001)]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_block_is_as_alone(shape: tuple[int, int, int], rms: bool, dtype: torch.dtype, count: int) -> None:
    blocks, _, width = shape
    g = generator(1)
    x, dy = gaussian(shape, g).to(dtype), gaussian(shape, g).to(dtype)
    kind = torch.promote_types(dtype, torch.float32)
    weight, bias = (gaussian((blocks, 1, width), g).to(kind) for _ in range(2))
    needs = Needs(True, True, True, False)

    def both(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        operands = Operands(x, weight, bias)
        forward = native.rms_norm_forward if rms else native.layer_norm_forward
        backward = native.rms_norm_backward if rms else native.layer_norm_backward
        y, saved = forward(operands, width, EPS, save=True)
        assert saved is not None
        found = backward(dy, operands, saved, width, needs)
        gradients = [gradient for gradient in found[:3] if gradient is not None]
        assert len(gradients) == 3
        return [y, *gradients]

    with threads(count):
        whole = both(x, dy, weight, bias)
        alone = [both(x[i], dy[i], weight[i], bias[i]) for i in range(blocks)]
    for found, *parts in zip(whole, *alone, strict=True):
        assert torch.equal(found, torch.stack(parts))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [((3, 1, 8), "weight should contain 8 elements not 24"), ((2, 1, 7), "weight should contain 8 elements not 14")],
)
def test_blocks_that_do_not_divide_the_rows_are_told(sizes: tuple[int, ...], text: str) -> None:
    x = torch.randn(2, 5, 8)
    with pytest.raises(RuntimeError, match=text):
        native.layer_norm_forward(Operands(x, torch.ones(sizes)), 8, EPS, save=False)


def test_a_weight_of_blocks_beside_a_bias_of_none_is_told() -> None:
    x = torch.randn(2, 5, 8)
    with pytest.raises(RuntimeError, match="bias should contain 16 elements not 8"):
        native.layer_norm_forward(Operands(x, torch.ones(2, 1, 8), torch.ones(8)), 8, EPS, save=False)
