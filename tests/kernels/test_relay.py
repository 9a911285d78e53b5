"""Statistics within a sample, channels last, of samples cut into blocks: native/plan/relay.h shares them out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from normkit import functional as nkf
from normkit import reference
from tests.kernels.native_isa import needs_native

EPS = 2e-3
# samples of 2.3 MB and one at a time; of 150 KB and 13 at a time, the last chunk shorter; one sample
SHAPES = [(7, 48, 110, 110), (70, 24, 40, 40), (1, 24, 150, 150)]


def tensors(shape: tuple[int, ...]) -> list[Tensor]:
    """x, dy, weight, bias."""
    g = torch.Generator().manual_seed(3)
    return [*(torch.randn(shape, generator=g) for _ in range(2)), *torch.rand(2, shape[1], generator=g)]


def results(shape: tuple[int, ...], groups: int) -> list[Tensor]:
    """Output and gradients on as many threads as torch uses."""
    x, dy, weight, bias = tensors(shape)
    x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    leaves = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    y = nkf.group_norm(x, groups, weight, bias, EPS)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(results(shape, 8))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("groups", [1, 8, 24])
def test_each_sample_is_as_the_formula_says(groups: int) -> None:
    shape = (7, 24, 80, 160)  # 1.2 MB a sample
    x, dy, weight, bias = (t.double() for t in tensors(shape))
    expected = [
        reference.group_norm(x, groups, weight, bias, EPS)[0],
        *reference.group_norm_backward(dy, x, groups, weight, EPS),
    ]
    # outputs and dx: some roundings of values of order 1; dweight and dbias: 9e4 values of order 1, summed in double
    for ours, theirs in zip(results(shape, groups), expected, strict=True):
        assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


@needs_native
def test_callers_from_several_threads_do_not_meet() -> None:
    barrier = threading.Barrier(4)

    def call(_: int) -> list[Tensor]:
        barrier.wait(60)
        return results(SHAPES[1], 8)

    expected = results(SHAPES[1], 8)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(call, range(4)):
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b)
