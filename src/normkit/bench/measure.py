"""One case into one row: make the tensors, check every contender, time them in turn, condense."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from . import floor, roof
from .busy import busy
from .check import Mismatch, verify
from .contender import Absent, Contender
from .op import Op
from .peers import PEERS, limit, normkit
from .problem import Case, Problem, make
from .results import Peer, Row
from .suite import OPS
from .timing import Seconds, interleave, milliseconds, paired


def measure(case: Case, peers: Sequence[str] = ("torch",), seconds: float = 0.5) -> Row:
    """Check, then time `case` for about `seconds`.

    Raises:
        Mismatch: normkit disagrees with float64.
    """
    op = OPS[case.op]
    problem = make(case, op.residual, op.training)
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        ours = normkit(op, problem)
        error = verify("normkit", ours, op, problem)
        present, absent = _present(peers, op, problem)
        bound = limit(op, problem)
        contenders = {"normkit": ours, **present, **({"limit": bound} if bound else {})}
        calls = {name: _clocked(contender, op) for name, contender in contenders.items()}
        with busy(case.busy):
            times = interleave({**calls, **roof.calls(problem)}, seconds)
    finally:
        torch.set_num_threads(before)
    return condense(op, case, error, times, absent)


def condense(op: Op, case: Case, error: float, times: dict[str, list[Seconds]], absent: dict[str, str]) -> Row:
    """A pure function from the rounds to the row."""
    ours, clone = times["normkit"], [t.forward for t in times["clone"]]
    total = [t.total for t in ours]
    roof_share = paired(clone, total).median / floor.clone(case)
    return Row(
        case=case,
        rounds=len(ours),
        error=error,
        forward_ms=milliseconds([t.forward for t in ours]),
        backward_ms=milliseconds([t.backward for t in ours]),
        clone_ms=milliseconds(clone),
        copy_ms=milliseconds([t.forward for t in times["copy"]]),
        bytes=floor.fewest(op, case).total,
        share=roof_share * floor.fewest(op, case).total,
        share_two_sweeps=roof_share * floor.two_sweeps(op, case).total,
        peers={
            name: _peer(op, ours, theirs, times.get("limit"))
            for name, theirs in times.items()
            if name not in ("normkit", "limit", "clone", "copy")
        },
        absent=absent,
    )


def _peer(op: Op, ours: list[Seconds], theirs: list[Seconds], limit: list[Seconds] | None) -> Peer:
    total = paired([t.total for t in theirs], [t.total for t in ours])
    backward = paired([t.backward for t in theirs], [t.backward for t in ours]).median if op.training else None
    return Peer(
        ms=milliseconds([t.total for t in theirs]),
        forward=paired([t.forward for t in theirs], [t.forward for t in ours]).median,
        backward=backward,
        total=total.median,
        low=total.low,
        high=total.high,
        mean=fmean(t.total for t in theirs) / fmean(t.total for t in ours),
        limit=paired([t.total for t in theirs], [t.total for t in limit]).median if limit else None,
    )


def _present(peers: Sequence[str], op: Op, problem: Problem) -> tuple[dict[str, Contender], dict[str, str]]:
    """The peers that compute this case, and why the others do not."""
    present: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for name in peers:
        try:
            contender = PEERS[name](op, problem)
            verify(name, contender, op, problem, peer=True)
        except (Absent, Mismatch) as reason:
            absent[name] = str(reason)
        else:
            present[name] = contender
    return present, absent


def _clocked(contender: Contender, op: Op) -> Callable[[int], Seconds]:
    return _trained(contender) if op.training else _inferred(contender)


def _trained(contender: Contender) -> Callable[[int], Seconds]:
    def call(index: int) -> Seconds:
        start = time.perf_counter()
        outcome = contender.forward(index)
        middle = time.perf_counter()
        gradients = contender.backward(outcome, index)
        end = time.perf_counter()
        del outcome, gradients  # after the clock, so that every contender starts with the same free memory
        return Seconds(middle - start, end - middle)

    return call


def _inferred(contender: Contender) -> Callable[[int], Seconds]:
    def call(index: int) -> Seconds:
        with torch.no_grad():
            start = time.perf_counter()
            outcome = contender.forward(index)
            end = time.perf_counter()
        del outcome
        return Seconds(end - start)

    return call
