"""Tensors of more than 2^31 elements, where an index of 32 bits overflows: real memory, so nightly and one at a time.

Compared with float64 are the first and the last of the parts that no other part changes: a channel, a group of
channels, some rows. A channel spans the whole tensor, the last rows end it. Parameters' gradients of layer and RMS norm
are left out: they sum over all rows, at the addresses that the input's gradient is written to.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import contract, reference
from normkit.kernels import memory
from tests.cases import EPS, affine, generator
from tests.tolerances import assert_statistics, assert_within

pytestmark = pytest.mark.nightly
GIB = 1 << 30
IMAGES = (8_250, 256, 32, 32)  # 2.16e9 elements: 4.03 GiB in 16 bits
ROWS = (IMAGES[0] * IMAGES[1], 1_024)  # as many
COUNT = math.prod(IMAGES)
assert COUNT == math.prod(ROWS) > 2**31
SCRATCH = GIB  # a part in float64, some ten times over
BLOCK = (1 << 20) - 1  # values drawn once and repeated: no divisor of a row or channel, so that these differ

Run = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, weight, bias) -> y
Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]  # (dy, x, weight) -> (dx, dweight, ...)


@dataclass(frozen=True)
class Family:
    """A norm, and one part of its input: `length` positions of `axis`, whose statistics run over `axes`."""

    shape: tuple[int, ...]
    axis: int
    length: int
    axes: tuple[int, ...]
    run: Run
    truth: Run
    backward: Backward

    def part(self, tensor: Tensor, last: bool) -> Tensor:
        return tensor.narrow(self.axis, tensor.shape[self.axis] - self.length if last else 0, self.length).double()

    def parameter(self, tensor: Tensor, last: bool) -> Tensor:
        """That of the part: a channel has a weight of its own, a row has all of them."""
        return tensor.double() if self.axis == 0 else tensor[-self.length if last else 0 :][: self.length].double()

    def beside(self, parameter: Tensor) -> Tensor:
        """Laid out to broadcast against a part."""
        return parameter if self.axis == 0 else parameter.view(-1, 1, 1)


FAMILIES: dict[str, Family] = {
    "batch_norm": Family(
        IMAGES, 1, 1, (0, 2, 3),
        lambda x, w, b: nk.functional.batch_norm(x, None, None, w, b, True, eps=EPS),
        lambda x, w, b: reference.batch_norm(x, w, b, EPS)[0],
        lambda dy, x, w: reference.batch_norm_backward_collapsed(dy, x, w, EPS)),
    "group_norm": Family(
        IMAGES, 1, 2, (1, 2, 3),
        lambda x, w, b: nk.functional.group_norm(x, 128, w, b, EPS),
        lambda x, w, b: reference.group_norm(x, 1, w, b, EPS)[0],
        lambda dy, x, w: reference.group_norm_backward_collapsed(dy, x, 1, w, EPS)),
    "instance_norm": Family(
        IMAGES, 1, 1, (2, 3),
        lambda x, w, b: nk.functional.instance_norm(x, weight=w, bias=b, eps=EPS),
        lambda x, w, b: reference.instance_norm(x, w, b, EPS)[0],
        lambda dy, x, w: reference.instance_norm_backward(dy, x, w, EPS)),
    "layer_norm": Family(
        ROWS, 0, 1_000, (1,),
        lambda x, w, b: nk.functional.layer_norm(x, ROWS[1:], w, b, EPS),
        lambda x, w, b: reference.layer_norm(x, ROWS[1:], w, b, EPS)[0],
        lambda dy, x, w: reference.layer_norm_backward(dy, x, ROWS[1:], w, EPS)),
    "rms_norm": Family(
        ROWS, 0, 1_000, (1,),
        lambda x, w, b: nk.functional.rms_norm(x, ROWS[1:], w, EPS),
        lambda x, w, b: reference.rms_norm(x, ROWS[1:], w, EPS)[0],
        lambda dy, x, w: reference.rms_norm_backward(dy, x, ROWS[1:], w, EPS)),
}  # fmt: skip
CASES = [
    (name, layout)
    for name, family in FAMILIES.items()
    for layout in (("NCHW", "NHWC") if len(family.shape) == 4 else ("rows",))
]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}

cases = pytest.mark.parametrize(("name", "layout"), CASES, ids=["-".join(case) for case in CASES])
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def free() -> int:
    """Bytes that this process may still take, as the system has it."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    there = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return min(there, memory.available() or there)


