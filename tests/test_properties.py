"""Properties over drawn shapes, dtypes, layouts, strides, eps and kappa.

Two presets: a small fixed number of cases in every run, and at least 20 000 under the marker `nightly`. Hypothesis
draws the regime and shrinks it; the values come from a seeded generator, so a failure can be repeated from its print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import normkit as nk
from normkit import Moments, reference
from normkit.contract import input_gradient_bound, mean_over, output_bound, unit_roundoff
from tests.cases import DTYPES, LAYOUTS, affine, gaussian, generator
from tests.functional.norms import Problem, assert_layout_kept, assert_right
from tests.tolerances import assert_statistics, assert_within

QUICK, NIGHTLY = 25, 2_600
presets = pytest.mark.parametrize("cases", [QUICK, pytest.param(NIGHTLY, marks=pytest.mark.nightly)])


@dataclass(frozen=True)
class Regime:
    """One drawn regime: what a tensor looks like and how it lies in memory."""

    n: int
    c: int
    space: tuple[int, ...]
    dtype: str
    layout: str
    steps: tuple[int, ...]
    kappa: float
    eps: float
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.space)

    def lay(self, x: Tensor) -> Tensor:
        """x in the drawn layout, then inside a larger tensor with the drawn steps between its elements."""
        x = LAYOUTS[self.layout](x)
        if all(step == 1 for step in self.steps):
            return x
        steps = self.steps[: x.dim()] + (1,) * (x.dim() - len(self.steps))
        wide = x.new_zeros([s * step for s, step in zip(x.shape, steps, strict=True)])
        view = wide[tuple(slice(None, None, step) for step in steps)]
        return view.copy_(x)

    def draw(self, mean: float | None = None) -> Tensor:
        g = generator(self.seed)
        return self.lay(gaussian(self.shape, g, mean=self.kappa if mean is None else mean).to(DTYPES[self.dtype]))

    def problem(self) -> Problem:
        g = generator(self.seed + 1)
        weight, bias = affine(self.c, g)
        dy = self.lay(gaussian(self.shape, g).to(DTYPES[self.dtype]))
        wide = torch.promote_types(DTYPES[self.dtype], torch.float32)
        return Problem(self.draw(), dy, weight.to(wide), bias.to(wide))


REGIMES = st.builds(
    Regime,
    n=st.integers(1, 9),
    c=st.integers(1, 19),
    space=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    dtype=st.sampled_from(list(DTYPES)),
    layout=st.sampled_from(list(LAYOUTS)),
    steps=st.tuples(*[st.sampled_from([1, 1, 1, 2, 3])] * 2),
    kappa=st.one_of(st.just(0.0), st.floats(-2, 4).map(lambda e: 10.0**e)),
    eps=st.floats(-8, 0).map(lambda e: 10.0**e),
    seed=st.integers(0, 2**20),
).filter(lambda r: r.n * len_of(r.space) > 1)
MODERATE = REGIMES.map(lambda r: replace(r, kappa=min(r.kappa, 10.0)))  # where half precision still has digits


def len_of(space: tuple[int, ...]) -> int:
    return int(torch.Size(space).numel())


def hold(check: Callable[[Regime], None], regimes: st.SearchStrategy[Regime], cases: int) -> None:
    """Run a property over so many regimes, the same ones every time."""
    run = settings(
        max_examples=cases, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    run(given(regimes)(check))()


@presets
def test_batch_norm_holds_the_contract(cases: int) -> None:
    def check(r: Regime) -> None:
        factor = 1e3 * max(1.0, r.kappa) if r.dtype == "f64" else 1.0  # float64 has no wider type to sum in
        assert_right(
            r.problem(),
            lambda x, w, b: nk.functional.batch_norm(x, None, None, w, b, True, eps=r.eps),
            factor=factor,
            eps=r.eps,
        )

    hold(check, REGIMES, cases)


@presets
def test_running_statistics_hold_their_bounds(cases: int) -> None:
    def check(r: Regime) -> None:
        x = r.draw()
        mean, var = torch.zeros(r.c), torch.ones(r.c)
        nk.functional.batch_norm(x, mean, var, training=True, momentum=1.0, eps=r.eps)
        assert_statistics(mean, var, x.double().mean(axes(x)), x.double().var(axes(x)))

    hold(check, REGIMES.filter(lambda r: r.dtype != "f64"), cases)


@presets
def test_a_masked_batch_is_its_real_values(cases: int) -> None:
    def check(r: Regime) -> None:
        x = r.draw()
        mask = torch.rand((r.n, *r.space), generator=generator(r.seed)) < 0.6
        if mask.sum() < 2:
            mask[:] = True
        weight, bias = (p.to(torch.promote_types(x.dtype, torch.float32)) for p in affine(r.c, generator(1)))
        junk = x.masked_fill(~mask.unsqueeze(1), float("nan"))
        y = nk.functional.batch_norm(junk, None, None, weight, bias, True, eps=r.eps, mask=mask)
        real = x.movedim(1, -1)[mask]
        alone = nk.functional.batch_norm(real, None, None, weight, bias, True, eps=r.eps)
        assert_layout_kept(y, junk)
        got = y.movedim(1, -1)
        assert (got[~mask] == 0).all()
        # two paths and two orders of summation: each within 8u of its truth
        u = unit_roundoff(x.dtype) if x.dtype != torch.float64 else 1e3 * max(1.0, r.kappa) * 2.0**-53
        room = 16 * u * (alone.double().abs() + 2 * bias.double().abs())
        assert_within(got[mask], alone.double(), room)

    hold(check, REGIMES, cases)


@presets
def test_moments_do_not_depend_on_how_a_set_is_split(cases: int) -> None:
    def check(r: Regime) -> None:
        x = r.draw()
        whole, cut = Moments.of(x, axes(x)), generator(r.seed).initial_seed() % (r.n + 1)
        merged = Moments.of(x[:cut], axes(x)).merge(Moments.of(x[cut:], axes(x)))
        assert merged.count == whole.count
        # the mean of n values of size kappa is off by u*kappa; m2 by twice that for each deviation of size 1
        assert_within(merged.mean, whole.mean, 1e3 * 2.0**-53 * max(1.0, r.kappa))
        assert_within(merged.m2, whole.m2, 1e3 * 2.0**-53 * max(1.0, r.kappa) * whole.m2.clamp(min=1.0))

    hold(check, REGIMES, cases)


@presets
def test_shift_scale_and_permutation_of_the_batch(cases: int) -> None:
    """BN(a*x + b) = BN(x) for a > 0 with eps scaled by a^2; the samples' order is only an order."""

    def check(r: Regime) -> None:
        x = replace(r, dtype="f64").draw(mean=1.0)
        y = nk.functional.batch_norm(x, None, None, training=True, eps=r.eps)
        a, b = 1 + r.kappa, r.kappa
        moved = nk.functional.batch_norm(a * x + b, None, None, training=True, eps=a * a * r.eps)
        order = torch.randperm(r.n, generator=generator(r.seed))
        # rounding a*x + b costs u of its value, divided by a deviation of a: std is 1 or a small draw's
        std = x.var(axes(x), correction=0).add(r.eps).sqrt().min().item()
        assert_within(moved, y, 1e4 * 2.0**-53 / min(std, 1.0) ** 2 * y.abs().max().clamp(min=1.0))
        assert_within(
            nk.functional.batch_norm(x[order], None, None, training=True, eps=r.eps), y[order], 1e4 * 2.0**-53 / std
        )

    hold(check, REGIMES, cases)


