"""Masks: a norm of a padded batch is the norm of its real values alone, and nothing under the mask leaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import normkit as nk
from normkit import reference
from normkit.contract import input_gradient_bound, mean_over, output_bound, unit_roundoff
from tests.cases import EPS, LAYOUTS, MOMENTUM, affine, gaussian, generator, random_mask
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_equal64, assert_same, assert_within

SHAPES = {"sequences": (4, 6, 9), "images": (3, 6, 4, 5), "volumes": (2, 6, 3, 2, 4)}


@dataclass(frozen=True)
class Case:
    """A norm of ours, (x, weight, bias, mask) -> y, and the truth of real values laid side by side: (K, C, *)."""

    ours: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    truth: Callable[[Tensor, Tensor, Tensor], Tensor]
    by_sample: bool  # whether the real values of each sample are a set of their own

    def expected(self, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        """The truth on the real values alone, gathered without any mask, and zeros elsewhere. mask: (N, *)."""
        last = x.movedim(1, -1)  # (N, *, C)
        y = torch.zeros_like(last)
        if not self.by_sample:
            y[mask] = self.truth(last[mask], weight, bias)
        else:
            rows = [self.truth(one[kept].T[None], weight, bias)[0].T for one, kept in zip(last, mask, strict=True)]
            y[mask] = torch.cat(rows)
        return y.movedim(-1, 1)


def ghost_by_hand(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return nk.functional.ghost_batch_norm(x, None, None, weight, bias, True, eps=EPS, virtual_batch_size=99, mask=mask)


RUN = torch.linspace(-1, 1, 6).double(), torch.linspace(0.5, 2, 6).double()
FUNCTIONS = nk.functional
CASES: dict[str, Case] = {
    "batch": Case(
        lambda x, w, b, m: FUNCTIONS.batch_norm(x, None, None, w, b, True, eps=EPS, mask=m),
        lambda x, w, b: reference.batch_norm(x, w, b, EPS)[0],
        by_sample=False,
    ),
    "batch_evaluation": Case(
        lambda x, w, b, m: FUNCTIONS.batch_norm(x, *RUN, w, b, False, eps=EPS, mask=m),
        lambda x, w, b: reference.batch_norm_inference(x, *RUN, w, b, EPS),
        by_sample=False,
    ),
    "ghost_of_one_slice": Case(ghost_by_hand, lambda x, w, b: reference.batch_norm(x, w, b, EPS)[0], by_sample=False),
    "renorm": Case(
        lambda x, w, b, m: FUNCTIONS.batch_renorm(x, RUN[0].clone(), RUN[1].clone(), w, b, True, eps=EPS, mask=m),
        lambda x, w, b: reference.batch_renorm(x, *RUN, w, b, EPS, 3.0, 5.0)[0],
        by_sample=False,
    ),
    "group": Case(
        lambda x, w, b, m: FUNCTIONS.group_norm(x, 2, w, b, EPS, mask=m),
        lambda x, w, b: reference.group_norm(x, 2, w, b, EPS)[0],
        by_sample=True,
    ),
    "instance": Case(
        lambda x, w, b, m: FUNCTIONS.instance_norm(x, None, None, w, b, eps=EPS, mask=m),
        lambda x, w, b: reference.instance_norm(x, w, b, EPS)[0],
        by_sample=True,
    ),
    "layer": Case(  # channels last: (N, *, C), the mask covers the leading axes
        lambda x, w, b, m: FUNCTIONS.layer_norm(x.movedim(1, -1), (6,), w, b, EPS, mask=m).movedim(-1, 1),
        lambda x, w, b: reference.layer_norm_2d(x, w, b, EPS)[0],
        by_sample=False,
    ),
}
norms = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def draw(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = generator(7)
    return gaussian(shape, g, mean=3.0), *affine(shape[1], g), random_mask(shape, g)


@shapes
@norms
def test_outputs_and_gradients_are_those_of_the_real_values_alone(case: Case, shape: tuple[int, ...]) -> None:
    *values, mask = draw(shape)
    dy = gaussian(shape, generator(8))
    results = []
    for norm in (case.ours, case.expected):
        leaves = [v.clone().requires_grad_() for v in values]
        y = norm(*leaves, mask)
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    for name, got, expected in zip(("y", "dx", "dweight", "dbias"), *results, strict=True):
        assert_equal64(got, expected, name)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -1e30], ids=["nan", "inf", "huge"])
@norms
def test_nothing_under_the_mask_leaks(case: Case, junk: float) -> None:
    """Bit for bit the same with any value there, in the outputs and in all gradients."""
    x, weight, bias, mask = draw(SHAPES["images"])
    dy = gaussian(SHAPES["images"], generator(8))
    spoiled = x.masked_fill(~mask.unsqueeze(1), junk)
    spoiled_dy = dy.masked_fill(~mask.unsqueeze(1), junk)
    results = []
    for values, gradient in ((x, dy), (spoiled, spoiled_dy)):
        leaves = [v.clone().requires_grad_() for v in (values, weight, bias)]
        y = case.ours(*leaves, mask)
        results.append((y.detach(), *torch.autograd.grad(y, leaves, gradient)))
    for clean, dirty in zip(*results, strict=True):
        assert_same(dirty, clean)
    hidden = ~mask.unsqueeze(1).expand_as(x)
    assert (results[1][0][hidden] == 0).all()
    assert (results[1][1][hidden] == 0).all()


@norms
def test_a_mask_of_ones_changes_nothing(case: Case) -> None:
    x, weight, bias, mask = draw(SHAPES["sequences"])
    ones = torch.ones_like(mask)
    assert_equal64(case.ours(x, weight, bias, ones), case.expected(x, weight, bias, ones))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("name", ["batch", "group", "instance"])
def test_the_mask_may_have_a_channel_axis_of_one_and_the_layout_stays(name: str, layout: str) -> None:
    x, weight, bias, mask = draw(SHAPES["images"])
    x = LAYOUTS[layout](x)
    y = CASES[name].ours(x, weight, bias, mask)
    assert_same(CASES[name].ours(x, weight, bias, mask.unsqueeze(1)), y)
    assert_equal64(y, CASES[name].expected(x, weight, bias, mask))
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_padding_is_zero_after_the_activation_and_the_residual_gets_no_gradient_there(training: bool) -> None:
    """sigmoid(0) is 0.5: the zero under the mask comes last."""
    x, weight, bias, mask = draw(SHAPES["sequences"])
    hidden = ~mask.unsqueeze(1).expand_as(x)
    residual = torch.ones_like(x).masked_fill(hidden, float("nan")).requires_grad_()
    running = (None, None) if training else RUN
    y = FUNCTIONS.batch_norm(
        x, *running, weight, bias, training, eps=EPS, residual=residual, activation="sigmoid", mask=mask
    )
    y.sum().backward()
    assert (y[hidden] == 0).all()
    assert (y[~hidden] > 0).all()
    assert residual.grad is not None
    assert (residual.grad[hidden] == 0).all()
    assert (residual.grad[~hidden] > 0).all()


# --- running statistics and counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [MOMENTUM, None], ids=str)
@shapes
def test_the_running_statistics_are_those_of_the_real_values(shape: tuple[int, ...], momentum: float | None) -> None:
    x, _, _, mask = draw(shape)
    layer = getattr(nk, f"BatchNorm{len(shape) - 2}d")(6, momentum=momentum, dtype=torch.float64)
    alone = nk.BatchNorm1d(6, momentum=momentum, dtype=torch.float64)
    for step in range(3):
        layer(x + step, mask=mask)
        alone((x + step).movedim(1, -1)[mask])
    for name in ("running_mean", "running_var"):
        assert_equal64(getattr(layer, name), getattr(alone, name), name)
    assert layer.num_batches_tracked.item() == 3


def test_the_running_statistics_of_instance_norm_average_samples_with_two_values_or_more() -> None:
    x, _, _, _ = draw(SHAPES["sequences"])
    mask = nk.mask_from_lengths([9, 4, 1, 0], 9)
    layer = nk.InstanceNorm1d(6, momentum=1.0, track_running_stats=True, dtype=torch.float64)
    y = layer(x, mask=mask)
    parts = [x[0], x[1, :, :4]]
    assert_equal64(layer.running_mean, torch.stack([p.mean(1) for p in parts]).mean(0))
    assert_equal64(layer.running_var, torch.stack([p.var(1) for p in parts]).mean(0))
    assert (y[2:] == 0).all()  # one value: xhat is 0; no value: nothing


@norms
def test_a_mask_that_keeps_nothing_gives_zeros_and_no_gradient(case: Case) -> None:
    x, weight, bias, mask = draw(SHAPES["sequences"])
    leaves = [v.clone().requires_grad_() for v in (x * float("nan"), weight, bias)]
    y = case.ours(*leaves, torch.zeros_like(mask))
    assert (y == 0).all()
    for gradient in torch.autograd.grad(y.sum(), leaves):
        assert (gradient == 0).all()


def ghost_of_pairs(channels: int, **options: Any) -> nn.Module:
    return nk.GhostBatchNorm1d(channels, virtual_batch_size=2, **options)


@pytest.mark.parametrize("make", [nk.BatchNorm1d, ghost_of_pairs, nk.BatchRenorm1d, nk.SyncBatchNorm])
def test_a_batch_without_real_values_moves_nothing_and_is_not_counted(make: Callable[[int], nn.Module]) -> None:
    layer = make(6)
    layer(torch.randn(4, 6, 9), mask=torch.zeros(4, 9, dtype=torch.bool))
    assert (layer.running_mean == 0).all()
    assert (layer.running_var == 1).all()
    assert layer.num_batches_tracked.item() == 0  # type: ignore[operator,union-attr]  # a buffer


@pytest.mark.parametrize("make", [nk.BatchNorm1d, ghost_of_pairs, nk.BatchRenorm1d, nk.SyncBatchNorm])
def test_one_single_real_value_follows_small_batch(make: Callable[..., nn.Module]) -> None:
    x, mask = torch.randn(4, 6, 9), torch.zeros(4, 9, dtype=torch.bool)
    mask[2, 3] = True
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        make(6)(x, mask=mask)
    layer = make(6, eps=EPS, small_batch="running")
    y = layer(x, mask=mask)
    assert (y[~mask.unsqueeze(1).expand_as(y)] == 0).all()
    torch.testing.assert_close(y[2, :, 3], x[2, :, 3] / (1 + EPS) ** 0.5)  # running statistics: 0 and 1
    assert layer.num_batches_tracked.item() == 0  # type: ignore[operator,union-attr]  # a buffer


def test_half_precision_takes_masks() -> None:
    x, weight, bias, mask = draw(SHAPES["images"])
    y = FUNCTIONS.batch_norm(x.bfloat16(), None, None, weight.float(), bias.float(), True, eps=EPS, mask=mask)
    assert y.dtype == torch.bfloat16
    expected = CASES["batch"].expected(x.bfloat16().double(), weight.float().double(), bias.float().double(), mask)
    # one bfloat16 rounding of a value below 8
    assert (y.double() - expected).abs().max() <= 8 * 2**-9


# --- mask_from_lengths -----------------------------------------------------------------------------------------------


def test_mask_from_lengths_is_true_below_each_length() -> None:
    expected = torch.tensor([[True, False, False], [True, True, True], [False, False, False]])
    for lengths in ([1, 3, 0], torch.tensor([1, 3, 0]), torch.tensor([1, 3, 0], dtype=torch.int32)):
        assert torch.equal(nk.mask_from_lengths(lengths), expected)
    wide = nk.mask_from_lengths([1, 3, 0], max_length=5)
    assert torch.equal(wide, nn.functional.pad(expected, (0, 2)))
    assert nk.mask_from_lengths([]).shape == (0, 0)


def test_mask_from_lengths_refuses_what_is_no_length() -> None:
    with pytest.raises(TypeError, match=r"lengths must be integers, got torch.float32: use lengths.long\(\)"):
        nk.mask_from_lengths(torch.ones(3))
    with pytest.raises(TypeError, match=r"got torch\.bool"):
        nk.mask_from_lengths(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape \(N,\), got shape \(2, 2\)"):
        nk.mask_from_lengths(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"every length must lie in 0\.\.2, got 3"):
        nk.mask_from_lengths([1, 3], max_length=2)
    with pytest.raises(ValueError, match=r"every length must lie in 0\.\.1, got -1"):
        nk.mask_from_lengths([1, -1])


def test_mask_from_lengths_compiles_without_a_graph_break() -> None:
    compiled = torch.compile(lambda lengths: nk.mask_from_lengths(lengths, 4), fullgraph=True, backend="eager")
    lengths = torch.tensor([2, 4])
    assert torch.equal(compiled(lengths), nk.mask_from_lengths(lengths, 4))


@needs_native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "sigmoid", "softplus"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_native_masked_batch_norm_is_the_composed_one_and_nothing_leaks(
    layout: str, activation: str | None, with_residual: bool, training: bool
) -> None:
    g = generator(11)
    x, r, dy = (LAYOUTS[layout](gaussian((4, 6, 5, 3), g, mean=mean)) for mean in (10.0, 0.0, 0.0))
    mask = random_mask(x.shape, g)
    for tensor in (x, r):  # NaN and Inf under the mask
        tensor.masked_fill_(~mask.unsqueeze(1), float("nan"))
        tensor[0].masked_fill_(~mask[0], float("inf"))
    x.requires_grad_(), r.requires_grad_()
    found: dict[str, list[Tensor]] = {}
    for path in ("native", "composed"):
        layer = nk.BatchNorm2d(6, EPS, MOMENTUM, activation=activation, dtype=torch.float64).train(training)
        torch.nn.init.constant_(layer.weight, -1.5)
        with nk.backend(path):
            y = layer(x, residual=r if with_residual else None, mask=mask)
        leaves = [x, layer.weight, layer.bias, *([r] if with_residual else [])]
        found[path] = [y, *torch.autograd.grad(y, leaves, dy), layer.running_mean, layer.running_var]
    for native_result, composed_result in zip(*found.values(), strict=True):
        assert native_result.isfinite().all()
        assert_equal64(native_result, composed_result)


SAMPLES: dict[str, Callable[..., nn.Module]] = {
    "one group": lambda **options: nk.GroupNorm(1, 6, EPS, **options),
    "groups": lambda **options: nk.GroupNorm(3, 6, EPS, **options),
    "groups without weight": lambda **options: nk.GroupNorm(3, 6, EPS, affine=False, **options),
    "instance": lambda **options: nk.InstanceNorm2d(6, EPS, MOMENTUM, affine=True, track_running_stats=True, **options),
}


@needs_native
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("name", SAMPLES)
def test_native_masked_norms_of_samples_are_the_composed_ones_and_nothing_leaks(
    name: str, activation: str | None, with_residual: bool
) -> None:
    g = generator(14)
    x, r, dy = (gaussian((5, 6, 5, 3), g, mean=mean) for mean in (10.0, 0.0, 0.0))
    mask = random_mask(x.shape, g)
    mask[3], mask[4], mask[4, 2, 1] = False, False, True  # a sample without a real value, and one with one
    for tensor in (x, r):  # NaN and Inf under the mask
        tensor.masked_fill_(~mask.unsqueeze(1), float("nan"))
        tensor[0].masked_fill_(~mask[0], float("inf"))
    x.requires_grad_(), r.requires_grad_()
    found: dict[str, list[Tensor]] = {}
    for path in ("native", "composed"):
        layer = SAMPLES[name](activation=activation, dtype=torch.float64)
        for parameter, slope in zip(layer.parameters(), (0.5, -0.25), strict=False):
            parameter.data += slope * torch.arange(6)
        with nk.backend(path):
            y = layer(x, residual=r if with_residual else None, mask=mask)
        leaves = [x, *layer.parameters(), *([r] if with_residual else [])]
        found[path] = [y, *torch.autograd.grad(y, leaves, dy), *layer.buffers()]
    for native_result, composed_result in zip(*found.values(), strict=True):
        assert native_result.isfinite().all()
        if native_result.is_floating_point():
            assert_equal64(native_result, composed_result.double())


@needs_native
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("make", [nk.LayerNorm, nk.RMSNorm])
def test_native_masked_norms_of_rows_are_the_composed_ones_and_nothing_leaks(
    make: Callable[..., nn.Module], activation: str | None
) -> None:
    g = generator(15)
    x, dy = (gaussian((4, 9, 6), g, mean=mean) for mean in (10.0, 0.0))
    mask = nk.mask_from_lengths([9, 4, 1, 0], 9)
    x.masked_fill_(~mask.unsqueeze(2), float("nan"))
    x[1].masked_fill_(~mask[1].unsqueeze(1), float("inf"))
    x.requires_grad_()
    found: dict[str, list[Tensor]] = {}
    for path in ("native", "composed"):
        layer = make(6, activation=activation, dtype=torch.float64)
        layer.weight.data += torch.arange(6)
        with nk.backend(path):
            y = layer(x, mask=mask)
        found[path] = [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]
    for native_result, composed_result in zip(*found.values(), strict=True):
        assert native_result.isfinite().all()
        assert_equal64(native_result, composed_result)


@needs_native
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_masked_float32_group_norm_far_from_zero_holds_the_contract(groups: int) -> None:
    """Each sample's bounds are those of its real values alone."""
    g, lengths = generator(16), [600, 40, 333]
    x, dy = gaussian((3, 4, 600), g, mean=1e4).float(), gaussian((3, 4, 600), g).float()
    weight, bias = (part.float() for part in affine(4, g))
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    with nk.backend("native"):
        y = nk.functional.group_norm(*leaves[:1], groups, *leaves[1:], EPS, mask=nk.mask_from_lengths(lengths))
        dx, *_ = torch.autograd.grad(y, leaves, dy)
    u, size = unit_roundoff(torch.float32), 4 // groups
    w, b = (part.double().view(1, groups, size, 1) for part in (weight, bias))
    for n, length in enumerate(lengths):
        real, gradient, got, got_dx = (
            part[n : n + 1, :, :length].detach().double().view(1, groups, size, length) for part in (x, dy, y, dx)
        )
        var, mean = torch.var_mean(real, (2, 3), correction=0, keepdim=True)
        rstd = (var + EPS).rsqrt()
        xhat, dz = (real - mean) * rstd, gradient * w
        assert_within(got.float(), xhat * w + b, output_bound(xhat, w, b, u))
        exact = rstd * (dz - dz.mean((2, 3), keepdim=True) - xhat * (dz * xhat).mean((2, 3), keepdim=True))
        assert_within(got_dx.float(), exact, input_gradient_bound(dz, xhat, rstd, mean_over((2, 3)), u))
    assert (dx[1, :, 40:] == 0).all()


