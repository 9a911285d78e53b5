"""`modulate=(scale, shift)`: every norm on every path against the reference, in all its shapes; derivatives, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from normkit._activation import NONE, resolve
from normkit._operands import Operands
from normkit.contract import parameter_gradient_bound, unit_roundoff
from normkit.functional.batch_norm import BatchNormSpec
from normkit.functional.choose import choose
from normkit.functional.ghost_batch_norm import GhostBatchNormSpec
from normkit.functional.group_norm import GroupNormSpec
from normkit.functional.layer_norm import LayerNormSpec
from normkit.kernels import native
from tests.cases import DTYPES, EPS, LAYOUTS, affine, gaussian, generator, random_mask
from tests.functional.modulation import (
    FORMS,
    NORMS,
    ROWS,
    SHAPE,
    TRUTHS,
    C,
    H,
    N,
    W,
    check,
    drawn,
    each_backend,
    each_norm,
    f,
    laid,
    problem,
)
from tests.tolerances import assert_within


@each_backend
@pytest.mark.parametrize("which", FORMS)
@each_norm
def test_every_form_is_right(name: str, which: str, backend: str) -> None:
    for dtype in (torch.float32, torch.float64):
        check(name, which, dtype, LAYOUTS["contiguous"], backend)


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@each_norm
def test_every_layout_is_right_and_kept(name: str, layout: Any, backend: str) -> None:
    for which in ("sample_and_channel", "element", "short"):
        check(name, which, torch.float32, layout, backend)


@each_backend
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("dtype", [DTYPES["bf16"], DTYPES["f16"]], ids=["bf16", "f16"])
@each_norm
def test_half_precision_is_right(name: str, dtype: torch.dtype, narrow: bool, backend: str) -> None:
    for which in ("sample_and_channel", "short", "element"):
        check(name, which, dtype, LAYOUTS["contiguous"], backend, narrow)


@each_backend
@pytest.mark.parametrize("which", ["sample_and_channel", "element"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", torch.nn.PReLU(C)])
@pytest.mark.parametrize("name", ["batch", "evaluation", "group", "instance", "ghost"])
def test_the_residual_and_then_the_activation_follow(name: str, activation: Any, which: str, backend: str) -> None:
    g = generator(6)
    x, w, b = problem(name, g, torch.float32)
    scale, shift = drawn(name, which, g, torch.float32)
    r = gaussian(SHAPE, g).float()
    leaves = [t.requires_grad_() for t in (x, w, b, scale, shift, r)]
    with nk.backend(backend):
        z = NORMS[name](x, w, b, modulate=(scale, shift), residual=r, activation=activation)
    expected = NORMS[name](x, w, b) * scale + shift + r
    if activation is not None:
        expected = activation(expected) if callable(activation) else getattr(torch.nn.functional, activation)(expected)
    torch.testing.assert_close(z, expected)
    dz = gaussian(SHAPE, g).float()
    for a, e in zip(torch.autograd.grad(z, leaves, dz), torch.autograd.grad(expected, leaves, dz), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@each_norm
def test_one_of_the_two_may_be_none(name: str) -> None:
    g = generator(7)
    x, w, b = problem(name, g)
    scale, shift = drawn(name, "sample_and_channel", g)
    plain = NORMS[name](x, w, b)
    torch.testing.assert_close(NORMS[name](x, w, b, modulate=(scale, None)), plain * scale)
    torch.testing.assert_close(NORMS[name](x, w, b, modulate=[None, shift]), plain + shift)
    torch.testing.assert_close(NORMS[name](x, w, b, modulate=(None, None)), plain)
    for weight, bias in ((None, None), (w, None), (None, b)):
        if name != "rms":
            plain = NORMS[name](x, weight, bias)
            torch.testing.assert_close(NORMS[name](x, weight, bias, modulate=(scale, shift)), plain * scale + shift)


def test_the_response_norms_take_one_before_the_threshold() -> None:
    g = generator(8)
    x, (w, b), tau = gaussian(SHAPE, g), affine(C, g), gaussian((C,), g)
    scale, shift = drawn("batch", "short", g)
    z = f.filter_response_norm(x, w, b, tau, modulate=(scale, shift))
    s, t = scale[:, :, None, None], shift[:, :, None, None]
    plain = f.filter_response_norm(x, w, b)
    torch.testing.assert_close(z, torch.maximum(plain * s + t, tau.reshape(1, C, 1, 1)))
    z = f.global_response_norm(x, w, b, modulate=(scale, shift))
    torch.testing.assert_close(z, f.global_response_norm(x, w, b) * s + t)


def test_batch_renorm_takes_one() -> None:
    g = generator(8)
    x, w, b = problem("batch", g, torch.float32)
    modulate = drawn("batch", "sample_and_channel", g, torch.float32)
    given = [torch.linspace(-1, 1, C), torch.linspace(0.5, 2, C)]
    z = f.batch_renorm(x, *(t.clone() for t in given), w, b, True, eps=EPS, modulate=modulate)
    plain = f.batch_renorm(x, *(t.clone() for t in given), w, b, True, eps=EPS)
    torch.testing.assert_close(z, plain * modulate[0] + modulate[1])


@pytest.mark.parametrize("name", ["add_layer_norm", "add_rms_norm"])
def test_a_norm_after_an_addition_takes_one(name: str) -> None:
    g = generator(9)
    x, r, (w, _) = gaussian((2, 5, W), g), gaussian((2, 5, W), g), affine(W, g)
    scale, shift = 1 + gaussian((2, W), g), gaussian((2, 1, W), g)
    y, total = getattr(f, name)(x, r, (W,), w, eps=EPS, activation="gelu", modulate=(scale, shift))
    plain, _ = getattr(f, name)(x, r, (W,), w, eps=EPS)
    torch.testing.assert_close(y, torch.nn.functional.gelu(plain * scale[:, None] + shift))
    assert torch.equal(total, x + r)


def test_running_statistics_move_as_without_one() -> None:
    g = generator(10)
    x, w, b = problem("batch", g, torch.float32)
    for norm in (f.batch_norm, f.instance_norm):
        moved = []
        for modulate in (None, drawn("batch", "short", g, torch.float32)):
            mean, var = torch.zeros(C), torch.ones(C)
            norm(x, mean, var, w, b, True, modulate=modulate)
            moved.append((mean, var))
        for plain, other in zip(*moved, strict=True):
            assert torch.equal(plain, other)


@pytest.mark.parametrize("sizes", [(4, 6), (4, 6, 5), (4, 6, 2, 3, 2), (1, 6, 4), (0, 6, 4)], ids=str)
@pytest.mark.parametrize("name", ["batch", "evaluation", "group"])
def test_inputs_of_other_ranks_and_sizes(name: str, sizes: tuple[int, ...]) -> None:
    g = generator(20)
    x, (w, b) = gaussian(sizes, g), affine(C, g)
    both = gaussian((sizes[0], 2 * C), g)
    scale, shift = both.chunk(2, dim=1)  # views, as models have them
    leaves = [t.requires_grad_() for t in (x, w, b)]
    z = NORMS[name](*leaves, modulate=(scale, shift))
    beside = [t.reshape(sizes[0], C, *[1] * (len(sizes) - 2)) for t in (scale, shift)]
    expected = NORMS[name](*leaves) * beside[0] + beside[1]
    torch.testing.assert_close(z, expected)
    dz = gaussian(sizes, g)
    for a, e in zip(torch.autograd.grad(z, leaves, dz), torch.autograd.grad(expected, leaves, dz), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("sizes", [(2, 3, 4, W), (5, W), (W,), (3, 1, W), (0, 3, W), (2, 0, W)], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_other_ranks_and_sizes(name: str, sizes: tuple[int, ...]) -> None:
    g = generator(21)
    x, (w, b) = gaussian(sizes, g), affine(W, g)
    blocks = (*sizes[:-2], 1, W) if len(sizes) > 1 else (W,)
    scale, shift = gaussian(blocks, g), gaussian(blocks, g)
    leaves = [t.requires_grad_() for t in (x, w, scale, shift)]
    z = NORMS[name](x, w, b, modulate=(scale, shift))
    expected = NORMS[name](x, w, b) * scale + shift
    torch.testing.assert_close(z, expected)
    dz = gaussian(sizes, g)
    for a, e in zip(torch.autograd.grad(z, leaves, dz), torch.autograd.grad(expected, leaves, dz), strict=True):
        torch.testing.assert_close(a, e)


def test_rows_over_two_axes() -> None:
    g = generator(22)
    x, w, b = gaussian(SHAPE, g), gaussian((H, W), g), gaussian((H, W), g)
    scale, shift = gaussian((N, H, W), g), gaussian((N, 1, 1, W), g)
    z = f.layer_norm(x, (H, W), w, b, EPS, modulate=(scale, shift))
    torch.testing.assert_close(z, f.layer_norm(x, (H, W), w, b, EPS) * scale.unsqueeze(1) + shift)
    torch.testing.assert_close(
        f.layer_norm(x, (H, W), w, b, EPS, modulate=(w, None)), f.layer_norm(x, (H, W), w, b, EPS) * w
    )


@pytest.mark.parametrize("which", range(4), ids=["weight", "bias", "scale", "shift"])
@pytest.mark.parametrize("name", ["group", "layer"])
def test_a_tensor_whose_memory_was_freed_is_told(name: str, which: int) -> None:
    g = generator(23)
    x, w, b = problem(name, g, torch.float32)
    x = x[:, 0] if name == "layer" else x
    tensors = [w, b, *drawn(name, "short", g, torch.float32)]
    tensors[which].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="its data is not allocated yet"):
        NORMS[name](x, *tensors[:2], modulate=(tensors[2], tensors[3]))


@each_norm
@pytest.mark.parametrize("which", ["short", "element", "position"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_output_may_be_changed_in_place(name: str, which: str, layout: str) -> None:
    """A Function's output that is a view is one that autograd lets nobody change."""
    g = generator(27)
    x, w, b = problem(name, g, torch.float32)
    modulate = drawn(name, which, g, torch.float32)
    x = LAYOUTS[layout](x).requires_grad_()
    dz = gaussian(SHAPE, g).float()
    z = torch.relu_(NORMS[name](x, w, b, modulate=modulate).mul_(2))
    expected = torch.relu(NORMS[name](x, w, b, modulate=modulate) * 2)
    assert torch.equal(z, expected)
    for a, e in zip(torch.autograd.grad(z, x, dz), torch.autograd.grad(expected, x, dz), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("which", ["short", "element"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("std", [1e30, 1e-12], ids=str)
def test_the_gradient_of_a_batch_keeps_its_range(std: float, layout: str, which: str) -> None:
    """What its mean and variance add holds 1 / std twice."""
    g = generator(28)
    x, w, b = problem("batch", g)
    x, dz = (LAYOUTS[layout](t.float()) for t in (x * std, gaussian(SHAPE, g)))
    modulate = drawn("batch", which, g, torch.float32)
    leaf, leaf64 = x.requires_grad_(), x.detach().double().requires_grad_()
    z = f.batch_norm(leaf, None, None, w.float(), b.float(), True, eps=1e-30, modulate=modulate)
    y64 = reference.batch_norm(leaf64, w.float().double(), b.float().double(), 1e-30)[0]
    z64 = reference.modulate(y64, *(laid(t.double(), "batch") for t in modulate))
    (found,), (expected,) = torch.autograd.grad(z, leaf, dz), torch.autograd.grad(z64, leaf64, dz.double())
    torch.testing.assert_close(found.double() * std, expected * std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", ["short", "element"])
@pytest.mark.parametrize("name", ["batch", "evaluation", "group", "layer"])
def test_saved_tensors_may_come_back_in_other_strides(name: str, which: str) -> None:
    g = generator(29)
    x, w, b = problem(name, g, torch.float32)
    leaves = [t.requires_grad_() for t in (x, w, *drawn(name, which, g, torch.float32))]
    dz = gaussian(SHAPE, g).float()

    def permuted(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    plain = torch.autograd.grad(NORMS[name](x, w, b, modulate=(leaves[2], leaves[3])), leaves, dz)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, permuted):
        z = NORMS[name](x, w, b, modulate=(leaves[2], leaves[3]))
    for a, e in zip(torch.autograd.grad(z, leaves, dz), plain, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("which", ["sample", "sample_and_channel", "channel", "position", "number"])
@each_norm
def test_sums_of_many_equal_terms_lose_no_digits(name: str, which: str, masked: bool) -> None:
    n, c, h, w = shape = (1025, 16, 2, 3)
    g = generator(8)
    x, weight, bias = problem(name, g, torch.float32, shape)
    scale, shift = (t.requires_grad_() for t in drawn(name, which, g, torch.float32, shape))
    mask = None
    if masked:
        mask = torch.ones((n, c, h) if name in ROWS else (n, h, w), dtype=torch.bool)
    dz = torch.full(shape, 5 / 6)  # added in a row, such terms lose digits to one side
    z = NORMS[name](x, weight, bias, modulate=(scale, shift), mask=mask)
    dscale, dshift = torch.autograd.grad(z, (scale, shift), dz)
    y = TRUTHS[name](x.double(), weight.double(), bias.double())
    _, ds64, dt64 = reference.modulate_backward(
        dz.double(), y, laid(scale.detach(), name).double(), laid(shift.detach(), name).double()
    )
    over = [axis for axis, size in enumerate(laid(scale, name).shape) if size == 1]
    u = unit_roundoff(torch.float32)
    xhat = TRUTHS[name](x.double(), torch.ones_like(weight).double(), torch.zeros_like(bias).double())
    side = [
        t.double().reshape(1, 1, 1, -1) if name in ROWS else t.double().reshape(1, -1, 1, 1) for t in (weight, bias)
    ]
    terms = dz * ((xhat * side[0]).abs() + (0 if name == "rms" else side[1].abs()))
    for what, got, expected, each in (("dscale", dscale, ds64, terms), ("dshift", dshift, dt64, dz.double())):
        allowed = parameter_gradient_bound(each, over, u)
        assert_within(got, expected.reshape(got.shape), allowed.reshape(got.shape), what)


# --- masks
@each_norm
@pytest.mark.parametrize("which", ["sample_and_channel", "element"])
def test_nothing_under_a_mask_reaches_anything(name: str, which: str) -> None:
    g = generator(11)
    x, w, b = problem(name, g)
    modulate = drawn(name, which, g)
    mask = random_mask(SHAPE, g, 0.7) if name not in ROWS else torch.rand(N, C, H, generator=g) < 0.7
    hidden = ~(mask.unsqueeze(-1) if name in ROWS else mask.unsqueeze(1)).expand(SHAPE)
    results = []
    for poison in (0.0, torch.nan, torch.inf):
        tensors = [x, *modulate] if which == "element" else [x]
        leaves = [torch.where(hidden, poison, t).requires_grad_() for t in tensors]
        pair = leaves[1:] or list(modulate)
        z = NORMS[name](leaves[0], w, b, modulate=pair, mask=mask, activation="sigmoid")
        dz = torch.linspace(-1, 1, z.numel()).double().reshape(z.shape)
        results.append([z, *torch.autograd.grad(z, leaves, dz)])
    for result in results[0]:
        assert not result[hidden].any()
    for other in results[1:]:
        for a, e in zip(results[0], other, strict=True):
            assert torch.equal(a, e)
    plain = NORMS[name](x, w, b, mask=mask)
    expected = torch.sigmoid(plain * laid(modulate[0], name) + laid(modulate[1], name))
    torch.testing.assert_close(results[0][0][~hidden], expected[~hidden])


# --- derivatives, transforms, programs
@each_norm
@pytest.mark.parametrize("which", ["short", "sample", "element"])
def test_second_derivatives_and_forward_mode_are_right(name: str, which: str) -> None:
    g = generator(12)
    few = (N, C, 2, W)
    x, w, b = problem(name, g, shape=few)
    scale, shift = drawn(name, which, g, shape=few)
    leaves = [t.requires_grad_() for t in (x, w, b, scale, shift)]
    if name == "rms":
        leaves[2] = b.detach()

    def norm(*tensors: Tensor) -> Tensor:
        return NORMS[name](*tensors[:3], modulate=tensors[3:])[:2, :2]

    assert torch.autograd.gradcheck(norm, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(norm, leaves, fast_mode=True)


@each_norm
def test_vmap_maps_a_modulation(name: str) -> None:
    g = generator(13)
    x, w, b = problem(name, g, torch.float32)
    pairs = torch.stack([torch.stack(drawn(name, "short", g, torch.float32)) for _ in range(3)])
    mapped = torch.func.vmap(lambda pair: NORMS[name](x, w, b, modulate=(pair[0], pair[1])))(pairs)
    for i in range(3):
        torch.testing.assert_close(mapped[i], NORMS[name](x, w, b, modulate=tuple(pairs[i])))
    gradient = torch.func.grad(lambda s: NORMS[name](x, w, b, modulate=(s, None)).square().sum())
    scale = pairs[0, 0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(NORMS[name](x, w, b, modulate=(scale, None)).square().sum(), scale)
    torch.testing.assert_close(gradient(pairs[0, 0]), expected, rtol=1e-4, atol=1e-4)


@each_norm
@pytest.mark.parametrize("which", ["short", "element"])
def test_a_compiled_call_is_one_graph_with_the_same_numbers(name: str, which: str) -> None:
    torch._dynamo.reset()
    g = generator(14)
    x, w, b = problem(name, g, torch.float32)
    leaves = [t.requires_grad_() for t in (x, w, b, *drawn(name, which, g, torch.float32))]
    wanted = [t for t in leaves if not (name == "rms" and t is b)]

    def step(x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return NORMS[name](x, w, b, modulate=(scale, shift), activation="silu")

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    expected = step(*leaves)
    found = compiled(*leaves)
    torch.testing.assert_close(found, expected)
    dz = gaussian(SHAPE, g).float()
    for a, e in zip(torch.autograd.grad(found, wanted, dz), torch.autograd.grad(expected, wanted, dz), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@each_norm
def test_an_exported_program_needs_no_normkit(name: str) -> None:
    g = generator(15)
    x, w, b = problem(name, g, torch.float32)
    modulate = drawn(name, "short", g, torch.float32)

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return NORMS[name](x, w, b, modulate=(scale, shift), activation="relu")

    program = torch.export.export(Net(), (x, *modulate), strict=False)
    assert "normkit" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x, *modulate), Net()(x, *modulate))


def test_a_symbolic_trace_holds_one_node() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nk.GroupNorm(3, C)

        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return self.norm(x, modulate=(scale, shift))

    net, g = Net(), generator(16)
    traced = torch.fx.symbolic_trace(net)
    x, modulate = gaussian(SHAPE, g).float(), drawn("group", "short", g, torch.float32)
    assert [node.op for node in traced.graph.nodes].count("call_module") == 1
    torch.testing.assert_close(traced(x, *modulate), net(x, *modulate))


@pytest.mark.parametrize("name", ["layer", "group", "batch"])
def test_under_autocast_the_output_keeps_the_dtype_it_has_without_one(name: str) -> None:
    g = generator(17)
    x, w, b = problem(name, g, torch.float32)
    modulate = drawn(name, "short", g, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        z, plain = NORMS[name](x, w, b, modulate=modulate), NORMS[name](x, w, b)
    assert z.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(z, plain * laid(modulate[0].float(), name) + laid(modulate[1].float(), name))


@pytest.mark.parametrize("which", ["short", "element"])
def test_a_checkpoint_and_recomputed_outputs_give_the_same_gradients(which: str) -> None:
    g = generator(18)
    x, w, b = problem("group", g, torch.float32)
    leaves = [t.requires_grad_() for t in (x, w, b, *drawn("group", which, g, torch.float32))]

    def gradients(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves).sin().sum(), leaves)

    def step(*tensors: Tensor) -> Tensor:
        return NORMS["group"](*tensors[:3], modulate=tensors[3:], activation="relu")

    def recomputing(*tensors: Tensor) -> Tensor:
        with nk.recompute_outputs():
            return step(*tensors)

    plain = gradients(step)
    for other in (
        recomputing,
        lambda *tensors: torch.utils.checkpoint.checkpoint(step, *tensors, use_reentrant=False),
    ):
        for a, e in zip(gradients(other), plain, strict=True):
            assert torch.equal(a, e)


# --- what path, and errors
@pytest.mark.skipif(not native.available(), reason="the native core is not built")
def test_the_reason_says_what_becomes_of_it() -> None:
    x, scale, each = torch.randn(SHAPE), torch.randn(N, C, 1, 1), torch.randn(SHAPE)
    last = x.to(memory_format=torch.channels_last)
    as_weight = ("native", "as it is, the modulation as weight and bias")
    for norm in (GroupNormSpec(NONE, 2, EPS), BatchNormSpec(NONE, None, True, EPS)):
        assert choose(norm, Operands(x, scale=scale)) == as_weight
        assert choose(norm, Operands(last, scale=scale)) == as_weight
        assert choose(norm, Operands(x, scale=each, shift=each)) == (
            "native",
            "as it is, the modulation in the same passes, element by element",
        )
    assert choose(LayerNormSpec(NONE, (W,), EPS), Operands(x, scale=torch.randn(N, 1, 1, W))) == as_weight
    apart = {
        "it tells positions apart": (
            GroupNormSpec(NONE, 2, EPS),
            Operands(x, shift=torch.randn(SHAPE)),
        ),
        "it has another dtype than the input": (
            LayerNormSpec(NONE, (W,), EPS),
            Operands(x, scale=each.double(), shift=each.double()),
        ),
        "what follows would round 16-bit values once more": (
            GroupNormSpec(resolve("relu"), 2, EPS),
            Operands(x.half(), scale=each.half(), shift=each.half()),
        ),
        "ghost_batch_norm has kernels with a weight per channel alone": (
            GhostBatchNormSpec(NONE, None, True, EPS, "error", (2, 2)),
            Operands(x, scale=scale),
        ),
        "the input is not row-major": (GroupNormSpec(NONE, 2, EPS), Operands(last, scale=each, shift=each)),
    }
    for why, (norm, operands) in apart.items():
        assert choose(norm, operands) == ("native", f"as it is, the modulation as an operation of its own: {why}")


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no_pair": (torch.ones(2, N, C), TypeError, r"must be a pair of tensors \(scale, shift\), got a Tensor"),
    "three": ((None, None, None), TypeError, r"must be a pair of tensors \(scale, shift\), got a tuple of 3"),
    "number": ((2.0, None), TypeError, "scale must be a floating-point tensor, or None, got float"),
    "integers": ((None, torch.ones(N, C).long()), TypeError, r"shift must be a floating-point tensor, got torch.int64"),
    "vector": (
        (torch.ones(C), None),
        ValueError,
        r"scale of shape \(6,\) does not fit an input of shape",
    ),
    "transposed": ((torch.ones(C, N), None), ValueError, r"expected \(4, 6\) \(per sample and channel\)"),
    "size": ((None, torch.ones(N, C, 1, 3)), ValueError, r"shift of shape \(4, 6, 1, 3\) does not fit"),
}


@pytest.mark.parametrize(("modulate", "kind", "text"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["batch", "group", "instance"])
def test_what_does_not_fit_is_told(name: str, modulate: Any, kind: type[Exception], text: str) -> None:
    x, w, b = problem(name, generator(19), torch.float32)
    with pytest.raises(kind, match=text):
        NORMS[name](x, w, b, modulate=modulate)


@pytest.mark.parametrize("name", ["group", "layer"])
def test_a_dtype_that_does_not_fit_is_told_as_without_a_modulation(name: str) -> None:
    x, w, b = problem(name, generator(24), torch.float32)
    modulate = drawn(name, "short", generator(25))
    for one in (None, modulate):
        with pytest.raises(RuntimeError, match="mixed dtype"):
            NORMS[name](x.double(), w, b, modulate=one)
        with pytest.raises(RuntimeError, match="mixed dtype"):
            NORMS[name](x, w.double(), b.double(), modulate=one)


def test_inputs_whose_values_lie_in_no_strides_are_told() -> None:
    vector = torch.ones(W)
    nested = torch.nested.nested_tensor([torch.randn(2, W), torch.randn(3, W)], layout=torch.jagged)
    with pytest.raises(NotImplementedError, match="modulate: a nested input has no shape"):
        f.layer_norm(nested, (W,), modulate=(vector, vector))
    x, scale = torch.randn(SHAPE), torch.ones(N, C)
    with pytest.raises(NotImplementedError, match=r"pass input.to_dense\(\)"):
        f.group_norm(x.to_sparse(), 3, modulate=(scale, scale))
    with pytest.raises(NotImplementedError, match=r"pass scale.to_dense\(\)"):
        f.group_norm(x, 3, modulate=(scale.to_sparse(), scale))


def test_what_does_not_fit_rows_is_told() -> None:
    x = torch.randn(2, 3, W)
    with pytest.raises(ValueError, match=r"scale of shape \(3, 8\) .*: expected \(2, 8\) \(a vector per sample\)"):
        f.layer_norm(x, (W,), modulate=(torch.ones(3, W), None))
    f.rms_norm(x, (W,), modulate=(torch.ones(W), None))


def test_inside_of_lengths_a_modulation_goes_along_with_the_mask() -> None:
    g = generator(26)
    x, lengths = gaussian((3, C, 7), g).float(), torch.tensor([7, 4, 5])
    scale, shift = gaussian((3, C), g).float(), gaussian((3, C), g).float()
    layer = nk.GroupNorm(3, C)
    with nk.lengths(lengths):
        z = layer(x, modulate=(scale, shift))
    torch.testing.assert_close(z, layer(x, mask=nk.mask_from_lengths(lengths, 7), modulate=(scale, shift)))


@pytest.mark.parametrize("which", ["short", "element"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_float16_batch_whose_gradient_cancels_does_not_overflow(layout: str, which: str) -> None:
    """rstd * dy is beyond float16 here, and most of it is taken away again."""
    g = generator(30)
    x = LAYOUTS[layout]((gaussian(SHAPE, g) * 1e-3).half()).requires_grad_()
    dz = LAYOUTS[layout]((200 + gaussian(SHAPE, g)).half())
    scale, shift = (torch.ones(t.shape).half() for t in drawn("batch", which, g, torch.float16))
    z = f.batch_norm(x, None, None, None, None, True, eps=1e-12, modulate=(scale, shift))
    x64 = x.detach().double().requires_grad_()
    y64 = reference.batch_norm(x64, None, None, 1e-12)[0]
    (found,), (expected,) = torch.autograd.grad(z, x, dz), torch.autograd.grad(y64, x64, dz.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2.0)
