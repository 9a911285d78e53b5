"""The findings of a run, each kind once: a case that has all that is unusual about a known one is of its kind."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

from .case import Case, features
from .finding import Finding

MOST = 30  # shrunk cases of one key; more of it are counted only


def key(finding: Finding) -> tuple[str, str]:
    """What two findings have in common when they may be one fault: no numbers, no sizes, no dtypes."""
    what = re.sub(r"\[[^\]]*\]|\([^)]*\)", "[]", finding.what)
    what = re.sub(r"\b(Complex)?(Float|Double|Half|BFloat16|Long|Int|Byte|Bool)\b", "T", what)
    return finding.kind, re.sub(r"\d+(\.\d+)?", "#", what)


@dataclass
class Kind:
    """One fault: what it was found as, the number of that case, and the case and finding that were left of it."""

    found: Finding
    number: int
    case: Case
    finding: Finding
    alone: bool = True  # whether it fails in a process of its own
    after: tuple[int, ...] = ()  # the numbers of the cases that have to run before it there, where they are known
    seen: int = 1

    def explains(self, case: Case) -> bool:
        """Whether a case has all that is unusual about this one; norms fail alike."""
        return features(self.case) - {f"norm={self.case.norm}"} <= features(case)


class Findings:
    """All kinds of a run. Used by several threads."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []
        self.total = 0
        self._lock = threading.Lock()

    def known(self, case: Case, finding: Finding) -> bool:
        """Whether a finding is of a kind that is known, which counts it."""
        with self._lock:
            alike = [kind for kind in self.kinds if key(kind.found) == key(finding)]
            for kind in alike:
                if kind.explains(case) or len(alike) >= MOST:
                    kind.seen += 1
                    self.total += 1
                    return True
            return False

    def add(self, kind: Kind) -> None:
        """Keep a kind, unless its shrunk case is one that is there."""
        with self._lock:
            self.total += 1
            for other in self.kinds:
                if key(other.finding) == key(kind.finding) and features(other.case) == features(kind.case):
                    other.seen += 1
                    return
            self.kinds.append(kind)

    def sorted(self) -> list[Kind]:
        """The worst first."""
        return sorted(self.kinds, key=lambda k: (-k.finding.severity, k.finding.kind, -k.seen))
