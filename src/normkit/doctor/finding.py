"""One thing that is wrong with a model's normalization, or worth knowing: what, where, how much, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")
WHOLE = "(the model itself)"


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    code: the rule ("NK103"). where: the qualified name of the layer, in its copy where a file holds several
    ("ema: layer1.bn"); "" for the model itself. severity: "error" changes the answer by more than batches differ, or
    is no number; "warning" harms a model that is in training; "note" is worth knowing. measured, limit: in `unit`;
    None where there is no finite number. cause: a sentence. fix: a call, or a sentence where none mends it. page: what
    the rule checks, why, and when to ignore it. follows: findings that this one explains, each "CODE where".
    """

    code: str
    where: str
    severity: Severity
    measured: float | None
    limit: float | None
    unit: str
    cause: str
    fix: str
    page: str
    follows: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """How other findings name this one."""
        return f"{self.code} {self.where or WHOLE}"

    def to_json(self) -> dict[str, Any]:
        """The fields by name, in the form of schema.json."""
        return {
            "code": self.code, "where": self.where, "severity": self.severity, "measured": self.measured,
            "limit": self.limit, "unit": self.unit, "cause": self.cause, "fix": self.fix, "page": self.page,
            "follows": list(self.follows),
        }  # fmt: skip


def at_least(severity: Severity, bound: Severity) -> bool:
    """Whether a severity is `bound` or worse."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(bound)


def rounded(number: float | None) -> float | None:
    """A number to four digits, so that the same input gives the same text and JSON; None for what is not finite."""
    if number is None or number != number or number in (float("inf"), float("-inf")):
        return None
    return float(f"{number:.4g}")


def make(
    code: str,
    where: str,
    severity: Severity,
    cause: str,
    fix: str,
    *,
    measured: float | None = None,
    limit: float | None = None,
    unit: str = "",
) -> Finding:
    """A finding with its page, its numbers rounded."""
    return Finding(code, where, severity, rounded(measured), rounded(limit), unit, cause, fix, f"docs/doctor/{code}.md")
