"""Hooks on saved tensors that keep fewer digits: what a gradient may then be off.

Statistics are saved as bytes, which such hooks leave alone; an input, a weight or a residual comes back rounded to u.
So x is off by u|x|, xhat by u|x| / std, and a weight by u of itself. Composed operations save what they compute, and
each factor of a gradient is rounded.
"""

from __future__ import annotations

import torch

from normkit import contract

from .case import Case

_KEPT = {
    "saved('bfloat16')": torch.bfloat16, "saved('half_and_back')": torch.float16, "saved('float32')": torch.float32,
}  # fmt: skip
# Of one term of dx by composed operations: weight, centred x twice, 1 / std three times (it is cubed), and x itself.
ROUNDINGS = 8


def kept_dtype(case: Case) -> torch.dtype | None:
    """The dtype that saved tensors are kept in, where a hook says so."""
    found = [_KEPT[text] for text in case.contexts if text in _KEPT]
    return max(found, key=contract.unit_roundoff) if found else None


def roundoff(case: Case) -> float:
    """What each saved value may be off, relative to it."""
    dtype = kept_dtype(case)
    return 0.0 if dtype is None else ROUNDINGS * contract.unit_roundoff(dtype)


def underflow(case: Case) -> float:
    """What each saved value may be off near 0."""
    dtype = kept_dtype(case)
    return 0.0 if dtype is None else ROUNDINGS * contract.underflow(dtype)
