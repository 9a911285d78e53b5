"""The fuzzer's bounds are derived: what once looked wrong and is not, and what bounds still see beside it."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import pytest
import torch
from tools.fuzz import smooth
from tools.fuzz.case import Array, Case, usual
from tools.fuzz.finding import Outcome
from tools.fuzz.fit import fit
from tools.fuzz.judge import judge
from tools.fuzz.run import program, run
from tools.fuzz.truth import compute
from torch import Tensor, nn

from normkit.contract import underflow, unit_roundoff


def case_of(values: dict[str, str] | None = None, names: tuple[str, ...] = (), **fields: object) -> Case:
    """A case with the usual tensors of these names besides x and dy, some of them of other values."""
    arrays = {"x": Array(), "dy": Array()} | {name: usual(name) for name in names}
    for name, kind in (values or {}).items():
        arrays[name] = Array(values=kind)
    return Case(tensors=arrays).but(**fields)


RUNNING = ("running_mean", "running_var")
GIVEN = {"names": RUNNING, "training": False}
TANH_FORM = "nn.GELU(approximate='tanh')"
# The sums of dy cancel, so that float64 itself leaves only roundings of the terms.
CANCELS = case_of({"x": "scale1e-20", "dy": "arange"}, shape=(3, 4, 6), eps="0.1")
CASES = {
    "sums_cancel": CANCELS,
    "sums_cancel_and_x_is_zero": case_of({"x": "zeros", "dy": "arange"}, ("weight",), shape=(7, 2)),
    # e^z is subnormal: a step of it times z
    "bottom_of_silu": case_of({"running_var": "zeros"}, shape=(3, 11), activation="'silu'", **GIVEN),
    # where torch's float64 silu is 0
    "beyond_torchs_silu": case_of(shape=(3, 3, 6), activation="'silu'", **GIVEN).tensor(
        "x", values="scale1e4", dtype="float64"
    ),
    "eps_by_the_dtype_of_the_sum": case_of(
        names=("residual",), norm="add_rms_norm", shape=(1,), eps="None", plan="none"
    ).tensor("residual", dtype="float64"),
    "normalize_broadcasts": case_of(
        names=("weight",), norm="normalize", shape=(1, 2, 2), wanted=("weight",)
    ).tensor("weight", values="zeros", size=(1, 2)),
    "slopes_that_are_differences": case_of(
        names=("weight", "bias", "residual"), norm="add_layer_norm", part=2, shape=(33, 24), activation=TANH_FORM,
        wanted=("weight",),
    ),
    "kept_in_half": case_of(
        names=("weight",), norm="group_norm", shape=(2, 1), contexts=("saved('half_and_back')",), wanted=("weight",)
    ),
    "one_value_kept_in_bfloat16": case_of(norm="group_norm", part=3, shape=(32, 3), contexts=("saved('bfloat16')",)),
    "one_memory": case_of(alias="running_overlaps", shape=(1, 1), **GIVEN).tensor("running_mean", layout="offset"),
    "operation_on_half": case_of({"weight": "scale1e20"}, activation="'softsign'", shape=(2, 1)).tensor(
        "x", dtype="float16"
    ),
    "operation_that_cubes": case_of(
        {"weight": "scale1e20"}, norm="rms_norm", shape=(13, 6), activation=TANH_FORM
    ),
    "no_values_under_a_fake_mode": case_of(
        names=("residual",), norm="instance_norm", layer=True, plan="grad", wanted=("residual",), shape=(1, 2),
        around=("FakeTensorMode(allow_non_fake_inputs=True)",),
    ),
    "a_residual_beyond_the_inputs_dtype": case_of(
        {"residual": "mean1e6"}, shape=(2, 1), activation="'silu'"
    ).tensor("x", dtype="float16"),
    # dz is 0 where z is, and may be dy; xhat is a rounding of x
    "off_in_both_factors": case_of(
        names=("weight",), shape=(3, 1), activation="'relu'", wanted=("x", "weight")
    ).tensor("x", values="constant", dtype="float64", trick="wrapper").tensor("weight", dtype="float64"),
    "a_step_of_the_least_number": case_of(
        {"x": "scale1e-40", "dy": "mean1e3"}, ("weight",), norm="layer_norm", shape=(3,), eps="0.001",
        wanted=("x", "weight"),
    ),
    # the edit of x moves dy too, and rounds it to float32 where the norm is of float64
    "an_edited_memory": case_of(
        names=("residual",), norm="add_layer_norm", shape=(64,), alias="dy_is_x", edit="x"
    ).tensor("residual", dtype="float64"),
    "a_weight_that_a_hook_makes_zero": case_of(
        {"weight": "scale1e-30"}, shape=(2, 1), activation="'relu'", contexts=("saved('half_and_back')",),
        wanted=("weight",),
    ),
    "weight_and_rstd_below_the_normal_numbers": case_of(
        {"x": "scale1e30", "weight": "scale1e-30", "dy": "scale1e30"}, shape=(2, 1)
    ),
    "the_mean_itself": case_of({"x": "mean1e6"}, shape=(24, 7, 7), norm="group_norm", mask="random", plan="none"),
    "the_mean_itself_near_zero": case_of(shape=(49, 65, 13), norm="instance_norm", mask="random").tensor(
        "x", dtype="bfloat16"
    ),
    # hardswish's slope is another at -3 and back where it was at 0, which is how far bfloat16 leaves x + residual
    "a_slope_that_turns": case_of(
        names=("weight", "residual"), shape=(55, 8), activation="'hardswish'", wanted=("residual",),
        contexts=("saved('bfloat16')",),
    ).tensor("x", values="mean1e2"),
    "a_residual_kept_in_bfloat16": case_of(
        names=("bias", "residual"), shape=(1, 6, 47), activation="'silu'", wanted=("residual",),
        contexts=("saved('bfloat16')",),
    ).tensor("x", values="arange"),
    "an_operation_whose_value_is_kept": case_of(
        names=("bias", "residual"), norm="group_norm", shape=(3, 9, 48), eps="0.0", activation="'tanhshrink'",
        wanted=("residual",), contexts=("saved('bfloat16')",),
    ).tensor("x", values="arange").tensor("residual", layout="expanded"),
    "a_value_that_turns": case_of(
        names=("weight", "bias", *RUNNING, "residual"), norm="batch_renorm", shape=(8, 1, 32, 2), plan="none",
        activation="nn.Threshold(0.1, 2.0)",
    ).tensor("x", dtype="bfloat16"),
    "zeros_without_memory_under_a_fake_mode": case_of(
        names=("weight",), norm="rms_norm", shape=(1,), transform="fake", wanted=("weight",)
    ).tensor("x", trick="zerotensor"),
    "given_statistics_of_nothing": case_of(
        {"running_mean": "nan"}, ("weight", "running_var"), shape=(1, 1), training=False, mask="random",
        wanted=("weight",),
    ),
    # the gradient that comes to the norm, 2 y dy, leaves float16
    "a_gradient_that_overflows_before_the_norm": case_of(
        {"bias": "mean1e4", "dy": "mean1e3"}, ("weight",), norm="layer_norm", shape=(3, 5), after="square",
        wanted=("weight",),
    ).tensor("x", dtype="float16").tensor("dy", values="mean1e3", dtype="float16"),
    # 1 / std of 1e15 is kept in float32, and its derivative is its cube
    "a_cube_that_overflows": case_of(
        {"x": "constant_channel"}, norm="normalize", shape=(9, 1, 1, 2), eps="1e-30", plan="grad",
        contexts=("saved('float32')",),
    ),
    # dx near 1e-37, of which weight / std^2 is a subnormal number, times x of 1e6
    "a_subnormal_slope": case_of(
        {"x": "samples", "weight": "scale1e-30"}, ("bias", "scale", "residual"), shape=(9, 15, 7, 7),
        activation="'tanh'",
    ),
    "zeros_without_memory_are_row_major": case_of(
        names=("weight", "bias", "residual"), norm="group_norm", shape=(1, 17, 24), mask="full_rank", plan="sum",
        layer=True,
    ).tensor("x", layout="channels_last").tensor("residual", layout="channels_last").tensor(
        "weight", values="zeros", trick="zerotensor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_right_is_not_found(name: str) -> None:
    case = CASES[name]
    assert fit(case) == case
    make, _ = program(case, "normkit")
    assert "y" in compute(case, make()).results  # there is a truth that it was compared with
    assert run(case) is None


def test_where_sums_cancel_what_is_more_than_their_roundings_is_found() -> None:
    make, norm = program(CANCELS, "normkit")
    assert norm is not None
    found = norm(**make())
    truth = compute(CANCELS, make())
    found["dx"] = found["dx"] + 2.0**-30
    finding = judge(CANCELS, Outcome(found=found), None, truth)
    assert finding is not None
    assert finding.what == "dx"


# What is allowed for the sake of one number is found beside it: y off by this everywhere, or x's gradient.
BESIDE = {
    "the_mean_itself": ("y", 1e-7),
    "the_mean_itself_near_zero": ("y", 1e-13),
    "weight_and_rstd_below_the_normal_numbers": ("y", 1e-13),
    "a_residual_kept_in_bfloat16": ("dresidual", 0.2),
    "a_slope_that_turns": ("dresidual", 6.0),
    "an_operation_whose_value_is_kept": ("dresidual", 0.1),
    "a_value_that_turns": ("y", 1.0),
    "an_edited_memory": ("dx", 1e-8),
    "a_subnormal_slope": ("dx", 1e-37),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_allowed_for_one_number_is_no_more(name: str) -> None:
    (what, off), case = BESIDE[name], CASES[name]
    make, norm = program(case, "normkit")
    assert norm is not None
    found, truth = norm(**make()), compute(case, make())
    wrong = found[what].detach().double() + off
    finding = judge(case, Outcome(found={**found, what: wrong}), None, truth)
    assert finding is not None
    assert finding.what == what


@pytest.mark.parametrize(
    "case",
    [
        case_of(names=("bias",), shape=(2, 1), mask="random", transform="vmap").tensor("x", dtype="float64"),
        case_of(names=("residual",), norm="add_rms_norm", shape=(2,), hook="zerotensor", plan="double"),
    ],
    ids=["torch_mixes_dtypes_under_vmap", "a_hook_that_autograd_calls_with_none"],
)
def test_what_torchs_nearest_computes_is_no_measure(case: Case) -> None:
    assert fit(case) == case
    assert run(case) is None


def test_a_layer_without_a_weight_gets_no_bias_of_another_dtype() -> None:
    case = case_of(names=("bias", *RUNNING), norm="batch_renorm", shape=(2, 4, 5), transform="checkpoint")
    assert "bias" not in fit(case).tensors  # a layer has a bias where it has a weight, which is drawn in float32


@pytest.mark.parametrize("weight", ["param", "scale1e-30"])
def test_a_weight_that_no_hook_makes_zero_keeps_its_gate(weight: str) -> None:
    case = case_of({"weight": weight}, shape=(2, 1), activation="'relu'", wanted=("weight",))
    case = case if weight != "param" else case.but(contexts=("saved('half_and_back')",))
    make, norm = program(case, "normkit")
    assert norm is not None
    found, truth = norm(**make()), compute(case, make())
    closed = {**found, "dweight": torch.zeros_like(found["dweight"])}
    assert judge(case, Outcome(found=found), None, truth) is None
    finding = judge(case, Outcome(found=closed), None, truth)
    assert finding is not None
    assert finding.what == "dweight"


@pytest.mark.parametrize(("hook", "share"), [("bfloat16", 0.3), ("half_and_back", 0.04), ("clone", 1e-5)])
def test_saved_tensors_with_fewer_digits_cost_these_digits_alone(hook: str, share: float) -> None:
    names = ("x", "weight", "bias")
    case = case_of(names=names[1:], shape=(64, 3, 5), contexts=(f"saved({hook!r})",), wanted=names)
    assert run(case) is None
    make, norm = program(case, "normkit")
    assert norm is not None
    found, truth = norm(**make()), compute(case, make())
    for name, terms in (("dx", 1), ("dweight", 64 * 5)):
        wrong = {**found, name: found[name] + share * terms}
        finding = judge(case, Outcome(found=wrong), None, truth)
        assert finding is not None, name
        assert finding.what == name


@pytest.mark.parametrize("edit", ["x", "weight", "mask"])
def test_an_edit_behind_a_hook_that_keeps_the_very_tensor_is_left_out(edit: str) -> None:
    case = case_of(names=("weight",), mask="random", edit=edit)
    assert fit(case.but(contexts=("saved('detach')",))).edit == ""
    assert fit(case.but(contexts=("saved('clone')",))).edit == edit
    assert fit(case).edit == edit


def test_an_output_is_not_written_where_a_hook_keeps_what_an_activation_keeps() -> None:
    """torch.sigmoid keeps its output, and these hooks the very tensor: torch's own gradient is wrong then."""
    case = case_of(norm="layer_norm", activation="'sigmoid'", after="mul_")
    assert fit(case.but(contexts=("torch.autograd.graph.save_on_cpu()",))).after == ""
    assert fit(case.but(contexts=("saved('clone')",))).after == "mul_"
    assert fit(case).after == "mul_"


