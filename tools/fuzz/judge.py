"""Compares what normkit, torch and float64 found; a disagreement is a `Finding`.

Severity: 5 a crash, a hang, a wrong number without a word; 4 no number where torch has one, an error of our own making;
3 what torch computes is refused; 2 another dtype, shape or memory format; 1 another error, or none, for wrong input.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .bounds import contract
from .case import Case
from .norms import NORMS
from .pools import DTYPES, WRONG_ACTIVATIONS
from .tricks import is_freed, plain
from .truth import Truth
from .values import PLAIN


@dataclass(frozen=True)
class Finding:
    """What went wrong. kind, what: its name in the list of findings; at: the worst element, with what it should be."""

    kind: str
    what: str
    detail: str
    severity: int
    at: tuple[str, tuple[int, ...]] | None = None
    expected: float | None = None


@dataclass
class Outcome:
    """What a program found, or what it raised."""

    found: dict[str, Any] | None = None
    error: BaseException | None = None


OWN_ERRORS = (
    AssertionError, AttributeError, LookupError, NameError, ArithmeticError, RecursionError, SystemError, MemoryError,
    StopIteration,
)  # fmt: skip
_MIXED = ("expected scalar type", "mixed dtype")  # normkit takes more dtypes together, as its page says
_PROMISED = (
    "was asked for and cannot serve this call",  # nk.backend
    "don't yet support saved tensor hooks",  # nk.recompute_outputs inside torch.func
    "convert all Tensors to FakeTensors first",  # torch's own assertion
    "modified by an inplace operation",  # normkit keeps another tensor than torch does
    "more than one element of the written-to tensor",  # statistics in memory that their elements share
    "it is added element by element",  # a residual is not broadcast
)
_TORCHS_OWN = ("INTERNAL ASSERT", "tensor does not have a device")  # faults of torch
# Hooks that give back what autograd did not keep: any error will do.
_BROKEN_HOOKS = ("stay_sparse", "wrapper", "meta", "flat", "shorter", "freed", "none")
_OWN_TEXTS = ("std::", "INTERNAL ASSERT", "nanobind")

# Results of lossy hooks and of torch's kernels: how far they may be off, as a share of the largest value.
_LOOSE = {
    "saved('bfloat16')": 0.1,
    "saved('half_and_back')": 0.05,
    "saved('float32')": 1e-4,
    "nk.backend('aten')": 0.05,
}
_SECOND = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


def judge(case: Case, ours: Outcome, theirs: Outcome | None, truth: Truth | None) -> Finding | None:
    """The worst disagreement, or None. theirs: None where torch has no such norm; truth: None where there is none."""
    if ours.error is not None:
        return _judge_error(case, ours.error, theirs)
    assert ours.found is not None
    return (
        _lost(case, ours.found, theirs)
        or (_values(case, ours.found, theirs, truth) if truth is not None else None)
        or _accepted(case, theirs, truth)
        or _forms(case, ours.found, theirs)
    )


def _text(error: BaseException) -> str:
    """Its words in one line, without a C++ trace."""
    return " ".join(str(error).split("Exception raised from")[0].split())[:160]


def _judge_error(case: Case, error: BaseException, theirs: Outcome | None) -> Finding | None:
    text = _text(error)
    if any(t in text for t in _PROMISED):
        return None
    name = type(error).__name__
    own = isinstance(error, OWN_ERRORS) or any(t in text for t in _OWN_TEXTS) or not text
    if theirs is None:
        return Finding("unclear error", f"{name}: {text}", "no error of the user's", 4) if own else None
    if (
        theirs.error is None
        and not own
        and (_is_odd(case) or any(f"saved({h!r})" in case.contexts for h in _BROKEN_HOOKS))
    ):
        return None
    if theirs.error is None:
        kind = "unclear error" if own else "refused"
        return Finding(kind, f"{name}: {text}", "torch computes this", 4 if own else 3)
    known = type(theirs.error).__name__
    if own and (case.hook or case.around or case.contexts):
        return None
    if name != known and not isinstance(error, type(theirs.error)) and (own or not _is_special(case)):
        detail = f"torch raises {known}: {_text(theirs.error)}"
        return Finding("unclear error" if own else "other error", f"{name}: {text}", detail, 3 if own else 1)
    return None


def _is_special(case: Case) -> bool:
    """Whether more than one call of a norm on whole tensors is at stake."""
    special = case.contexts or case.around or case.transform or case.edit or case.hook or case.after
    return bool(special) or case.plan not in ("none", "backward", "grad", "sum") or case.activation in WRONG_ACTIVATIONS


def _is_odd(case: Case) -> bool:
    """Whether an error is as good as a result: dtypes that say nothing about a norm, activations that are none."""
    odd = [n for n, a in case.tensors.items() if n != "dy" and a.dtype not in DTYPES]
    return bool(odd) or case.activation in WRONG_ACTIVATIONS


def _has_values(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, FakeTensor) and not x.is_meta and not is_freed(x)


def _lost(case: Case, found: dict[str, Any], theirs: Outcome | None) -> Finding | None:
    """Results that are missing, or have no values, where torch's are there."""
    if theirs is None or theirs.found is None:
        return None
    for name, other in theirs.found.items():
        mine = plain(found.get(name))
        if other is None or name == "batches":
            continue
        if mine is None:
            return Finding("missing", name, "torch gives a tensor, normkit None", 4)
        if _has_values(plain(other)) and not _has_values(mine):
            return Finding("no values", name, f"torch gives values, normkit {type(mine).__name__} on {mine.device}", 4)
    return None


