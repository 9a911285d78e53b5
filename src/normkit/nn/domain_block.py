"""`nk.domain`: which domain's batch norms a block of a program computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

Domain: TypeAlias = "int | Tensor"

# The domain of the innermost `with normkit.domain(...)`. A module global, because Dynamo guards those.
_current: Domain | None = None


@contextmanager
def domain(which: Domain) -> Iterator[None]:
    """Compute every :class:`DomainBatchNorm2d` and its kin inside the `with` block as this domain.

    Holds for all threads of the process. A domain given to a layer's call goes before. Under an activation checkpoint
    enter it inside of the checkpointed function: its recomputation runs in the backward.

    Args:
        which: the domain's number from 0, or int64 (N,), a number for each sample of the batch.

    Raises:
        TypeError: neither an integer nor a tensor of integers.

    Example:
        >>> with normkit.domain(1):
        ...     logits = model(target_images)
    """
    global _current
    verify(which)
    before, _current = _current, which
    try:
        yield
    finally:
        _current = before


def current() -> Domain | None:
    """The domain of the innermost block."""
    return _current


def verify(domain: Any) -> None:
    """Raise TypeError for what is neither a number nor numbers."""
    if isinstance(domain, Tensor):
        if domain.is_floating_point() or domain.is_complex() or domain.dtype == torch.bool:
            raise TypeError(f"domain must be integers, a number for each sample, got {domain.dtype}")
    elif isinstance(domain, bool) or not isinstance(domain, int):
        raise TypeError(f"domain must be an integer or a tensor of integers (N,), got {type(domain).__name__}")
