"""Agreement with float64, before anything is timed.

normkit is held to the project's contract (`normkit.contract`). A peer need not hold it, only compute the same thing: 64
times as much, and that of the average element too.
Of large inputs some whole channels (groups) are checked: they are independent of the others. The side of zero an
element lies on, which ReLU's gradient turns on, is taken from the output under test: within the bound either is right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import contract
from .contender import Contender, Results
from .op import Op, Truth
from .problem import Problem

PEER_SLACK = 64.0  # torch's NHWC statistics are sums in float32: 20 to 80 times outside the contract
_CHECKED = 1 << 20  # elements in float64


class Mismatch(RuntimeError):
    """A contender that disagrees with float64; it is not timed."""


def verify(name: str, contender: Contender, op: Op, problem: Problem, peer: bool = False) -> float:
    """The largest error as a share of what normkit, or a peer, is allowed.

    Raises:
        Mismatch: a share above 1, or NaN.
    """
    if op.training:
        outcome = contender.forward(0)
        results = contender.results(outcome, contender.backward(outcome, 0))
    else:
        with torch.no_grad():
            results = contender.results(contender.forward(0), None)
    shares = errors(results, op, problem, peer)
    worst = max(shares, key=lambda what: float("inf") if shares[what] != shares[what] else shares[what])
    if not shares[worst] <= 1:
        case = problem.case
        raise Mismatch(
            f"{name} is not timed: {worst} of {case.op} on {case.shape} {case.layout} {case.dtype} is "
            f"{shares[worst]:.3g} times further from float64 than the bound allows"
        )
    return shares[worst]


def errors(results: Results, op: Op, problem: Problem, peer: bool = False) -> dict[str, float]:
    """Each result's largest |error| / bound."""
    at = channels(op, problem)
    inputs = problem.sets[0]
    x, dy, y = (_some(t, at) for t in (inputs.x, inputs.dy, results["output"]))
    residual = None if inputs.residual is None else _some(inputs.residual, at)
    weight, bias, mean, var = (
        (p if at is None else p[at]).double() for p in (problem.weight, problem.bias, problem.mean, problem.var)
    )
    if "rms_norm" in op.name:
        bias = torch.zeros_like(bias)
    if op.added_first and residual is not None:
        x, residual = (x + residual).to(inputs.x.dtype).double(), None
    truth = op.truth(problem, x, weight, bias, mean, var)
    expected = truth.y if residual is None else truth.y + residual
    expected = expected.relu() if op.activation == "relu" else expected
    shape = (-1,) if problem.case.layout == "rows" else (1, -1, *[1] * (x.dim() - 2))
    weight, bias = weight.view(shape), bias.view(shape)
    added = 0.0 if residual is None else residual
    share = partial(_share, peer=peer)
    bound = contract.output_bound(truth.xhat, weight, bias, _u(results["output"]), added)
    shares = {"output": share(results["output"], y, expected, bound)}
    if op.training:
        dz = dy * (y > 0) if op.activation == "relu" else dy
        shares |= _gradient_errors(op, results, truth, dz, weight, at, share)
    return shares


def channels(op: Op, problem: Problem) -> Tensor | None:
    """The channels to check, whole groups spread evenly from first to last; None for all."""
    case, size = problem.case, op.block(problem.case)
    if size == 0 or case.numel <= _CHECKED:
        return None
    blocks = case.shape[1] // size
    take = max(2, min(blocks, _CHECKED // (case.numel // blocks)))
    return torch.cat([torch.arange(size) + int(i) * size for i in torch.linspace(0, blocks - 1, take).round()])


def _gradient_errors(
    op: Op, results: Results, truth: Truth, dz: Tensor, weight: Tensor, at: Tensor | None, share: Callable[..., float]
) -> dict[str, float]:
    dx, dweight, dbias = truth.gradients(dz)
    found = results["dinput"]
    bound = contract.input_gradient_bound(dz * weight, truth.xhat, truth.rstd, truth.mean, _u(found))
    shares = {"dinput": share(found, _some(found, at), dx, bound)}
    if "dresidual" in results:
        found = results["dresidual"]
        own = (dx, bound) if op.added_first else (dz, contract.residual_gradient_bound(dz, _u(found)))
        shares["dresidual"] = share(found, _some(found, at), *own)
    for name, value, terms in (("dweight", dweight, dz * truth.xhat), ("dbias", dbias, dz)):
        if value is not None and name in results:
            found = results[name] if at is None else results[name][at]
            bound = contract.parameter_gradient_bound(terms, truth.parameter_axes, _u(found))
            shares[name] = share(found, found.double(), value, bound)
    return shares


def _u(result: Tensor) -> float:
    return contract.unit_roundoff(result.dtype)


def _some(tensor: Tensor, at: Tensor | None) -> Tensor:
    tensor = tensor.detach()
    return (tensor if at is None else tensor[:, at]).double()


def _share(result: Tensor, actual: Tensor, expected: Tensor, bound: Tensor, peer: bool) -> float:
    """max |actual - expected| / bound, with one subnormal step more where relative bounds end."""
    loose = peer or result.dtype == torch.float64  # where the truth has rounded just as often
    bound = PEER_SLACK * (bound + bound.mean()) if loose else bound
    return float(((actual - expected).abs() / (bound + contract.underflow(result.dtype))).max())
