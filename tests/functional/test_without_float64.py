"""The composed operations where a device has no float64: on the CPU, under a mode that raises where float64 appears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import normkit as nk
from normkit import Moments, _precision, contract, reference
from normkit._activation import NONE
from normkit.functional.road import run
from normkit.functional.sync_batch_norm import SyncBatchNormSpec
from tests.cases import EPS, LAYOUTS, MOMENTUM, VALUES, Shape, affine, gaussian, generator, random_mask
from tests.tolerances import assert_same, assert_within

SHAPE = (7, 6, 5, 9)
F = nk.functional
U32 = 2.0**-24


class NoFloat64(TorchDispatchMode):
    """Raises where an operation reads or makes a float64 tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, found)):
            assert not (isinstance(leaf, Tensor) and leaf.dtype == torch.float64), f"{func} has float64 to do with"
        return found


@contextmanager
def without_float64(seen: bool = True) -> Iterator[None]:
    """The CPU counts as a device without float64. seen: a float64 tensor raises."""
    with pytest.MonkeyPatch.context() as patch, NoFloat64() if seen else nullcontext():
        patch.setattr(_precision, "float64_on", lambda device: "none")
        yield


@dataclass(frozen=True)
class Case:
    """A norm of ours and its truth, both (x, weight, bias, mask) -> y; what shares a statistic as axes of `split`."""

    ours: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    truth: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    average: Callable[[Tensor, Tensor | None], Tensor]  # over what shares a statistic, laid beside x


def over(axes: tuple[int, ...]) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The average over axes of the real values."""

    def average(t: Tensor, mask: Tensor | None) -> Tensor:
        real = torch.ones_like(t) if mask is None else mask.unsqueeze(1).expand_as(t).to(t)
        return (
            torch.where(real > 0, t, 0).sum(axes, keepdim=True) / real.sum(axes, keepdim=True).clamp(min=1)
        ).expand_as(t)

    return average


def over_groups(t: Tensor, mask: Tensor | None) -> Tensor:
    wide = None if mask is None else mask.unsqueeze(1).expand_as(t).reshape(t.shape[0], 2, -1)[:, 0]
    return over((2,))(t.reshape(t.shape[0], 2, -1), wide).reshape(t.shape)


def over_slices(t: Tensor, mask: Tensor | None) -> Tensor:
    sizes = reference.slice_sizes(len(t), 3)
    masks = [None] * len(sizes) if mask is None else mask.split(sizes)
    return torch.cat([over((0, 2, 3))(part, kept) for part, kept in zip(t.split(sizes), masks, strict=True)])


def buffers(like: Tensor) -> tuple[Tensor, Tensor]:
    """Running statistics near those of a float64 input, within renorm's limits; float32 holds them."""
    var, mean = torch.var_mean(like.detach().double(), (0, 2, 3), correction=0)
    return (mean + 0.5 * (var + EPS).sqrt()).float(), (1.5 * var + 0.1).float()


