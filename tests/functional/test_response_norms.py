"""Filter response and global response norm: the reference's values and gradients, masks, layers, programs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from tests.cases import EPS, LAYOUTS, gaussian, generator, random_mask
from tests.functional.rows import assert_mask_selects
from tests.tolerances import assert_equal64

f = nk.functional
C = 4
SPACES = [(5,), (3, 4), (2, 3, 2), (1, 1)]


def parameters(count: int) -> list[Tensor]:
    g = generator(2)
    return [gaussian((C,), g, mean=0.5).requires_grad_() for _ in range(count)]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_filter_response_norm_is_the_references(space: tuple[int, ...], masked: bool) -> None:
    g, shape = generator(1), (5, C, *space)
    x, dy = gaussian(shape, g, mean=0.3).requires_grad_(), gaussian(shape, g)
    weight, bias, threshold = parameters(3)
    eps, mask = torch.tensor([-EPS], dtype=torch.float64).requires_grad_(), random_mask(shape, g) if masked else None
    y = f.filter_response_norm(x, weight, bias, threshold, eps, mask=mask)
    assert_equal64(y, reference.filter_response_norm(x, weight, bias, threshold, EPS, mask))
    found = torch.autograd.grad(y, [x, weight, bias, threshold, eps], dy)
    truth = reference.filter_response_norm_backward(dy, x.detach(), weight, bias, threshold, EPS, mask)
    for name, a, b in zip(("dx", "dweight", "dbias", "dthreshold"), found, truth, strict=False):
        assert_equal64(a, b.detach(), name)
    assert_equal64(found[4], -truth[4].detach().reshape(1), "deps, of an eps below zero")


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_global_response_norm_is_the_references(space: tuple[int, ...], masked: bool) -> None:
    g, shape = generator(1), (5, C, *space)
    x, dy = gaussian(shape, g, mean=0.3), gaussian(shape, g)
    x[:, 1] = 0  # a channel without a norm
    x, (weight, bias) = x.requires_grad_(), parameters(2)
    mask = random_mask(shape, g) if masked else None
    y = f.global_response_norm(x, weight, bias, EPS, mask=mask)
    assert_equal64(y, reference.global_response_norm(x, weight, bias, EPS, mask))
    found = torch.autograd.grad(y, [x, weight, bias], dy)
    truth = reference.global_response_norm_backward(dy, x.detach(), weight.detach(), EPS, mask)
    for name, a, b in zip(("dx", "dweight", "dbias"), found, truth, strict=True):
        assert_equal64(a, b, name)


def filtered(x: Tensor, w: Tensor, b: Tensor, t: Tensor, **options: Any) -> Tensor:
    return f.filter_response_norm(x, w, b, t, EPS, **options)


def responding(x: Tensor, w: Tensor, b: Tensor, t: Tensor, **options: Any) -> Tensor:
    return f.global_response_norm(x, w * t, b, EPS, **options)


each = pytest.mark.parametrize("norm", [filtered, responding])


@each
def test_without_positions_it_is_that_of_one_position(norm: Any) -> None:
    x, given = gaussian((6, C), generator(1)), parameters(3)
    assert_equal64(norm(x, *given), norm(x[..., None], *given)[..., 0])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # forward mode loads scripted formulas
@each
def test_derivatives_of_the_second_order_and_forward_mode(norm: Any) -> None:
    given = [gaussian((2, C, 3), generator(1)).requires_grad_(), *parameters(3)]
    assert torch.autograd.gradcheck(norm, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(norm, given)


@each
def test_what_a_mask_hides_gets_out_nowhere(norm: Any) -> None:
    g = generator(3)
    x, mask = gaussian((5, C, 3, 4), g), torch.rand(5, 3, 4, generator=g) < 0.6
    mask[1] = False  # a sample without a value
    assert_mask_selects(lambda *given: norm(*given, mask=mask), x, mask.unsqueeze(1), parameters(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each
def test_it_rounds_once(norm: Any, dtype: torch.dtype) -> None:
    x, given = gaussian((3, C, 8, 8), generator(1)).to(dtype), parameters(3)
    assert torch.equal(norm(x, *given), norm(x.double(), *given).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@each
def test_any_layout(norm: Any, layout: Any) -> None:
    x, given = gaussian((3, C, 4, 5), generator(1)), parameters(3)
    torch.testing.assert_close(norm(layout(x), *given), norm(x, *given))


@each
def test_wrong_tensors_are_refused(norm: Any) -> None:
    w, b, t = parameters(3)
    with pytest.raises(RuntimeError, match=r"expected an input \(N, C, \*\), got the shape \(4,\)"):
        norm(torch.ones(4), w, b, t)
    with pytest.raises(RuntimeError, match="bias should contain 3 elements not 4"):
        norm(torch.ones(2, 3, 5), w[:3], b, t[:3])
    with pytest.raises(NotImplementedError, match="not implemented for"):
        norm(torch.ones(2, C, 5, dtype=torch.int64), w, b, t)


LAYERS: dict[str, Any] = {
    "filter": lambda **options: nk.FilterResponseNorm(C, EPS, extra_eps=0.1, **options),
    "global": lambda **options: nk.GlobalResponseNorm(C, EPS, **options),
}
layers = pytest.mark.parametrize("name", LAYERS)


def test_a_filter_response_norm_begins_as_norm_and_relu() -> None:
    x = gaussian((3, C, 4, 5), generator(1)).float()
    normalized = x / (x.square().mean((2, 3), keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(nk.FilterResponseNorm(C, EPS)(x), normalized.relu())
    torch.testing.assert_close(nk.FilterResponseNorm(C, EPS, affine=False, threshold=False)(x), normalized)
    small = x / (x.square().mean((2, 3), keepdim=True) + EPS + 0.1).sqrt()
    torch.testing.assert_close(LAYERS["filter"](threshold=False)(x), small)
    assert dict(nk.FilterResponseNorm(C, affine=False, threshold=False).named_parameters()) == {}


def test_a_global_response_norm_begins_as_the_identity() -> None:
    x = gaussian((3, C, 4, 5), generator(1)).float()
    assert torch.equal(nk.GlobalResponseNorm(C)(x), x)


@layers
def test_state_repr_and_copies(name: str) -> None:
    layer, x = LAYERS[name](), gaussian((3, C, 4), generator(1)).float()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter += 0.1 * (i + 1)
    other = LAYERS[name]()
    other.load_state_dict(layer.state_dict())
    for again in (other, copy.deepcopy(layer)):
        assert torch.equal(again(x), layer(x))
    layer.reset_parameters()
    assert torch.equal(layer(x), LAYERS[name]()(x))
    assert f"{C}, eps={EPS}" in repr(layer)
    assert all(p.is_meta for p in LAYERS[name](device="meta").parameters())


@pytest.mark.filterwarnings("ignore")  # Dynamo warns about itself
@layers
def test_compiled_exported_and_traced(name: str) -> None:
    torch._dynamo.reset()
    layer, x = LAYERS[name](), gaussian((3, C, 4, 5), generator(1)).float()
    expected = layer(x)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), expected)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), expected)
    assert "normkit" not in str(program.graph)
    graph = torch.fx.symbolic_trace(nn.Sequential(layer))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    torch._dynamo.reset()


@layers
def test_surgery_and_the_doctor_leave_it_alone(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 3), LAYERS[name](), nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))
    x = torch.randn(4, 3, 9, 9, generator=generator(1))
    fast = nk.accelerate(model, x)
    assert type(fast[1]) is type(model[1])
    torch.testing.assert_close(fast.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
