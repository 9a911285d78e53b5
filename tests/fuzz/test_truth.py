"""The fuzzer's own truth: torch's float64 layers find the same, and a wrong result is out of bounds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tools.fuzz.case import Array, Case, usual
from tools.fuzz.finding import Outcome
from tools.fuzz.fit import fit
from tools.fuzz.judge import judge
from tools.fuzz.modulation import FORMS
from tools.fuzz.run import program
from tools.fuzz.truth import compute
from torch import nn

TORCHS = ("batch_norm", "group_norm", "layer_norm", "rms_norm", "instance_norm", "layer_norm_2d", "frozen_batch_norm",
          "add_layer_norm", "add_rms_norm", "sync_batch_norm")  # fmt: skip
NAMES = ("x", "weight", "bias", "residual", "dy")
MODULATED = (*TORCHS, "ghost_batch_norm", "batch_renorm")


def case_of(norm: str, **fields: object) -> Case:
    """A case of all tensors in float64."""
    arrays = {n: dataclasses.replace(usual(n), dtype="float64") for n in (*NAMES, "running_mean", "running_var")}
    wanted = ("x", "weight", "bias", "residual")
    return fit(Case(norm=norm, shape=(4, 6, 3, 5), part=2, tensors=arrays, wanted=wanted).but(**fields))


def results(case: Case, lib: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    make, run = program(case, lib)
    assert run is not None
    return run(**make()), make()


@pytest.mark.parametrize("activation", ["", "'relu'", "'silu'", "nn.Softplus()"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", TORCHS)
def test_torchs_float64_is_the_truth(norm: str, training: bool, activation: str) -> None:
    case = case_of(norm, training=training, activation=activation, eps="0.01")
    found, tensors = results(case, "torch")
    truth = compute(case, tensors)
    assert {"y", "dx"} <= found.keys() & truth.results.keys()
    for name, value in found.items():
        expected, _ = truth.results[name]
        torch.testing.assert_close(
            value.detach().double(), expected.double().reshape(value.shape), rtol=1e-9, atol=1e-9
        )


def modulated(norm: str, form: str, **fields: object) -> Case:
    """The same with a scale and a shift."""
    case = case_of(norm)
    for name in ("scale", "shift"):
        case = case.with_tensor(name, dataclasses.replace(usual(name), dtype="float64", form=form))
    return fit(case.but(wanted=(*case.wanted, "scale", "shift"), **fields))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", TORCHS)
def test_a_modulation_of_torchs_float64_is_the_truth(norm: str, form: str) -> None:
    case = modulated(norm, form, activation="'silu'", eps="0.01")
    found, tensors = results(case, "torch")
    truth = compute(case, tensors)
    assert {"y", "dx", "dscale", "dshift"} <= found.keys() & truth.results.keys()
    for name, value in found.items():
        expected, _ = truth.results[name]
        torch.testing.assert_close(
            value.detach().double(), expected.double().reshape(value.shape), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("mask", ["", "random"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", MODULATED)
def test_modulated_normkit_is_within_bounds_and_a_little_more_is_not(norm: str, form: str, mask: str) -> None:
    case = modulated(norm, form, mask=mask)
    case = case.but(tensors={n: dataclasses.replace(a, dtype="float32") for n, a in case.tensors.items()})
    found, tensors = results(case, "normkit")
    truth = compute(case, tensors)
    assert judge(case, Outcome(found=dict(found)), None, truth) is None
    for name in ("y", "dx", "dscale", "dshift"):
        wrong = {**found, name: found[name].detach() + 1e-4 * truth.scale[name]}
        finding = judge(case, Outcome(found=wrong), None, truth)
        assert finding is not None, name
        assert finding.what == name


@pytest.mark.parametrize("norm", TORCHS)
def test_second_and_directional_derivatives_are_torchs(norm: str) -> None:
    for fields in ({"plan": "double"}, {"transform": "jvp"}):
        if norm.startswith("add_") and "transform" in fields:
            continue
        case = case_of(norm, training=norm != "instance_norm", **fields)
        if norm in ("batch_norm", "sync_batch_norm") and "transform" in fields:
            case = case.with_tensor("running_mean", None).with_tensor("running_var", None)
        found, tensors = results(case, "torch")
        truth = compute(case, tensors)
        for name in {"ddx", "ddy", "jvp"} & found.keys():
            expected = truth.results[name][0]
            value = torch.zeros_like(expected) if found[name] is None else found[name].detach()  # given statistics
            torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("norm", ["ghost_batch_norm", "batch_renorm", "normalize", *TORCHS])
@pytest.mark.parametrize("mask", ["", "random", "first_sample"])
def test_normkit_is_within_bounds_and_a_little_more_is_not(norm: str, mask: str) -> None:
    case = case_of(norm, mask=mask)
    case = case.but(tensors={n: dataclasses.replace(a, dtype="float32") for n, a in case.tensors.items()})
    found, tensors = results(case, "normkit")
    truth = compute(case, tensors)
    assert judge(case, Outcome(found=dict(found)), None, truth) is None
    for name, value in found.items():
        if name not in truth.results or not value.is_floating_point():
            continue
        wrong = {**found, name: value.detach() * 1.0001}
        finding = judge(case, Outcome(found=wrong), None, truth)
        assert finding is not None, name
        assert finding.what == name


def test_a_mask_lets_nothing_through() -> None:
    case = case_of("batch_norm", mask="poisoned")
    found, tensors = results(case, "normkit")
    assert tensors["x"].isnan().any()
    truth = compute(case, tensors)
    assert all(bool(expected.isfinite().all()) for expected, _ in truth.results.values())
    leaked = {**found, "y": torch.where(tensors["x"].isnan(), torch.nan, found["y"].detach())}
    finding = judge(case, Outcome(found=leaked), None, truth)
    assert finding is not None
    assert (finding.kind, finding.severity) == ("value", 5)


def test_bounds_grow_only_at_kinks() -> None:
    smooth = case_of("batch_norm", activation="'silu'", tensors={"x": Array(), "dy": Array()}, wanted=("x",))
    kinked = smooth.but(activation="'relu'")
    for case in (smooth, kinked):
        _, tensors = results(case, "normkit")
        expected, bound = compute(case, tensors).results["dx"]
        assert float((bound / expected.abs().clamp(min=1e-2)).median()) < 1e-3


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 0, 4), (3, 4, 0)], ids=str)
@pytest.mark.parametrize("norm", TORCHS)
def test_where_there_are_no_values_there_is_a_truth(norm: str, shape: tuple[int, ...]) -> None:
    if norm == "sync_batch_norm" and not shape[1]:
        pytest.skip("refused, as torch's")
    if norm == "group_norm":
        try:
            nn.functional.group_norm(torch.empty(shape), 1)
        except RuntimeError as error:  # since 2.15, and 2.13 takes it
            pytest.skip(f"torch {torch.__version__} refuses it: {error}")
    case = case_of(norm, shape=shape, part=1)
    found, tensors = results(case, "normkit")
    truth = compute(case, tensors)
    assert {"y", "dx"} <= truth.results.keys()
    assert judge(case, Outcome(found=dict(found)), None, truth) is None


@pytest.mark.parametrize("layout", ["contiguous", "strided", "offset"])
def test_statistics_that_overlap_are_read_where_they_lie(layout: str) -> None:
    mean = Array(layout=layout, dtype="float64")
    case = case_of("batch_norm", training=False, alias="running_overlaps", wanted=("x",)).with_tensor(
        "running_mean", mean
    )
    case = case.but(tensors={n: a for n, a in case.tensors.items() if n in ("x", "running_mean", "running_var", "dy")})
    found, tensors = results(case, "torch")
    torch.testing.assert_close(found["y"].detach(), compute(case, tensors).results["y"][0], equal_nan=True)
