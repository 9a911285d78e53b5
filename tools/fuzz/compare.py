"""Numbers: the contract's bounds; of torch's own kernels and second derivatives, a share of the largest value."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from normkit import contract

from . import kept
from .case import Case
from .errors import is_broken
from .finding import Finding, Outcome
from .tricks import is_freed, plain
from .truth import Truth
from .values import PLAIN

# torch's own kernels: the contract promises 8 times its bounds for values near 0, none for others.
_BY_TORCH = 0.05
# Roundings of second and directional derivatives, of which the contract says nothing: as many as of a gradient of one.
_SECOND = 2 * contract.GRADIENT_ROUNDINGS
_EXTREME = {"scale1e20", "scale1e30", "scale1e-40", "inf", "nan"}


def has_values(x: Any) -> bool:
    """Whether there are numbers in it."""
    return isinstance(x, Tensor) and not isinstance(x, FakeTensor) and not x.is_meta and not is_freed(x)


def wrong_values(case: Case, found: dict[str, Any], theirs: Outcome | None, truth: Truth) -> Finding | None:
    """The worst result out of bounds."""
    worst: Finding | None = None
    for name, value in found.items():
        value = plain(value)
        if name not in truth.results or not has_values(value) or _is_meant(case, name):
            continue
        finding = _compare(case, name, value, truth)
        finding = _overflow(case, finding, value, theirs, truth.beyond)
        if finding is not None and (worst is None or finding.severity > worst.severity):
            worst = finding
    return worst


def _overflow(
    case: Case, finding: Finding | None, value: Tensor, theirs: Outcome | None, beyond: bool
) -> Finding | None:
    """A finding under a name of its own where the numbers are at the ends of a dtype's range."""
    if finding is None or finding.at is None:
        return finding
    if beyond:  # sums carry one term to every element: the case as a whole is outside of what the contract promises
        return None
    kinds, finite = {a.values for a in case.tensors.values()}, bool(value[finding.at[1]].isfinite())
    if not finite and _torch_too(finding, theirs):
        return dataclasses.replace(finding, kind="overflow", severity=1)
    if "scale3e38" in kinds or (not finite and kinds & _EXTREME):
        return dataclasses.replace(finding, kind="overflow", severity=2)
    return finding


def _is_meant(case: Case, name: str) -> bool:
    """Whether the program itself makes this result another than the norm's."""
    if "fake" in case.transform or any("Fake" in text for text in case.contexts):
        return True  # what has values is what was not computed
    if any("Fake" in text for text in case.around) and name.startswith("d"):
        return True  # the same of gradients
    # buffers that the program edits, or that are one memory and move twice; and momenta that leave no digit
    odd = "nan" in case.momentum or "e300" in case.momentum
    if case.transform == "make_fx" and name.startswith(("running", "batches")):
        return True  # which calls it twice
    return name.startswith("running") and ("running" in case.edit or "running" in case.alias or odd)


def _compare(case: Case, name: str, value: Tensor, truth: Truth) -> Finding | None:
    expected, bound = truth.results[name]
    moves = name.startswith(("running", "batches"))
    if tuple(value.shape) != tuple(expected.shape):
        detail = f"{tuple(value.shape)}, expected {tuple(expected.shape)}"
        return Finding("shape", name, detail, 5) if value.numel() != expected.numel() or value.dim() else None
    share = _looseness(case, name)
    if share is not None:
        if not (_is_plain(case) and truth.sharp):
            return None
        bound = bound.clamp(min=share * max(truth.scale.get(name, 1.0), 1e-3))
    floating = value.is_floating_point()
    largest = torch.finfo(value.dtype).max if floating else torch.inf
    fits = expected.isfinite() & (expected.abs() <= largest) & bound.isfinite()
    error = (value.double() - expected).abs()
    allowed = bound.expand_as(error) + (contract.underflow(value.dtype) if floating else 0)
    bad = fits & ~(error <= allowed) & ~(value.isinf() & (expected.abs() + allowed > largest))
    zeros = any(a.trick == "zerotensor" for a in case.tensors.values())  # times NaN they are zeros, in torch
    if case.tensors["x"].values in ("nan", "inf", "minus_inf") and name == "y" and not zeros:  # a NaN stays a NaN
        bad = bad | (~expected.isfinite() & value.isfinite())
    if not bad.any():
        return None
    ratio = torch.where(bad, torch.where(error.isfinite(), error / allowed, torch.inf), -1.0)
    at = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape)) if ratio.dim() else ()
    got, want, by, may = value[at].item(), expected[at].item(), error[at].item(), allowed[at].item()
    detail = f"{name}{list(at)} is {got!r}, expected {want!r}: off by {by:.3g}, allowed {may:.3g}"
    kind = "statistics" if moves else "value"
    if share is None and float(ratio.max()) < 4:
        return Finding(f"slightly off {kind}", name, detail, 2, (name, at), want)
    if is_broken(case):
        return Finding(kind, name, detail, 3, (name, at), want)
    poisoned = {a.values for n, a in case.tensors.items() if n.startswith("running")} & {"nan", "inf"}
    return Finding(kind, name, detail, 2 if moves and (poisoned or 0 in case.shape) else 5, (name, at), want)


def _looseness(case: Case, name: str) -> float | None:
    """How far a result may be off, as a share of the largest value; None: the contract's bounds hold."""
    shares = []
    if "nk.backend('aten')" in (*case.contexts, *case.around):
        shares.append(_BY_TORCH)
    if name in ("ddx", "ddy", "jvp"):
        dtype = getattr(torch, case.tensors["x"].dtype)
        u = contract.unit_roundoff(dtype if dtype.is_floating_point else torch.float32)  # whole numbers: in float32
        shares.append(_SECOND * max(u, 64 * u if u < 1e-15 else 0, kept.roundoff(case)))
    return max(shares) if shares else None


def _is_plain(case: Case) -> bool:
    """Whether a loose comparison says anything: values near 1, statistics of several of them."""
    repeats = ("expanded", "scalar", "overlapping")
    return all(a.values in PLAIN and a.layout not in repeats for a in case.tensors.values())


def _torch_too(finding: Finding, theirs: Outcome | None) -> bool:
    """Whether torch has no number there either."""
    assert finding.at is not None
    name, at = finding.at
    other = plain((theirs.found or {}).get(name)) if theirs is not None else None
    return has_values(other) and len(at) == other.dim() and not bool(other[at].isfinite())
