"""The fuzzer sees what is put in: each fault is found, under its own name, and shrunk to what it needs."""

from __future__ import annotations

import dataclasses

import pytest
from tools.fuzz.campaign import Campaign
from tools.fuzz.case import Array, Case, features
from tools.fuzz.child import Work
from tools.fuzz.findings import Kind
from tools.fuzz.fit import fit
from tools.fuzz.work import prepare

from . import planted


def campaign(work: Work, cases: int = 60, draw: object = planted.plain, limit: float = 60) -> Campaign:
    found = Campaign(0, limit, draw=draw, work=work)  # type: ignore[arg-type]
    found.run(iter(range(cases)), 600, jobs=1)
    assert not found.failures, found.failures
    return found


def first(work: Work, **options: object) -> Kind:
    """The worst kind of finding of a small campaign."""
    kinds = campaign(work, **options).findings.sorted()  # type: ignore[arg-type]
    assert kinds
    return kinds[0]


def test_without_a_fault_nothing_is_found() -> None:
    found = campaign(planted.nothing)
    assert [k.finding for k in found.findings.sorted()] == []
    assert found.ran == 60


@pytest.mark.parametrize(
    ("work", "kind", "needs"),
    [
        (planted.ignores_eps, "value", "eps="),
        (planted.ignores_momentum, "statistics", "momentum="),
        (planted.reads_under_the_mask, "value", "mask="),
        (planted.loses_the_format, "memory format", "x.layout=channels_last"),
        (planted.aborts, "crash", "residual"),
        (planted.raises_its_own_error, "unclear error", ""),
        (planted.refuses_one_sample, "refused", ""),
        (planted.widens, "dtype", ""),
        (planted.scales_the_gradient, "value", ""),
        (planted.leaves_a_mode, "state", ""),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_planted_fault_is_found_and_shrunk(work: Work, kind: str, needs: str) -> None:
    found = first(work)
    assert found.finding.kind == kind
    rest = [f for f in features(found.case) if not f.startswith(needs or " ")]
    # running statistics come in pairs; a plan without a backward is no more unusual than one with
    assert set(rest) <= {"running_mean", "running_var", "plan=none"}, rest
    assert not needs or any(f.startswith(needs) for f in features(found.case))
    assert sum(found.case.shape) <= 16


def test_a_crash_names_its_signal_and_its_place() -> None:
    found = first(planted.aborts)
    assert found.finding.what == "SIGABRT"
    assert len(found.case.shape) == 3  # what the fault needs, and no more


@pytest.mark.nightly  # every case that hangs takes its three seconds
def test_a_hang_is_ended_and_named() -> None:
    with_activation = fit(Case(activation="'relu'", shape=(4, 5, 6)))
    found = first(planted.sleeps, cases=1, draw=lambda seed, number: with_activation, limit=3)
    assert found.finding.kind == "hang"
    assert found.case.activation == "'relu'"


def test_an_error_that_torch_raises_must_be_raised() -> None:
    case = fit(Case(shape=(4, 5)).with_tensor("weight", Array(size=(9,))))
    found = first(planted.takes_any_weight, cases=1, draw=lambda seed, number: case)
    assert (found.finding.kind, found.case.tensors["weight"].size) == ("accepted", (9,))


def test_a_parameter_without_its_gradient_is_missed() -> None:
    wanted = Case(wanted=("weight",), plan="grad").with_tensor("weight", Array())
    found = first(planted.detaches_the_weight, cases=1, draw=lambda seed, number: fit(wanted))
    assert found.finding.kind in ("refused", "missing")


def test_what_fails_after_other_cases_only_is_said_to() -> None:
    found = first(planted.fails_the_second_time, cases=3)
    assert not found.alone
    assert len(found.after) == 1  # and of how many, however many there were


def test_a_crash_that_torch_shares_is_counted_as_torchs_and_is_no_finding() -> None:
    found = campaign(planted.torch_dies_too, cases=3)
    assert found.findings.kinds == []
    assert (found.ran, found.findings.total, found.torch_crashes) == (3, 0, 3)


def test_a_crash_of_torchs_in_outputs_that_are_views_is_no_finding() -> None:
    norm = Case(norm="layer_norm_2d", shape=(2, 1, 3, 4), activation="'elu'")  # as rows, whose axes are then moved
    found = campaign(prepare, 1, draw=lambda seed, number: fit(norm.but(after="view_mul_", hook="transposed")))
    assert found.findings.kinds == []


def test_one_fault_is_few_kinds_however_often_it_is_met() -> None:
    found = campaign(planted.ignores_eps, cases=120)
    assert len(found.findings.kinds) <= 3, [features(k.case) for k in found.findings.kinds]
    assert found.findings.total > 10
    one = found.findings.kinds[0]
    assert found.findings.known(one.case, one.found)
    assert not found.findings.known(one.case, dataclasses.replace(one.found, kind="crash", what="SIGSEGV"))