@needs_native
def test_masked_norms_of_samples_keep_half_precision_and_choose_what_serves_them() -> None:
    g = generator(17)
    x, mask = gaussian((3, 4, 5, 6), g), torch.rand(3, 5, 6, generator=g) > 0.3
    y = nk.GroupNorm(2, 4, EPS)(x.bfloat16(), mask=mask)
    assert y.dtype == torch.bfloat16
    expected = CASES["group"].ours(x.bfloat16().double(), torch.ones(4).double(), torch.zeros(4).double(), mask)
    assert (y.double() - expected).abs().max() <= 8 * 2**-9  # one rounding of a value below 8
    words = "a mask (is given, and the input is empty|and a residual are given, and they are not contiguous)"
    for given, residual in ((x.to(memory_format=torch.channels_last), x), (x[:, :, ::2], x[:, :, ::2]), (x[:0], x[:0])):
        part = mask[: len(given), : given.shape[2]]
        with pytest.raises(RuntimeError, match=words), nk.backend("native"):
            nk.functional.group_norm(given, 2, mask=part, residual=residual)
        y = nk.functional.group_norm(given, 2, mask=part, residual=residual)
        assert_equal64(y, nk.functional.group_norm(given.contiguous(), 2, mask=part, residual=residual.contiguous()))


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("norm", [nk.GroupNorm, lambda groups, c: nk.InstanceNorm1d(c)], ids=["group", "instance"])
def test_a_masks_strides_change_nothing(norm: Callable[[int, int], nn.Module], channels: int) -> None:
    """torch.where orders what it makes as the mask lies, and of one channel that was taken for channels last."""
    g = generator(7)
    x, mask = gaussian((4, channels, 9), g).float(), torch.rand(4, 9, generator=g) < 0.7
    laid = mask.T.contiguous().T
    assert laid.stride() != mask.stride()
    found = []
    for one in (mask, laid):
        leaf = x.clone().requires_grad_()
        y = norm(1, channels)(leaf, mask=one)
        found.append((y, *torch.autograd.grad(y, leaf, torch.linspace(-1, 1, y.numel()).reshape(x.shape))))
    for plain, other in zip(*found, strict=True):
        assert torch.equal(plain, other)