EXACT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[mpmath.mpf], mpmath.mpf]]] = {
    "sigmoid": (smooth.sigmoid, lambda z: 1 / (1 + mpmath.exp(-z))),
    "silu": (smooth.silu, lambda z: z / (1 + mpmath.exp(-z))),
    "gelu": (smooth.gelu, lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2),
    "gelu_tanh": (
        smooth.gelu_tanh,
        lambda z: z / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3))),
    ),
    "mish": (smooth.mish, lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z)))),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_activations_and_their_slopes_are_exact_where_they_vanish_too(name: str) -> None:
    function, exact = EXACT[name]
    ordinary = [0.0, 1e-30, 1e-8, 0.1, 0.5, 1, 2, 2.9, 3, 5, 8, 8.3, 10, 16.6, 20, 37, 50, 100, 500, 709.8, 740, 1000]
    z = torch.tensor([*ordinary, *(-v for v in ordinary)], dtype=torch.float64, requires_grad=True)
    y = function(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    u, step = unit_roundoff(torch.float64), underflow(torch.float64)
    with mpmath.workdps(700):
        for at, value, derivative in zip(z.tolist(), y.tolist(), slope.tolist(), strict=True):
            point = mpmath.mpf(at)
            h = mpmath.mpf(10) ** -340
            true, true_slope = exact(point), (exact(point + h) - exact(point - h)) / (2 * h)
            # e^(-z^2 / 2) and its like: off by what roundings of the exponent do
            roundings = 16 + (2 * min(at * at, 1500) if name.startswith("gelu") else 0)
            assert abs(value - true) <= roundings * u * abs(true) + step * (1 + abs(at)), at
            assert abs(derivative - true_slope) <= roundings * u * abs(true_slope) + step * (1 + abs(at)) ** 3, at


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "module", [nn.SiLU(), nn.Mish(), nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.Softplus()], ids=repr
)
def test_torchs_slopes_are_off_by_no_more_roundings_than_are_allowed(module: nn.Module, dtype: torch.dtype) -> None:
    z = torch.cat([torch.linspace(-20, 20, 8001), torch.linspace(-120, 120, 4001)]).to(dtype).requires_grad_()
    wide = z.detach().double().requires_grad_()
    function = smooth.exact(module)
    (found,) = torch.autograd.grad(module(z).sum(), z)
    (slope,) = torch.autograd.grad(function(wide).sum(), wide)
    u = unit_roundoff(dtype)
    allowed = u * (smooth.slope_roundings(function, wide.detach()) + 8 * slope.abs())
    assert bool(((found.double() - slope).abs() <= allowed).all())