def _values(case: Case, found: dict[str, Any], theirs: Outcome | None, truth: Truth) -> Finding | None:
    worst: Finding | None = None
    for name, value in found.items():
        value = plain(value)
        if name not in truth.results or not _has_values(value) or _is_meant(case, name):
            continue
        finding = _compare(case, name, value, truth)
        if finding is not None and _torch_too(finding, value, theirs):
            finding = dataclasses.replace(finding, kind="overflow", severity=1)
        elif finding is not None and not value[finding.at[1]].isfinite() and _is_large(case):
            finding = dataclasses.replace(finding, kind="overflow", severity=2)
        if finding is not None and (worst is None or finding.severity > worst.severity):
            worst = finding
    return worst


def _is_large(case: Case) -> bool:
    return bool({"scale3e38", "scale1e20", "scale1e30"} & {a.values for a in case.tensors.values()})


def _is_meant(case: Case, name: str) -> bool:
    """Whether the program itself makes this result another than the norm's."""
    if "fake" in case.transform or any("Fake" in text for text in (*case.contexts, *case.around)):
        return True  # what has values is what was not computed
    moved = name.startswith(("running", "batches"))
    return moved and ("running" in case.edit or "running" in case.alias or "nan" in case.momentum)


def _compare(case: Case, name: str, value: Tensor, truth: Truth) -> Finding | None:
    expected, bound = truth.results[name]
    if tuple(value.shape) != tuple(expected.shape):
        detail = f"{tuple(value.shape)}, expected {tuple(expected.shape)}"
        return Finding("shape", name, detail, 5) if value.numel() != expected.numel() or value.dim() else None
    tolerance = looseness(case, name)
    if tolerance is not None:
        if not (is_plain(case) and truth.sharp):
            return None
        bound = torch.as_tensor(tolerance * max(truth.scale.get(name, 1.0), 1e-30), dtype=torch.float64)
    fits = expected.isfinite() & (expected.abs() <= torch.finfo(value.dtype).max if value.is_floating_point() else True)
    fits = fits & bound.isfinite()
    error = (value.double() - expected).abs()
    allowed = bound.expand_as(error) + (contract().underflow(value.dtype) if value.is_floating_point() else 0)
    bad = fits & ~(error <= allowed)
    if has_extremes(case) == "nonfinite" and name == "y":  # a NaN stays a NaN
        bad = bad | (~expected.isfinite() & value.isfinite())
    if not bad.any():
        return None
    badness = torch.where(bad, torch.where(error.isfinite(), error / allowed, torch.inf), -1.0)
    at = tuple(int(i) for i in torch.unravel_index(badness.argmax(), badness.shape)) if badness.dim() else ()
    got, want = value[at].item(), expected[at].item()
    kind = "statistics" if name.startswith(("running", "batches")) else "value"
    by, may = error[at].item(), allowed[at].item()
    detail = f"{name}{list(at)} is {got!r}, expected {want!r}: off by {by:.3g}, allowed {may:.3g}"
    factor = float(badness.max())
    slight = factor < 4 and tolerance is None
    return Finding(f"slightly off {kind}" if slight else kind, name, detail, 2 if slight else 5, (name, at), want)