@needs_native
@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_native_masked_groups_of_other_layouts(layout: str) -> None:
    g = generator(19)
    x, dy = LAYOUTS[layout](gaussian((3, 6, 5, 4), g, mean=2.0)).requires_grad_(), gaussian((3, 6, 5, 4), g)
    mask, layer = random_mask(x.shape, g), nk.GroupNorm(3, 6, EPS, activation="relu", dtype=torch.float64)
    found = {}
    for path in ("native", "composed"):
        with nk.backend(path):
            y = layer(x, mask=mask)
        found[path] = [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]
    for native_result, composed_result in zip(*found.values(), strict=True):
        assert_equal64(native_result, composed_result)
    assert found["native"][0].stride() == x.stride() or layout != "channels_last"


@needs_native
@pytest.mark.parametrize("mask", [(4, 1, 1, 3), (1, 1, 5, 1), (4, 5, 3)], ids=str)
def test_a_native_mask_may_broadcast_and_second_derivatives_are_right(mask: tuple[int, ...]) -> None:
    g = generator(12)
    x = gaussian((4, 2, 5, 3), g).requires_grad_()
    kept = torch.rand(mask, generator=g) > 0.4

    def norm(x: Tensor) -> Tensor:
        return nk.functional.batch_norm(x, None, None, training=True, eps=EPS, mask=kept, activation="silu")

    with nk.backend("native"):
        torch.autograd.gradcheck(norm, x)
        torch.autograd.gradgradcheck(norm, x)


