"""Compares what normkit, torch and float64 found; a disagreement is a `Finding`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .case import Case
from .compare import has_values, wrong_values
from .errors import accepted, raised
from .finding import Finding, Outcome
from .norms import NORMS, is_unbatched
from .tricks import plain
from .truth import Truth


def judge(
    case: Case, ours: Outcome, theirs: Outcome | None, truth: Truth | None, near: Outcome | None = None
) -> Finding | None:
    """The worst disagreement, or None. theirs: None where torch has no such norm, then near is what its nearest finds;
    truth: None where there is none."""
    if ours.error is not None:
        return raised(case, ours.error, theirs, near)
    found = ours.found or {}
    others = (theirs.found or {}) if theirs is not None else {}
    return (
        _lost(case, found, others, truth)
        or (wrong_values(case, found, theirs, truth) if truth is not None else None)
        or accepted(case, theirs, truth)
        or _wrong_dtype(case, found, others)
        or _wrong_format(case, found, others)
    )


def _lost(case: Case, found: dict[str, Any], others: dict[str, Any], truth: Truth | None) -> Finding | None:
    """Results that are missing, or have no values, where torch's are there."""
    # under such a mode what is computed has no values; torch hands on what it need not compute: a residual's gradient,
    # a product with a tensor of zeros that has no memory
    faked = case.transform == "fake" or any("FakeTensorMode" in text for text in (*case.contexts, *case.around))
    for name, other in others.items():
        mine = plain(found.get(name))
        if other is None:
            continue
        if mine is None and name in ("ddx", "ddy") and truth is not None and not truth.results[name][0].any():
            continue  # autograd's word for a zero: the gradient is no function of it
        if mine is None:
            return Finding("missing", name, "torch gives a tensor, normkit None", 4)
        if faked and isinstance(mine, FakeTensor):
            continue
        if has_values(plain(other)) and other.numel() and not has_values(mine):
            return Finding("no values", name, f"torch gives values, normkit {type(mine).__name__} on {mine.device}", 4)
    return None


def _wrong_dtype(case: Case, found: dict[str, Any], others: dict[str, Any]) -> Finding | None:
    """As torch's; strided where torch hands a sparse gradient on to a strided parameter."""
    for name, value in found.items():
        other = others.get(name)
        if not isinstance(value, Tensor) or not isinstance(other, Tensor) or case.transform:
            continue
        if value.dtype != other.dtype and not name.startswith(("running", "batches")):
            return Finding("dtype", name, f"{value.dtype}, torch's is {other.dtype}", 2)
        if value.layout != other.layout and (value.layout, other.layout) != (torch.strided, torch.sparse_coo):
            return Finding("layout", name, f"{value.layout}, torch's is {other.layout}", 2)
    return None


def _wrong_format(case: Case, found: dict[str, Any], others: dict[str, Any]) -> Finding | None:
    """The memory format is the input's. Norms of the last axes, activations and gradients keep it where torch does."""
    x = case.tensors["x"]
    if (
        is_unbatched(case) or case.around or case.plan in ("create_graph", "double", "batched")
    ):  # composed: as torch's operations do
        return None
    if any(a.trick == "zerotensor" for a in case.tensors.values()):  # torch lays what it makes of one out row-major
        return None
    if case.transform or case.after or case.contexts or x.trick or x.layout not in ("contiguous", "channels_last"):
        return None
    last, free = x.layout == "channels_last", not NORMS[case.norm].channels or bool(case.activation)
    for name in ("y", "dx"):
        value, other = found.get(name), others.get(name)
        if not has_values(value) or not value.numel() or value.dim() != len(case.shape):
            continue
        if name == "dx" and any(a.trick in ("subclass", "wrapper") for a in case.tensors.values()):
            continue  # composed: the gradient is laid out as torch's operations leave it
        if (free or case.norm == "normalize" or name == "dx") and not (has_values(other) and _is_kept(other, last)):
            continue
        if not _is_kept(value, last):
            return Finding("memory format", name, f"strides {value.stride()} for an input that is {x.layout}", 2)
    return None


def _is_kept(x: Tensor, last: bool) -> bool:
    return x.layout is torch.strided and (x.movedim(1, -1) if last else x).is_contiguous()
