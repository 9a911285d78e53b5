"""Batch norm, forward and backward, against float64: every shape, layout, dtype, kind of values and path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from normkit.contract import output_bound, unit_roundoff
from tests.cases import DTYPES, EPS, LARGE_SHAPES, LAYOUTS, SHAPES, VALUES, Shape, gaussian, generator
from tests.functional.norms import BACKENDS, EXACT_BACKENDS, assert_right, problem, threads, training
from tests.tolerances import assert_same, assert_statistics, assert_within

Layout = Callable[[Tensor], Tensor]
backends = pytest.mark.parametrize("backend", EXACT_BACKENDS)


@backends
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", (SHAPES | LARGE_SHAPES).values(), ids=SHAPES | LARGE_SHAPES)
def test_every_shape_and_layout(shape: Shape, layout: Layout, backend: str) -> None:
    with nk.backend(backend):
        assert_right(problem(shape, torch.float32, layout), training)


# Three shapes stand for the rest: one column, an image, rows with a tail; layouts are covered above.
@backends
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(33, 1), (4, 6, 5, 7), (301, 19)], ids=["column", "image", "rows"])
@pytest.mark.parametrize("values", VALUES)
def test_every_kind_of_values(values: str, shape: Shape, layout: str, backend: str) -> None:
    with nk.backend(backend):
        assert_right(problem(shape, torch.float32, LAYOUTS[layout], VALUES[values]), training)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype(dtype: torch.dtype, layout: str) -> None:
    """The path is chosen. float64 has no wider type to sum in: its mean is off by u, so xhat by u and not by u*xhat."""
    p = problem(SHAPES["nchw"], dtype, LAYOUTS[layout])
    assert_right(p, training, factor=1e3 if dtype == torch.float64 else 1.0)


@pytest.mark.parametrize("shape", ["nc_wide", "ncl", "nchw", "ncdhw"])
def test_pytorchs_own_kernels_on_benign_values(shape: str) -> None:
    """They sum in other orders and save float32 statistics: 8 times the bounds, at a mean of zero."""
    with nk.backend("aten"):
        assert_right(problem(SHAPES[shape], torch.float32, LAYOUTS["contiguous"]), training, factor=8.0)


@backends
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("m", [2, 33, 1_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("kappa", [0.0, 1.0, 1e2, 1e4, 1e6])
def test_the_grid_of_kappa_and_batch_size(kappa: float, m: int, layout: str, backend: str) -> None:
    """kappa = |mean|/std. At m = 2 a drawn std may be far below 1, so kappa is what the draw makes it, or more."""
    shape = (m, 3) if m < 1_000 else (m // 100, 3, 10, 10)
    p = problem(shape, torch.float32, LAYOUTS[layout], lambda s, g: gaussian(s, g, mean=kappa))
    with nk.backend(backend):
        assert_right(p, training)


@backends
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("values", ["standard", "kappa_1e2", "kappa_1e4", "denormal", "outlier"])
@pytest.mark.parametrize("shape", ["nc_wide", "nchw", "nchw_threads"])
def test_the_statistics_hold_their_bounds(shape: str, values: str, layout: str, backend: str) -> None:
    x = problem((SHAPES | LARGE_SHAPES)[shape], torch.float32, LAYOUTS[layout], VALUES[values]).x
    layer = nk.BatchNorm1d(x.shape[1], momentum=1.0) if x.dim() < 4 else nk.BatchNorm2d(x.shape[1], momentum=1.0)
    with nk.backend(backend):
        layer(x)
    axes = (0, *range(2, x.dim()))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert_statistics(layer.running_mean, layer.running_var, x.double().mean(axes), x.double().var(axes))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_at_a_large_mean(backend: str, layout: Layout) -> None:
    """The obvious x*scale + shift would lose kappa*u here. PyTorch's kernel does it so, and only has to be near."""
    p = problem(SHAPES["nchw"], torch.float32, layout, VALUES["kappa_1e4"])
    mean, var = torch.full((6,), -1e4), torch.full((6,), 1.5)
    mean64, var64, w64, b64 = mean.double(), var.double(), p.weight.double(), p.bias.double()
    y64 = reference.batch_norm_inference(p.x.double(), mean64, var64, w64, b64, EPS)
    xhat = reference.batch_norm_inference(p.x.double(), mean64, var64, None, None, EPS)
    bound = output_bound(xhat, p.channel(w64), p.channel(b64), unit_roundoff(torch.float32))
    with nk.backend(backend):
        y = nk.functional.batch_norm(p.x, mean, var, p.weight, p.bias, False, eps=EPS)
    assert_within(y, y64, bound if backend != "aten" else 1e4 * 2**-22, "y")