def _torch_too(finding: Finding, value: Tensor, theirs: Outcome | None) -> bool:
    """Whether both have no number there."""
    if (
        theirs is None
        or theirs.found is None
        or finding.at is None
        or not _has_values(plain(theirs.found.get(finding.at[0])))
    ):
        return False
    other = plain(theirs.found[finding.at[0]])
    return other.shape == value.shape and not value[finding.at[1]].isfinite() and not other[finding.at[1]].isfinite()


def looseness(case: Case, name: str) -> float | None:
    """How far a result may be off, as a share of the largest value; None: the contract's bounds hold."""
    texts = (*case.contexts, *case.around)
    shares = [share for text, share in _LOOSE.items() if text in texts]
    if name in ("ddx", "ddy", "jvp"):
        shares.append(_SECOND.get(case.tensors["x"].dtype, 1.0))
    return max(shares) if shares else None


def is_plain(case: Case) -> bool:
    """Whether a loose comparison says anything: values near 1, statistics of several of them."""
    return all(
        a.values in PLAIN and a.layout not in ("expanded", "scalar", "overlapping") for a in case.tensors.values()
    )


def has_extremes(case: Case) -> str:
    """ "nonfinite" where the input has a NaN or an infinity."""
    return "nonfinite" if case.tensors["x"].values in ("nan", "inf", "minus_inf") else ""


def _accepted(case: Case, theirs: Outcome | None, truth: Truth | None) -> Finding | None:
    """An error of torch's that normkit does not raise. Where the numbers are right, only plain calls have to raise."""
    if theirs is None or theirs.error is None:
        return None
    if truth is not None and any(t in str(theirs.error) for t in _MIXED):
        return None
    if isinstance(theirs.error, IndexError) or any(t in str(theirs.error) for t in _TORCHS_OWN):
        return None  # an index error: tensors without channels
    if truth is not None and (_is_special(case) or any(a.trick for a in case.tensors.values())):
        return None
    text = f"{type(theirs.error).__name__}: {_text(theirs.error)}"
    return Finding("accepted", text, "torch raises this, normkit computes", 1 if truth is not None else 3)


def _forms(case: Case, found: dict[str, Any], theirs: Outcome | None) -> Finding | None:
    """dtype, and memory format: the input's, for what has its shape."""
    others = theirs.found if theirs is not None and theirs.found is not None else {}
    for name, value in found.items():
        other = others.get(name)
        if not isinstance(value, Tensor):
            continue
        if isinstance(other, Tensor):
            if (
                value.dtype != other.dtype
                and not case.transform
                and name not in ("running_mean", "running_var", "batches")
            ):
                return Finding("dtype", name, f"{value.dtype}, torch's is {other.dtype}", 2)
            if value.layout != other.layout:
                return Finding("layout", name, f"{value.layout}, torch's is {other.layout}", 2)
    return _memory_format(case, found, others)


def _memory_format(case: Case, found: dict[str, Any], others: dict[str, Any]) -> Finding | None:
    layout, rank = case.tensors["x"].layout, len(case.shape)
    if (
        case.transform
        or layout not in ("contiguous", "channels_last", "offset")
        or case.after
        or case.tensors["x"].trick
    ):
        return None
    last = layout == "channels_last"
    for name in ("y", "dx"):
        value, other = found.get(name), others.get(name)
        if (
            not isinstance(value, Tensor)
            or value.dim() != rank
            or value.layout is not torch.strided
            or not value.numel()
        ):
            continue
        free = not NORMS[case.norm].channels or case.norm == "normalize" or bool(case.activation)
        if (free or name == "dx") and not (isinstance(other, Tensor) and _is_kept(other, last)):
            continue  # torch itself does not keep it there
        if not _is_kept(value, last):
            return Finding("memory format", name, f"strides {value.stride()} for an input that is {layout}", 2)
    return None


def _is_kept(x: Tensor, last: bool) -> bool:
    return x.layout is torch.strided and not is_freed(x) and (x.movedim(1, -1) if last else x).is_contiguous()