@presets
def test_ghost_and_renorm_are_their_references(cases: int) -> None:
    def check(r: Regime) -> None:
        if r.n < 2:
            return
        x = replace(r, dtype="f64").draw()
        virtual = 1 + r.seed % 9
        expected = reference.ghost_batch_norm(x, None, None, r.eps, virtual)[0]
        y = nk.functional.ghost_batch_norm(x, None, None, training=True, eps=r.eps, virtual_batch_size=virtual)
        room = (
            1e4 * 2.0**-53 * max(1.0, r.kappa) / r.eps**0.5
        )  # a mean is off by u*kappa, a deviation is sqrt(eps) or more
        assert_within(y, expected, room)
        running = gaussian((r.c,), generator(3)), gaussian((r.c,), generator(4)).abs() + 0.1
        expected = reference.batch_renorm(x, *running, None, None, r.eps, 3.0, 5.0)[0]
        y = nk.functional.batch_renorm(x, *(v.clone() for v in running), training=True, eps=r.eps)
        assert_within(y, expected, 10 * room)  # r is 3 at most, d moves by the mean's error over sigma

    hold(check, MODERATE, cases)


@presets
def test_the_norms_within_a_sample_hold_the_contract(cases: int) -> None:
    """Group, instance and layer norm in float32: outputs and input gradients."""

    def check(r: Regime) -> None:
        x = replace(r, dtype="f32").draw().detach().requires_grad_()
        x64, dy = x.detach().double(), gaussian(r.shape, generator(r.seed + 1)).float()
        groups = max(g for g in range(1, r.c + 1) if r.c % g == 0 and g <= 1 + r.seed % 8)
        if (r.c // groups) * len_of(r.space) < 2:
            return
        y = nk.functional.group_norm(x, groups, eps=r.eps)
        (dx,) = torch.autograd.grad(y, x, dy)
        xhat, _, var = reference.group_norm(x64, groups, None, None, r.eps)
        dx64 = reference.group_norm_backward(dy.double(), x64, groups, None, r.eps)[0]
        inner = (r.n, groups, -1)
        rstd = (var.reshape(r.n, groups, 1) + r.eps).rsqrt()
        u = unit_roundoff(torch.float32)
        assert_within(y, xhat, output_bound(xhat, 1.0, 0.0, u), "y")
        bound = input_gradient_bound(dy.double().reshape(inner), xhat.reshape(inner), rstd, mean_over((2,)), u)
        assert_within(dx.reshape(inner), dx64.reshape(inner), bound, "dx")
        rows = nk.functional.layer_norm(x.detach().movedim(1, -1), (r.c,), eps=r.eps)
        rows64 = reference.layer_norm(x64.movedim(1, -1), (r.c,), None, None, r.eps)[0]
        assert_within(rows, rows64, output_bound(rows64, 1.0, 0.0, u), "layer norm")

    hold(check, REGIMES, cases)


@presets
def test_gradients_sum_to_zero_and_are_orthogonal_to_xhat(cases: int) -> None:
    """sum(dx) = 0 per channel, and sum(dx * xhat) = 0 up to eps, on the chosen path in float64."""

    def check(r: Regime) -> None:
        x = replace(r, dtype="f64").draw().detach().requires_grad_()
        dy = gaussian(r.shape, generator(r.seed + 1))
        y = nk.functional.batch_norm(x, None, None, training=True, eps=r.eps)
        (dx,) = torch.autograd.grad(y, x, dy)
        var = x.detach().var(axes(x), correction=0)
        room = 1e5 * 2.0**-53 * max(1.0, r.kappa) * (1 / (var + r.eps)).max().item()
        assert_within(dx.sum(axes(x)), torch.zeros(r.c).double(), room)
        # with eps, sum(dx*xhat) = rstd * sum(dy*xhat) * eps / (var + eps)
        xhat = y.detach()
        expected = (dy * xhat).sum(axes(x)) * (var + r.eps).rsqrt() * (r.eps / (var + r.eps))
        assert_within((dx * xhat).sum(axes(x)), expected, room)

    hold(check, MODERATE, cases)


def axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def test_the_nightly_preset_is_as_large_as_promised() -> None:
    properties = [
        name for name, value in globals().items() if name.startswith("test_") and hasattr(value, "pytestmark")
    ]
    assert len(properties) * NIGHTLY >= 20_000
