"""An addition and the norm behind it as one call: to the bit what the two give one after the other, and right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from normkit.contract import input_gradient_bound, mean_over, output_bound, parameter_gradient_bound, unit_roundoff
from normkit.kernels import native
from tests.cases import DTYPES, EPS, LAYOUTS, VALUES, affine, gaussian, generator
from tests.functional.norms import threads
from tests.tolerances import assert_same, assert_within

f = nk.functional
NAMES = ("rms", "layer")
# rows and widths: every tail, one value, few rows, many, wider than a row is taken whole
SHAPES = [(1, 1), (3, 2, 5), (7, 16), (5, 33), (2, 67, 130), (1030, 48), (3, 16401)]
needs_core = pytest.mark.skipif(not native.available(), reason="one pass is the native core's")


def in_one(name: str, x: Tensor, r: Tensor, w: Tensor | None, b: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    if name == "rms":
        return f.add_rms_norm(x, r, x.shape[-1:], w, EPS, **options)
    return f.add_layer_norm(x, r, x.shape[-1:], w, b, EPS, **options)


def in_two(name: str, x: Tensor, r: Tensor, w: Tensor | None, b: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    total = x + r
    if name == "rms":
        return f.rms_norm(total, x.shape[-1:], w, EPS, **options), total
    return f.layer_norm(total, x.shape[-1:], w, b, EPS, **options), total


def drawn(shape: tuple[int, ...], dtype: torch.dtype, parameters: torch.dtype | None = None) -> list[Tensor]:
    """x, residual, weight, bias, as leaves."""
    g = generator(1)
    w, b = affine(shape[-1], g)
    tensors = [gaussian(shape, g).to(dtype), gaussian(shape, g).to(dtype), *(t.to(parameters or dtype) for t in (w, b))]
    return [t.requires_grad_() for t in tensors]


def results(call: Callable[..., Any], name: str, leaves: list[Tensor], outputs: tuple[int, ...] = (0, 1)) -> list[Any]:
    """y, the sum, and the gradients by those outputs."""
    made = call(name, *leaves)
    slopes = [torch.randn(y.shape, generator=generator(2 + i)).to(y.dtype) for i, y in enumerate(made)]
    found = torch.autograd.grad([made[i] for i in outputs], leaves, [slopes[i] for i in outputs], allow_unused=True)
    return [*made, *found]


def assert_equal(these: list[Any], those: list[Any]) -> None:
    for a, b in zip(these, those, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_same(a, b)


@pytest.mark.parametrize("outputs", [(0, 1), (0,), (1,)], ids=["both", "norm", "sum"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_one_call_is_the_two_operations_to_the_bit(name: str, dtype: torch.dtype, outputs: tuple[int, ...]) -> None:
    for shape in SHAPES:
        leaves = drawn(shape, dtype)
        assert_equal(results(in_one, name, leaves, outputs), results(in_two, name, leaves, outputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_wide_parameters_beside_half_rows(name: str, dtype: torch.dtype) -> None:
    leaves = drawn((6, 50), dtype, torch.float32)
    assert_equal(results(in_one, name, leaves), results(in_two, name, leaves))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_every_regime_is_within_the_contract(name: str, values: Any) -> None:
    g, u = generator(3), unit_roundoff(torch.float32)
    x, r = values((6, 50), g).float(), gaussian((6, 50), g).float()
    w, b = (t.float().requires_grad_() for t in affine(50, g))
    leaves = [x.requires_grad_(), r.requires_grad_(), w, b]
    dy, dsum = (gaussian((6, 50), g).float() for _ in range(2))
    y, total = in_one(name, *leaves)
    found = torch.autograd.grad([y, total], leaves, [dy, dsum], allow_unused=True)
    t64, w64, b64, dy64 = (t.detach().double() for t in (total, w, b, dy))
    assert torch.equal(total, (x + r).detach())
    if name == "rms":
        b64, mean = torch.zeros_like(b64), torch.zeros(6, 1).double()
        y64, mean_square = reference.rms_norm(t64, (50,), w64, EPS)
        rstd = (mean_square + EPS).rsqrt().unsqueeze(-1)
        dx64, dweight64 = reference.add_rms_norm_backward(dy64, dsum.double(), t64, (50,), w64, EPS)
    else:
        y64, mean64, var = reference.layer_norm(t64, (50,), w64, b64, EPS)
        mean, rstd = mean64.unsqueeze(-1), (var + EPS).rsqrt().unsqueeze(-1)
        dx64, dweight64, dbias64 = reference.add_layer_norm_backward(dy64, dsum.double(), t64, (50,), w64, EPS)
        assert found[3] is not None
        assert_within(found[3], dbias64, parameter_gradient_bound(dy64, (0,), u), "dbias")
    xhat = (t64 - mean) * rstd
    assert_within(y, y64, output_bound(xhat, w64, b64, u), "y")
    bound = input_gradient_bound(dy64 * w64, xhat, rstd, mean_over((1,)), u)
    assert_within(found[0], dx64, bound + 2 * u * (dsum.double().abs() + dx64.abs()), "dx")  # the addition rounds too
    assert torch.equal(found[0], found[1])
    assert_within(found[2], dweight64, parameter_gradient_bound(dy64 * xhat, (0,), u), "dweight")


@needs_core
def test_it_is_one_node_that_keeps_the_sum_alone() -> None:
    kept: list[Tensor] = []
    x, r, w, _ = drawn((4, 8), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y, total = f.add_rms_norm(x, r, (8,), w, EPS)
    assert y.grad_fn is total.grad_fn
    assert sum(t.shape == x.shape and t.dtype == x.dtype for t in kept) == 1


@needs_core
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    leaves = drawn((1031, 130), torch.bfloat16)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(results(in_one, name, leaves))
    assert_equal(found[0], found[1])
    assert_equal(found[0], found[2])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_any_layout(name: str, layout: Callable[[Tensor], Tensor]) -> None:
    x, r, w, b = drawn((3, 6, 4), torch.float32)
    for leaves in ([layout(x.detach()), r, w, b], [x, layout(r.detach()), w, b]):
        leaves = [leaf.requires_grad_() for leaf in leaves]
        assert_equal(results(in_one, name, leaves), results(in_two, name, leaves))
        assert in_one(name, *leaves)[1].stride() == (leaves[0] + leaves[1]).stride()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_core_does_not_take_is_two_operations(name: str) -> None:
    x, r, w, b = drawn((6, 8), torch.float32)
    half = x.detach().bfloat16().requires_grad_()  # beside a residual of float32, as under autocast
    assert in_one(name, half, r, w, b)[1].dtype == torch.float32
    assert_equal(results(in_one, name, [half, r, w, b]), results(in_two, name, [half, r, w, b]))
    options: dict[str, Any] = {"activation": "gelu", "mask": torch.arange(6) < 4}
    assert_equal([*in_one(name, x, r, w, b, **options)], [*in_two(name, x, r, w, b, **options)])
    assert [t.shape for t in in_one(name, x[:0], r[:0], w, b)] == [(0, 8), (0, 8)]
    for backend in ("composed", "aten"):
        with nk.backend(backend):
            assert_equal(results(in_one, name, [x, r, w, b]), results(in_two, name, [x, r, w, b]))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_one_value_has_the_gradient_of_the_sum_alone(name: str) -> None:
    leaves = drawn((5, 1), torch.float32)
    assert_equal(results(in_one, name, leaves), results(in_two, name, leaves))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_the_second_order(name: str) -> None:
    leaves = drawn((3, 5), torch.float64)
    if name == "rms":
        leaves = leaves[:3]
    call = lambda *given: in_one(name, *given, *[None] * (4 - len(given)))  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_may_be_combined_later(name: str) -> None:
    """The sum is both an output and what the backward reads: the next block adds to it."""
    leaves = drawn((4, 8), torch.float32)

    def chain(call: Callable[..., Any]) -> list[Tensor]:
        x, r, w, b = leaves
        y, total = call(name, x, r, w, b)
        y, total = call(name, y.sin(), total, w, b)
        return list(torch.autograd.grad((y * total).sum(), [x, r, w, *([b] if name == "layer" else [])]))

    assert_equal(chain(in_one), chain(in_two))


@pytest.mark.parametrize("name", NAMES)
def test_a_sum_that_is_changed_in_place_is_refused_as_after_two_operations(name: str) -> None:
    """The operations without a core have made a wider copy, which nobody has changed."""
    assert refused(in_one, name) == refused(in_two, name) == native.available()


def refused(call: Any, name: str) -> bool:
    y, total = call(name, *drawn((4, 8), torch.float32))
    with torch.no_grad():
        total.add_(1)
    try:
        y.sum().backward()
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)
    return False


@pytest.mark.filterwarnings("ignore")  # Dynamo warns about itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_it_is_one_operator(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    leaves, graphs = drawn((4, 6, 8), dtype), []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda *given: in_one(name, *given, activation="silu"), backend=keep, fullgraph=True)
    made = compiled(*leaves)
    if native.available():
        assert f"add_{name}_norm" in str(graphs[0].graph)
    compiled = torch.compile(lambda *given: in_one(name, *given), backend="aot_eager", fullgraph=True)
    assert_equal([*made], [*in_two(name, *leaves, activation="silu")])
    for outputs in ((0, 1), (0,), (1,)):
        found = results(lambda _, *given: compiled(*given), name, leaves, outputs)
        expected = results(in_two, name, leaves, outputs)
        assert_equal(found[:4], expected[:4])
        for a, b in zip(found[4:], expected[4:], strict=True):
            assert a is None or b is None or torch.equal(a, b)  # a compiled graph gives zeros where nothing flows
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_exported_it_needs_no_normkit(name: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, r: Tensor) -> Any:
            return in_one(name, x, r, None, None)

    x, r = (t.detach() for t in drawn((4, 8), torch.float32)[:2])
    program = torch.export.export(Model(), (x, r))
    assert "normkit" not in str(program.graph)
    torch.testing.assert_close(program.module()(x, r), in_two(name, x, r, None, None))


@pytest.mark.parametrize("name", NAMES)
def test_a_residual_of_another_shape_is_refused(name: str) -> None:
    x, r, w, b = drawn((4, 8), torch.float32)
    with pytest.raises(ValueError, match="residual must have the input's shape"):
        in_one(name, x, r[:1], w, b)
    with pytest.raises(TypeError, match="residual must be a Tensor"):
        in_one(name, x, 1.0, w, b)  # type: ignore[arg-type]