@backends
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_the_backward_of_evaluation(layout: str, backend: str) -> None:
    p = problem(SHAPES["nchw"], torch.float32, LAYOUTS[layout])
    mean, var = gaussian((6,), generator(1)).float(), torch.linspace(0.1, 3, 6)
    x, weight, bias = (t.detach().requires_grad_() for t in (p.x, p.weight, p.bias))
    with nk.backend(backend):
        y = nk.functional.batch_norm(x, mean, var, weight, bias, False, eps=EPS)
        got = torch.autograd.grad(y, (x, weight, bias), p.dy)
    expected = reference.batch_norm_inference_backward(
        p.dy.double(), p.x.double(), mean.double(), var.double(), p.weight.double(), EPS
    )
    u = unit_roundoff(torch.float32)
    xhat = reference.batch_norm_inference(p.x.double(), mean.double(), var.double(), None, None, EPS)
    terms = ((p.dy.double() * xhat).abs().sum(p.axes), p.dy.double().abs().sum(p.axes))
    assert_within(got[0], expected[0], 8 * u * expected[0].abs(), "dx")
    for name, a, b, size in zip(("dweight", "dbias"), got[1:], expected[1:], terms, strict=True):
        assert_within(a, b, 16 * u * size, name)


@backends
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", LARGE_SHAPES.values(), ids=LARGE_SHAPES)
def test_the_result_does_not_depend_on_the_number_of_threads(shape: Shape, layout: str, backend: str) -> None:
    """Bitwise on the native path, whose blocks are fixed; PyTorch's sums split by thread, so there to float32."""
    p = problem(shape, torch.float32, LAYOUTS[layout], VALUES["kappa_1e2"])
    results = []
    for count in (1, 2):
        x = p.x.detach().requires_grad_()
        with threads(count), nk.backend(backend):
            y = training(x, p.weight, p.bias)
            results.append((y.detach(), *torch.autograd.grad(y, x, p.dy)))
    for one, two in zip(*results, strict=True):
        if backend == "native":
            assert_same(one, two)
        else:
            assert_within(one, two.double(), 2 * unit_roundoff(torch.float32) * two.abs().double() + 1e-12)


@backends
def test_weight_and_bias_are_optional_one_by_one(backend: str) -> None:
    p = problem(SHAPES["nchw"], torch.float32, LAYOUTS["contiguous"])
    with nk.backend(backend):
        for weight, bias in ((p.weight, None), (None, p.bias), (None, None)):
            y = training(p.x, weight, bias)
            w64, b64 = (None if v is None else v.double() for v in (weight, bias))
            y64, _, _ = reference.batch_norm(p.x.double(), w64, b64, EPS)
            assert_within(y, y64, 8 * unit_roundoff(torch.float32) * (y64.abs() + 2 * p.channel(p.bias).abs()))


@backends
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_value_spoils_its_own_channel_alone(bad: float, backend: str) -> None:
    p = problem(SHAPES["nchw"], torch.float32, LAYOUTS["channels_last"])
    x = p.x.clone()
    x[1, 2, 0, 0] = bad
    with nk.backend(backend):
        y, clean = training(x, p.weight, p.bias), training(p.x, p.weight, p.bias)
    assert not y[:, 2].isfinite().any()
    others = [0, 1, 3, 4, 5]
    assert_same(y[:, others], clean[:, others])


@backends
def test_the_gradient_of_the_input_alone_and_of_the_parameters_alone(backend: str) -> None:
    """needs_input_grad in every pattern gives the same numbers as all together."""
    p = problem(SHAPES["nchw"], torch.float32, LAYOUTS["contiguous"])
    with nk.backend(backend):
        wanted = [t.detach().requires_grad_() for t in (p.x, p.weight, p.bias)]
        together = torch.autograd.grad(training(*wanted), wanted, p.dy)
        for i, expected in enumerate(together):
            tensors = [t.detach().requires_grad_(i == j) for j, t in enumerate((p.x, p.weight, p.bias))]
            (alone,) = torch.autograd.grad(training(*tensors), tensors[i], p.dy)
            assert_same(alone, expected)