def renorm(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    mean, var = (b.to(torch.promote_types(x.dtype, torch.float32)) for b in RUNNING)
    return F.batch_renorm(x, mean.clone(), var.clone(), weight, bias, True, eps=EPS, mask=mask)


def renorm_truth(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    mean, var = (b.double() for b in RUNNING)
    return reference.batch_renorm(x, mean, var, weight, bias, EPS, 3.0, 5.0, mask)[0]


RUNNING = [torch.zeros(6), torch.ones(6)]  # of `renorm`; a test lays them near its input
BATCH = over((0, 2, 3))
CASES: dict[str, Case] = {
    "batch": Case(
        lambda x, w, b, m: F.batch_norm(x, None, None, w, b, True, eps=EPS, mask=m),
        lambda x, w, b, m: reference.batch_norm(x, w, b, EPS, m)[0],
        BATCH,
    ),
    "group": Case(
        lambda x, w, b, m: F.group_norm(x, 2, w, b, EPS, mask=m),
        lambda x, w, b, m: reference.group_norm(x, 2, w, b, EPS, m)[0],
        over_groups,
    ),
    "instance": Case(
        lambda x, w, b, m: F.instance_norm(x, None, None, w, b, eps=EPS, mask=m),
        lambda x, w, b, m: reference.instance_norm(x, w, b, EPS, m)[0],
        over((2, 3)),
    ),
    "layer": Case(
        lambda x, w, b, m: F.layer_norm(x.movedim(1, -1), (6,), w, b, EPS, mask=m).movedim(-1, 1),
        lambda x, w, b, m: reference.layer_norm_2d(x, w, b, EPS, m)[0],
        lambda t, m: over((1,))(t, None),
    ),
    "rms": Case(
        lambda x, w, b, m: (
            F.rms_norm(x.movedim(1, -1), (6,), w, EPS, mask=m).movedim(-1, 1) + (0 * b).view(6, 1, 1).to(x.dtype)
        ),
        lambda x, w, b, m: (
            reference.rms_norm(x.movedim(1, -1), (6,), w, EPS, m)[0].movedim(-1, 1) + (0 * b).view(6, 1, 1).to(x.dtype)
        ),
        lambda t, m: over((1,))(t, None),
    ),
    "ghost": Case(
        lambda x, w, b, m: F.ghost_batch_norm(x, None, None, w, b, True, eps=EPS, virtual_batch_size=3, mask=m),
        lambda x, w, b, m: reference.ghost_batch_norm(x, w, b, EPS, 3, m)[0],
        over_slices,
    ),
    "renorm": Case(renorm, renorm_truth, BATCH),
    "normalize": Case(
        lambda x, w, b, m: F.normalize(x, Moments.of(x[:2], (0, 2, 3)).merge(Moments.of(x[2:], (0, 2, 3))), w, b, EPS),
        lambda x, w, b, m: reference.batch_norm(x, w, b, EPS)[0],
        BATCH,
    ),
}
norms = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def assert_bounds(
    case: Case, shape: Shape, values: str, dtype: torch.dtype, layout: str, mask: Tensor | None, one_sign: bool = False
) -> None:
    """Raise unless y, dx, dweight and dbias hold the contract's bounds and what float32 adds."""
    g = generator(5)
    x, dy = LAYOUTS[layout](VALUES[values](shape, g).to(dtype)), gaussian(shape, g).to(dtype)
    dy = dy.abs() if one_sign else dy
    weight, bias = (p.float() for p in affine(shape[1], g))
    RUNNING[:] = buffers(x)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    with without_float64():
        y = case.ours(*leaves, mask)
        dx, dweight, dbias = torch.autograd.grad(y, leaves, dy)
    assert (y.dtype, dx.dtype, dweight.dtype) == (dtype, dtype, torch.float32)

    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    y64 = case.truth(*wide, mask)
    dx64, dweight64, dbias64 = torch.autograd.grad(y64, wide, dy.double())
    x64, w64, b64 = (t.detach() for t in wide)
    w64, b64, real = w64.view(-1, 1, 1), b64.view(-1, 1, 1), None if mask is None else mask.unsqueeze(1)

    def average(t: Tensor) -> Tensor:
        return case.average(t, mask)

    centred = x64 if case is CASES["rms"] else x64 - average(x64)
    rstd = (average(centred.square()) + EPS).rsqrt()
    xhat = centred * rstd
    dy64 = dy.double() if real is None else torch.where(real, dy.double(), 0)
    scale, shift = w64, b64
    if case is CASES["renorm"]:
        mean, var = (b.double() for b in RUNNING)
        sigma = (var + EPS).sqrt().view(-1, 1, 1)
        # d is the difference of two means, each as long as they are
        r, d = 1 / (rstd * sigma), (average(x64) - mean.view(-1, 1, 1)) / sigma
        r, d = r.clamp(1 / 3, 3), d.clamp(-5, 5)
        scale, shift = w64 * r, w64.abs() * d.abs() + b64.abs()
    u = contract.unit_roundoff(dtype)
    output = contract.output_bound(xhat, scale, shift, u) + contract.float32_output_bound(xhat, scale)
    assert_within(y, y64, output if real is None else torch.where(real, output, 0), "y")
    dxhat = dy64 * scale
    bound = contract.input_gradient_bound(dxhat, xhat, rstd, average, u)
    assert_within(dx, dx64, bound + contract.float32_gradient_bound(dxhat, xhat, rstd, average), "dx")
    seen = xhat if case is not CASES["renorm"] else xhat.abs() * r + d.abs()
    for name, found, truth, terms in (("dweight", dweight, dweight64, dy64 * seen), ("dbias", dbias, dbias64, dy64)):
        bound = contract.parameter_gradient_bound(terms, (0, 2, 3), U32)
        assert_within(found, truth, bound + contract.float32_parameter_bound(dy64, seen, (0, 2, 3)), name)


@pytest.mark.parametrize("values", ["standard", "kappa_1e2", "kappa_1e4", "kappa_1e6", "constant_channel", "outlier"])
@norms
def test_every_norm_holds_the_stated_bounds(case: Case, values: str) -> None:
    assert_bounds(case, SHAPE, values, torch.float32, "contiguous", None)


@pytest.mark.parametrize("values", ["standard", "kappa_1e4", "kappa_1e6"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "normalize"])
def test_masked_norms_hold_them_too(name: str, values: str) -> None:
    assert_bounds(CASES[name], SHAPE, values, torch.float32, "contiguous", random_mask(SHAPE, generator(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@norms
def test_so_do_16_bit_inputs_in_channels_last(case: Case, dtype: torch.dtype) -> None:
    assert_bounds(case, SHAPE, "kappa_1e2", dtype, "channels_last", None)


@pytest.mark.parametrize("shape", [(40_000, 2, 1, 3), (3, 2, 300, 211)], ids=str)
@pytest.mark.parametrize("name", ["batch", "instance"])
def test_sums_of_many_values_lose_no_more_than_is_allowed(name: str, shape: Shape) -> None:
    if name == "instance" and shape[2:] == (1, 3):
        shape = (4, 2, 1, 90_000)
    assert_bounds(CASES[name], shape, "kappa_1e6", torch.float32, "contiguous", None, one_sign=True)


@pytest.mark.parametrize("values", ["kappa_1e2", "kappa_1e6"])
def test_a_synchronised_norm_saves_both_parts_of_its_mean(values: str, tmp_path: Path) -> None:
    """Its backward starts from saved statistics, in their own dtype."""
    spec = SyncBatchNormSpec(NONE, None, True, EPS)
    sync = Case(lambda x, w, b, m: run(spec, x, w, b, mask=m), CASES["batch"].truth, BATCH)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert_bounds(sync, SHAPE, values, torch.float32, "contiguous", None)
    finally:
        dist.destroy_process_group()


def test_the_mode_sees_float64() -> None:
    """Without the rule the composed operations are float64's, and the mode raises."""
    x = torch.randn(4, 3, 5)
    with NoFloat64(), pytest.raises(AssertionError, match="float64"):
        F.batch_norm(x, None, None, training=True)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm2d(6, eps=EPS, momentum=MOMENTUM),
    "cumulative": lambda: nk.BatchNorm2d(6, eps=EPS, momentum=None),
    "instance": lambda: nk.InstanceNorm2d(6, eps=EPS, momentum=MOMENTUM, track_running_stats=True),
    "ghost": lambda: nk.GhostBatchNorm2d(6, virtual_batch_size=3, eps=EPS, momentum=MOMENTUM),
    "renorm": lambda: nk.BatchRenorm2d(6, eps=EPS, momentum=MOMENTUM),
}


@pytest.mark.parametrize("values", ["standard", "kappa_1e4"])
@pytest.mark.parametrize("deferred", [False, True], ids=["at once", "deferred"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_running_statistics_move_as_in_float64(
    make: Callable[[], nn.Module], masked: bool, deferred: bool, values: str
) -> None:
    """Deferred, the micro-batches' moments are merged by their counts."""
    layer, twin = make(), make().double()
    batches = [VALUES[values]((n, *SHAPE[1:]), generator(n)).float() for n in (7, 4)]
    masks = [random_mask(tuple(x.shape), generator(2)) if masked else None for x in batches]
    for module, kind, place in ((layer, torch.float32, without_float64()), (twin, torch.float64, nullcontext())):
        with place, nk.deferred_statistics(module) if deferred else nullcontext():
            for x, mask in zip(batches, masks, strict=True):
                module(x.to(kind), mask=mask)
    mean, var = (getattr(twin, name).double() for name in ("running_mean", "running_var"))
    lost = contract.FLOAT32_STATISTICS
    assert_within(layer.running_mean, mean, lost * var.sqrt() + 4 * U32 * mean.abs(), "mean")
    assert_within(layer.running_var, var, (lost + 4 * U32) * var, "var")


def test_moments_merge_with_what_the_rounding_of_their_means_takes_off() -> None:
    """At kappa = 1e6 float32 holds a mean to 3 % of a standard deviation; the two parts hold it to a millionth."""
    x = gaussian((600, 3), generator(1), mean=1e6).float()
    truth = x.double().mean(0), x.double().var(0, correction=0)
    parts = x.split([1, 250, 0, 349])
    with without_float64():
        merged = Moments(0, torch.zeros(3), torch.zeros(3))
        for part in parts:
            merged = merged.merge(Moments.of(part, 0))
        whole = Moments.of(x.view(4, 150, 3), 1).merge_along(0)
        counted = Moments.of(x.view(4, 150, 3), 1, torch.ones(4, 150, 3, dtype=torch.bool)).merge_along(0)
        at_once = Moments.of(x, 0)
    for moments in (merged, whole, counted, at_once):
        assert moments.mean.dtype == torch.float32
        assert moments.low is not None
        assert_within(moments.mean.double() + moments.low.double(), truth[0], 1e-6 * truth[1].sqrt(), "mean")
        assert_within(moments.var(correction=0), truth[1], 1e-6 * truth[1], "var")
        assert_same(moments.to(torch.float64).mean, moments.mean.double() + moments.low.double())
    assert ((x.mean(0) - truth[0]).abs() > 1e-4 * truth[1].sqrt()).any(), "a plain float32 mean would do"


@norms
def test_transforms_see_the_same_norm(case: Case) -> None:
    """torch.func's grad, jvp and vmap, and second derivatives, near what they are in float64."""
    g = generator(4)
    x, weight, bias = gaussian((3, 6, 2, 4), g), *affine(6, g)
    RUNNING[:] = buffers(x)
    v = gaussian((3, 6, 2, 4), g)

    def ours(x: Tensor) -> Tensor:
        return case.ours(x, weight.to(x.dtype), bias.to(x.dtype), None)

    def loss(x: Tensor) -> Tensor:
        return ours(x).pow(3).sum()

    def derivatives(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        first = torch.func.grad(loss)(x)
        tangent = torch.func.jvp(ours, (x,), (v,))[1]
        second = torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1]
        batched = torch.func.vmap(ours)(torch.stack([x, 2 * x]))
        return first, tangent, second, batched

    with nk.backend("composed"):
        expected, narrow = derivatives(x, v), (x.float(), v.float())
        weight, bias = weight.float(), bias.float()
        with without_float64(seen=False):  # torch's forward mode makes zeros of float64 of Python's numbers
            found = derivatives(*narrow)
    for a, b in zip(found, expected, strict=True):
        assert_within(a, b, 1e-5 * b.abs().amax().item())


@pytest.mark.parametrize("name", [name for name in CASES if name != "renorm"])
def test_a_compiled_norm_keeps_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_precision, "float64_on", lambda device: "none")
    case, g = CASES[name], generator(4)
    x, (weight, bias) = (
        gaussian((6, 6, 3, 5), g, mean=100.0).float().requires_grad_(),
        (p.float() for p in affine(6, g)),
    )

    def step(x: Tensor) -> Tensor:
        return case.ours(x, weight, bias, None)

    with nk.backend("composed"):
        y, eager = torch.compile(step, backend="aot_eager", fullgraph=True)(x), step(x)
    assert_same(y, eager)
    (dx,), (expected,) = (torch.autograd.grad(out, x, torch.ones_like(out) + out.detach()) for out in (y, eager))
    assert_within(dx, expected.double(), 1e-5 * expected.abs().amax().item())


def test_dynamo_takes_what_a_driver_says_as_a_constant() -> None:
    def widen(x: Tensor) -> Tensor:
        return x.to(torch.float64 if _precision._on_cuda(torch.device("cuda", 0)) == "fast" else torch.float32)

    assert torch.compile(widen, backend="eager", fullgraph=True)(torch.ones(2)).dtype == widen(torch.ones(2)).dtype


CHIPS = {"P100": (6, 0), "V100": (7, 0), "A100": (8, 0), "H100": (9, 0), "B200": (10, 0)}
SLOW = {
    "GTX 1080": (6, 1),
    "RTX 2080": (7, 5),
    "RTX 3090": (8, 6),
    "Orin": (8, 7),
    "RTX 4090": (8, 9),
    "RTX 5090": (12, 0),
}


@pytest.mark.parametrize(
    ("chip", "speed"), [*((c, "fast") for c in CHIPS.values()), *((c, "slow") for c in SLOW.values())]
)
def test_the_rule_knows_which_chips_are_slow(
    chip: tuple[int, int], speed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: chip)
    monkeypatch.setattr(torch.version, "hip", None)
    assert _precision.float64_on(torch.device("cuda")) == speed
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert (_precision.float64_on(torch.device("cuda")) == "fast") == (chip[0] == 9)


def test_the_rule_of_other_devices() -> None:
    for device, speed in (("cpu", "fast"), ("meta", "fast"), ("mps", "none")):
        assert _precision.float64_on(torch.device(device)) == speed


def test_a_float64_input_stays_float64_where_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_precision, "float64_on", lambda device: "slow")
    assert Moments.of(torch.ones(3).double(), 0).mean.dtype == torch.float64
    assert Moments.of(torch.ones(3), 0).mean.dtype == torch.float32
    assert _precision.wide_dtype(torch.device("cpu")) == torch.float64


@pytest.mark.parametrize("mask", [False, True], ids=["whole", "masked"])
def test_the_gradient_of_a_16_bit_parameter_is_rounded_once(mask: bool) -> None:
    g = generator(31)
    x, dy = (gaussian((64, 4, 9, 5), g).bfloat16() for _ in range(2))
    weight, bias = (p.bfloat16().requires_grad_() for p in affine(4, g))
    scale = (1 + gaussian((1, 4, 1, 1), g)).bfloat16().requires_grad_()
    leaves = (weight, bias, scale)
    real = torch.ones(64, 9, 5, dtype=torch.bool) if mask else None
    with without_float64():
        y = F.batch_norm(x, None, None, weight, bias, True, eps=EPS, mask=real, modulate=(scale, None))
        found = torch.autograd.grad(y, leaves, dy)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = wide[2] * reference.batch_norm(x.double(), *wide[:2], EPS)[0]
    for got, expected in zip(found, torch.autograd.grad(truth, wide, dy.double()), strict=True):
        allowed = contract.unit_roundoff(torch.bfloat16) * expected.abs() + 1e-3  # of sums of 2880 terms near 1
        assert_within(got, expected, allowed, "a parameter's gradient")