@needs_native
def test_an_all_false_mask_on_the_native_path_gives_zeros_and_moves_nothing() -> None:
    layer, x = nk.BatchNorm1d(3), torch.randn(4, 3, 5, requires_grad=True)
    with nk.backend("native"):
        y = layer(x, mask=torch.zeros(4, 5, dtype=torch.bool))
    y.sum().backward()
    assert y.count_nonzero() == 0
    assert x.grad is not None
    assert x.grad.count_nonzero() == 0
    assert int(layer.num_batches_tracked) == 0


@needs_native
def test_a_masked_float32_batch_far_from_zero_holds_the_contract() -> None:
    g = generator(13)
    x = gaussian((8, 4, 40), g, mean=1e5).float()
    mask = torch.rand((8, 40), generator=g) > 0.97  # few real values: the others must not cost digits
    with nk.backend("native"):
        y = nk.functional.batch_norm(x, None, None, training=True, eps=EPS, mask=mask)
    real = x.double().movedim(1, -1)[mask]
    xhat = reference.batch_norm(real, None, None, EPS)[0]
    assert_within(y.movedim(1, -1)[mask], xhat, output_bound(xhat, 1.0, 0.0, unit_roundoff(torch.float32)))


@needs_native
@pytest.mark.parametrize("mask_axes", [2, 3], ids=["a mask", "with an axis of channels"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_few_real_values_among_many_far_from_zero_hold_the_contract(norm: str, mask_axes: int) -> None:
    """The mean of all values is rounded to float64, and that is lost once for each value to a real one."""
    g, positions, kept = generator(17), 100_001, [77, 4_000, 99_999]
    x = gaussian((2, 4, positions), g, mean=1e6).float()
    mask = torch.zeros(2, positions, dtype=torch.bool)
    mask[0, kept] = True
    if norm != "batch":
        mask[1, ::2] = True  # a sample of many beside the one of few
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "batch": lambda m: FUNCTIONS.batch_norm(x, None, None, training=True, eps=EPS, mask=m),
        "instance": lambda m: FUNCTIONS.instance_norm(x, eps=EPS, mask=m),
        "group": lambda m: FUNCTIONS.group_norm(x, 2, eps=EPS, mask=m),
    }
    with nk.backend("native"):
        y = functions[norm](mask if mask_axes == 2 else mask.unsqueeze(1))
    real = x[:1, :, kept].double()
    xhat = reference.group_norm(real, 2 if norm == "group" else 4, None, None, EPS)[0]
    assert_within(y[:1, :, kept], xhat, output_bound(xhat, 1.0, 0.0, unit_roundoff(torch.float32)))
    assert (y[0, :, ~mask[0]] == 0).all()


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "composed"])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("given", [("nan", "1"), ("inf", "1"), ("0", "nan")], ids=str)
def test_given_statistics_that_are_not_finite_reach_no_gradient_where_nothing_is_real(
    backend: str, given: tuple[str, str], activation: str | None
) -> None:
    mean, var = (torch.full((3,), float(number)) for number in given)
    leaves = [torch.randn(2, 3, 4).requires_grad_(), *(torch.ones(3, requires_grad=True) for _ in range(2))]
    for mask, all_finite in ((torch.zeros(2, 4, dtype=torch.bool), True), (torch.ones(2, 4, dtype=torch.bool), False)):
        with nk.backend(backend):
            y = FUNCTIONS.batch_norm(leaves[0], mean, var, *leaves[1:], False, mask=mask, activation=activation)
            dx, dweight, dbias = torch.autograd.grad(y, leaves, torch.ones_like(y))
        assert bool(dweight.isfinite().all()) is all_finite  # real values of such a norm are not finite either
        if all_finite:
            assert not any(bool(found.any()) for found in (y, dx, dweight, dbias))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm1d(3, EPS, MOMENTUM),
    "small batch": lambda: nk.BatchNorm1d(3, EPS, MOMENTUM, small_batch="running"),
    "ghost": lambda: nk.GhostBatchNorm1d(3, EPS, MOMENTUM, virtual_batch_size=3),  # of 3, 3 and 2
    "renorm": lambda: nk.BatchRenorm1d(3, EPS, MOMENTUM),
    "sync": lambda: nk.SyncBatchNorm(3, EPS, MOMENTUM),
    "instance": lambda: nk.InstanceNorm1d(3, EPS, MOMENTUM, track_running_stats=True),
    "group": lambda: nk.GroupNorm(3, 3, EPS),
    "frozen": lambda: nk.FrozenBatchNorm1d(3, EPS),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