def needs(tensors: int) -> None:
    """Skip where so many tensors of 16 bits find no room."""
    gc.collect()
    wanted, there = tensors * 2 * COUNT + SCRATCH, free()
    if there < wanted:
        pytest.skip(f"{wanted / GIB:.0f} GiB are needed and {there / GIB:.0f} are free")


def drawn(family: Family, layout: str, dtype: torch.dtype, seed: int, mean: float) -> Tensor:
    """Normal values of the family's shape: a block of them, again and again."""
    block = (mean + torch.randn(BLOCK, generator=generator(seed))).to(dtype)
    flat = torch.empty(COUNT, dtype=dtype)
    for start in range(0, flat.numel(), BLOCK):
        flat[start : start + BLOCK] = block[: flat.numel() - start]
    if layout != "NHWC":
        return flat.view(family.shape)
    n, channels, *space = family.shape
    return flat.view(n, *space, channels).movedim(-1, 1)


@cases
@dtypes
def test_the_forward(name: str, layout: str, dtype: torch.dtype) -> None:
    needs(2)  # x, y
    family = FAMILIES[name]
    x, (weight, bias) = drawn(family, layout, dtype, 0, 1.0), parameters(family)
    with torch.no_grad():
        y = family.run(x, weight, bias)
    for last in (False, True):
        assert_forward(family, x, y, weight, bias, last)


@cases
@dtypes
def test_the_backward(name: str, layout: str, dtype: torch.dtype) -> None:
    needs(4)  # x, y, dy, dx
    family = FAMILIES[name]
    x, (weight, bias) = drawn(family, layout, dtype, 0, 1.0).requires_grad_(), parameters(family)
    weight.requires_grad_()
    dy = drawn(family, layout, dtype, 1, 0.0)
    dx, dweight = torch.autograd.grad(family.run(x, weight, bias), (x, weight), dy)
    x, weight = x.detach(), weight.detach()
    u = contract.unit_roundoff(dtype)
    for last in (False, True):
        dy64, x64, w64 = family.part(dy, last), family.part(x, last), family.parameter(weight, last)
        expected = family.backward(dy64, x64, w64)
        xhat, dxhat = family.truth(x64, torch.ones_like(w64), torch.zeros_like(w64)), dy64 * family.beside(w64)
        bound = contract.input_gradient_bound(dxhat, xhat, rstd(family, x64), contract.mean_over(family.axes), u)
        assert_within(family.part(dx, last).to(dtype), expected[0], bound, "dx")
        if family.axis == 1:
            sums = contract.parameter_gradient_bound(dy64 * xhat, (0, 2, 3), contract.unit_roundoff(torch.float32))
            assert_within(family.parameter(dweight, last).float(), expected[1], sums, "dweight")


@dtypes
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_running_statistics_of_a_batch(layout: str, dtype: torch.dtype) -> None:
    needs(2)
    family = FAMILIES["batch_norm"]
    x, mean, var = drawn(family, layout, dtype, 0, 1.0), torch.zeros(IMAGES[1]), torch.ones(IMAGES[1])
    with torch.no_grad():
        nk.functional.batch_norm(x, mean, var, training=True, momentum=1.0)
    for c in (0, -1):
        channel = x[:, c].double()
        assert_statistics(mean[c], var[c], channel.mean(), channel.var())


def parameters(family: Family) -> tuple[Tensor, Tensor]:
    """weight, bias in float32; RMS norm adds no bias."""
    weight, bias = affine(family.shape[1], generator(2))
    return weight.float(), (0 * bias if family is FAMILIES["rms_norm"] else bias).float()


def rstd(family: Family, x64: Tensor) -> Tensor:
    """That of a part, laid out to broadcast."""
    mean = contract.mean_over(family.axes)
    centred = x64 if family is FAMILIES["rms_norm"] else x64 - mean(x64)
    return (mean(centred * centred) + EPS).rsqrt()


def assert_forward(family: Family, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, last: bool) -> None:
    """Raise unless a part of y holds the contract's bound."""
    w64, b64 = family.parameter(weight, last), family.parameter(bias, last)
    x64 = family.part(x, last)
    xhat = family.truth(x64, torch.ones_like(w64), torch.zeros_like(w64))
    bound = contract.output_bound(xhat, family.beside(w64), family.beside(b64), contract.unit_roundoff(y.dtype))
    assert_within(family.part(y, last).to(y.dtype), family.truth(x64, w64, b64), bound, "y")
