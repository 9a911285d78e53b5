"""Which findings another one explains: they are listed under it.

Rules: only findings of the same layer follow from each other, but for a model that raises or gives NaN; a cause comes
before its effect in CAUSES, and an effect follows from the first cause found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .finding import Finding, at_least

# effect -> its causes, the likeliest first
CAUSES = {
    "NK101": ("NK108",),
    "NK103": ("NK108", "NK107", "NK101", "NK102", "NK104", "NK105", "NK110"),
    "NK104": ("NK101", "NK102"),
    "NK306": ("NK108",),
}
SPREADS = frozenset(("NK306",))  # whose cause may be another layer


def follow(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The same findings, each with the keys of those that it explains; the worse of both severities for the cause."""
    explained: dict[Finding, list[Finding]] = {}
    for effect in findings:
        cause = next(
            (
                finding
                for code in CAUSES.get(effect.code, ())
                for finding in findings
                if finding.code == code and (finding.where == effect.where or effect.code in SPREADS)
            ),
            None,
        )
        if cause is not None:
            explained.setdefault(cause, []).append(effect)
    return tuple(
        replace(
            finding,
            severity=max((f.severity for f in (finding, *explained.get(finding, ()))), key=_rank),
            follows=tuple(effect.key for effect in explained.get(finding, ())),
        )
        for finding in findings
    )


def followers(findings: Sequence[Finding]) -> frozenset[str]:
    """The keys of the findings that follow from another one."""
    return frozenset(key for finding in findings for key in finding.follows)


def _rank(severity: str) -> int:
    return sum(at_least(severity, bound) for bound in ("note", "warning", "error"))  # type: ignore[arg-type]  # both are severities
