"""What a program gave, and what may be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What went wrong. kind, what: its name in the list of findings; at: the worst element, with what it should be.

    severity: 5 a crash, a hang, a wrong number without a word; 4 no number where torch has one, an error of our own
    making; 3 what torch computes is refused; 2 another dtype, shape or memory format; 1 another error, or none, for
    wrong input.
    """

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
