"""Nothing is timed that disagrees with float64: right contenders pass, each kind of wrong one is named."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from normkit.bench.check import Mismatch, channels, verify
from normkit.bench.contender import Results
from normkit.bench.peers import Layer, OneDnn, eager, normkit
from normkit.bench.problem import Case, Problem, make
from normkit.bench.suite import OPS

CASES = {
    f"{op.name}-{layout}": Case(op.name, shape, layout)
    for op in OPS.values()
    for layout, shape in (
        [("rows", (6, 5, 24))]
        if op.family == "layer_norm"
        else [("NCHW", (4, 16, 5, 7)), ("NHWC", (4, 16, 5, 7)), ("NHWC", (2, 8, 3, 4, 5))]
        + ([] if op.family == "group_norm" else [("NC", (33, 8))])
    )
}


def problem(case: Case) -> Problem:
    return make(case, OPS[case.op].residual, OPS[case.op].training)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("contender", "peer"), [(normkit, False), (eager, True)], ids=["normkit", "torch"])
def test_layers_agree_with_float64(case: Case, contender: Callable[..., Layer], peer: bool) -> None:
    p = problem(case)
    assert 0 < verify("contender", contender(OPS[case.op], p), OPS[case.op], p, peer) <= 1


@pytest.mark.parametrize("op", ["batch_norm", "batch_norm+relu", "batch_norm+add+relu"])
def test_onednn_agrees_with_float64(op: str) -> None:
    p = problem(Case(op, (4, 8, 5, 5), "NCHW"))
    assert 0 < verify("onednn", OneDnn(OPS[op], p), OPS[op], p, peer=True) <= 1


class Wrong(Layer):
    """normkit with one result changed afterwards."""

    def __init__(self, p: Problem, what: str, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(OPS[p.case.op].ours(p), p)
        self.what, self.change = what, change

    def results(self, outcome: Tensor, gradients: tuple[Tensor, ...] | None) -> Results:
        results = super().results(outcome, gradients)
        return {**results, self.what: self.change(results[self.what])}


def with_nan(t: Tensor) -> Tensor:
    t = t.clone()
    t.view(-1)[3] = torch.nan
    return t


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda t: t * (1 + 1e-4),
    "constant": lambda t: t + 1e-3,
    "nan": with_nan,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("op", "what"),
    [
        ("batch_norm", "output"),
        *(("batch_norm+add+relu", f"d{what}") for what in ("input", "residual", "weight", "bias")),
    ],
)
def test_a_wrong_result_is_named(op: str, what: str, change: Callable[[Tensor], Tensor]) -> None:
    p = problem(Case(op, (4, 8, 5, 5), "NCHW"))
    with pytest.raises(Mismatch, match=f"^normkit is not timed: {what} of {re.escape(op)} on"):
        verify("normkit", Wrong(p, what, change), OPS[op], p)


def test_a_peer_that_computes_something_else_is_found_out() -> None:
    p = problem(Case("batch_norm", (4, 8, 5, 5), "NCHW"))
    with pytest.raises(Mismatch, match="dinput"):
        verify("peer", Wrong(p, "dinput", lambda t: t * 1.001), OPS["batch_norm"], p, peer=True)


@pytest.mark.parametrize(("op", "group"), [("batch_norm", 1), ("group_norm", 2)])
def test_of_large_inputs_whole_groups_are_checked_from_first_to_last(op: str, group: int) -> None:
    p = problem(Case(op, (16, 64, 56, 56), "NCHW"))
    at = channels(OPS[op], p)
    assert at is not None
    assert len(at) < 64
    assert at[0] == 0
    assert at[-1] == 63
    assert all(at[i] % group == 0 and at[i + group - 1] == at[i] + group - 1 for i in range(0, len(at), group))


def test_an_error_in_the_last_channel_of_a_large_input_is_seen() -> None:
    p = problem(Case("batch_norm", (16, 64, 40, 40), "NCHW"))

    def last(t: Tensor) -> Tensor:
        t = t.clone()
        t[:, -1] *= 1.001
        return t

    with pytest.raises(Mismatch, match="output"):
        verify("normkit", Wrong(p, "output", last), OPS["batch_norm"], p)
