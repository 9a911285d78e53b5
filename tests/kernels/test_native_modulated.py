"""Modulated norms in the native kernels: every number of channels, element types, instruction sets, threads."""

from __future__ import annotations

import pytest
import torch

from normkit._activation import NONE
from normkit._operands import Needs, Operands
from normkit.kernels import native
from tests.cases import EPS, LAYOUTS, gaussian, generator
from tests.functional.modulation import NORMS, ROWS, check, drawn, f, problem
from tests.functional.norms import threads
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

CHANNELS = ("batch", "evaluation", "group", "instance")
TAILS = (*range(1, 36), 48, 63, 64, 65, 70)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CHANNELS)
def test_a_scale_per_sample_and_channel_whatever_their_number(name: str, layout: str) -> None:
    for channels in TAILS:
        check(name, "short", torch.float32, LAYOUTS[layout], "native", shape=(3, channels, 3, 3))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", [*CHANNELS, *ROWS])
def test_a_scale_per_element_whatever_the_width(name: str) -> None:
    for width in TAILS[1:]:
        check(name, "element", torch.float32, LAYOUTS["contiguous"], "native", shape=(2, 6, 1, width))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("which", "layout"), [("short", "channels_last"), ("element", "contiguous")])
@pytest.mark.parametrize("name", [*CHANNELS, *ROWS])
def test_other_element_types(name: str, which: str, layout: str, dtype: torch.dtype) -> None:
    for shape in ((3, 6, 3, 5), (2, 33, 2, 17)):
        check(name, which, dtype, LAYOUTS[layout], "native", narrow=True, shape=shape)


@pytest.mark.parametrize(("which", "layout"), [("short", "channels_last"), ("element", "contiguous")])
@pytest.mark.parametrize("name", [*CHANNELS, *ROWS])
def test_the_same_bits_on_any_number_of_threads(name: str, which: str, layout: str) -> None:
    g, results = generator(2), []
    for shape in ((40, 24, 20, 20), (3, 48, 40, 40)):  # samples for each thread; threads for each sample
        x, w, b = problem(name, g, torch.float32, shape)
        leaves = [LAYOUTS[layout](x), w, b, *drawn(name, which, g, torch.float32, shape)]
        leaves = [t.detach().requires_grad_() for t in leaves]
        wanted = [t for i, t in enumerate(leaves) if not (name == "rms" and i == 2)]
        dz = LAYOUTS[layout](gaussian(shape, g).float())
        for count in (1, 2):
            with threads(count):
                z = NORMS[name](*leaves[:3], modulate=(leaves[3], leaves[4]))
                results.append([z, *torch.autograd.grad(z, wanted, dz)])
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)
        results.clear()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("channels", [3, 16, 33])
def test_each_sample_channels_last_is_as_alone(channels: int, activation: str, residual: bool) -> None:
    g = generator(3)
    shape = (5, channels, 6, 7)
    x, r = (LAYOUTS["channels_last"](gaussian(shape, g).float()).requires_grad_() for _ in range(2))
    scale, shift = (gaussian(shape[:2], g).float() for _ in range(2))
    dz = LAYOUTS["channels_last"](gaussian(shape, g).float())
    added = {"residual": r} if residual else {}
    z = f.group_norm(x, 1, eps=EPS, modulate=(scale, shift), activation=activation, **added)
    leaves = [x, r] if residual else [x]
    found = [z, *torch.autograd.grad(z, leaves, dz)]
    alone = []
    for i in range(len(x)):
        one = {name: t[i : i + 1] for name, t in added.items()}
        y = f.group_norm(x[i : i + 1], 1, scale[i], shift[i], EPS, activation=activation, **one)
        alone.append([y, *(t[i : i + 1] for t in torch.autograd.grad(y, leaves, dz[i : i + 1]))])
    for whole, *parts in zip(found, *alone, strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_a_weight_of_samples_beside_the_statistics_of_a_batch_is_told() -> None:
    x, weight = torch.randn(3, 4, 5), torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"weight may be \(N, C\) beside statistics that are given"):
        native._channel_forward(x, None, weight, None, None, None, 0, EPS, 0, 0.0, False, ())
    with pytest.raises(RuntimeError, match="bias should contain 12 elements not 4"):
        native.group_norm_forward(Operands(x, weight, torch.ones(4)), 2, NONE, EPS, save=False)


def test_what_does_not_fit_elements_is_told() -> None:
    x = torch.randn(3, 4, 5)
    given = torch.zeros(4), torch.ones(4)
    for operands, kind, size, text in (
        (Operands(x, scale=x[:2], shift=x), 1, 2, r"scale must have the sizes \[3, 4, 5\], got \[2, 4, 5\]"),
        (Operands(x, scale=x, shift=x), 1, 3, r"input must be \(N, C, \*\) with values and 3 groups of channels"),
        (Operands(x, scale=x, shift=x), 2, 7, "input must have rows of 7 elements"),
        (Operands(x, torch.ones(5), scale=x, shift=x), 1, 2, "weight should contain 4 elements not 5"),
    ):
        with pytest.raises(RuntimeError, match=text):
            native.element_forward(operands, None, kind, size, EPS, save=False)
    with pytest.raises(ValueError, match="mean and var belong to statistics that are given"):
        native.element_forward(Operands(x, scale=x, shift=x), given, 1, 4, EPS, save=False)


def test_gradients_that_nobody_needs_are_not_made() -> None:
    x = torch.randn(3, 4, 5)
    operands = Operands(x, torch.ones(4), torch.ones(4), scale=x, shift=x)
    z, stats = native.element_forward(operands, None, 1, 2, EPS, save=True)
    assert z.shape == x.shape
    assert stats is not None
    assert stats.shape == (3, 6)
    whole = native.element_backward(x, operands, stats, 1, 2, Needs(True, True, True, True), training=True)
    for i in range(4):
        needs = [j == i for j in range(4)]
        found = native.element_backward(x, operands, stats, 1, 2, needs, training=True)
        for j, gradient in enumerate(found):
            expected = whole[j]
            assert expected is not None
            assert (gradient is None) if j != i else torch.equal(gradient, expected)