@each_layer
def test_one_mask_may_do_for_all_samples(make: Callable[[], nn.Module]) -> None:
    x, mask = gaussian((8, 3, 5), generator(3)), torch.tensor([[True, False, True, True, False]])
    ours, whole = make(), make()
    torch.testing.assert_close(ours(x.float(), mask=mask), whole(x.float(), mask=mask.expand(8, 5)))
    for moved, expected in zip(ours.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(moved, expected)


@each_layer
def test_a_fake_mask_has_no_values_to_look_at(make: Callable[[], nn.Module]) -> None:
    with FakeTensorMode():
        layer, x = make(), torch.empty(8, 3, 5)
        y = layer(x, mask=torch.ones(8, 5, dtype=torch.bool))
    assert isinstance(y, FakeTensor)
    assert y.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
def test_the_gradient_of_a_masked_16_bit_group_is_rounded_once(dtype: torch.dtype, residual: bool) -> None:
    """w dy rstd alone is 3e5 here, beyond float16; what the group's sums leave of it is small."""
    g = generator(5)
    x = (1e-3 * torch.randn(2, 4, 6, generator=g)).to(dtype)
    dy = (1e3 + torch.randn(2, 4, 6, generator=g)).to(dtype)
    mask = nk.mask_from_lengths(torch.tensor([6, 4]), 6)

    def gradient(dtype: torch.dtype) -> Tensor:
        given = x.to(dtype, copy=True).requires_grad_()
        skip = x.to(dtype) if residual else None
        y = nk.functional.group_norm(given, 2, mask=mask, residual=skip)
        return torch.autograd.grad(y, given, dy.to(dtype))[0].double()

    truth = gradient(torch.float64)
    # half a step of the dtype, of the largest value; float32 loses 2^-24 of w dy rstd on its way: 0.1 of 3e5
    lost = torch.finfo(dtype).eps * truth.abs().max().item() + 0.1
    assert_within(gradient(dtype), truth, lost, "dx")
