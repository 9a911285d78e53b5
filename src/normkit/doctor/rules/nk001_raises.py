"""The model raises in its forward.

What it checks: that every batch goes through the model, in evaluation mode.

Why: what cannot be run cannot be measured. The rules of the state still judge the norms' settings, parameters and
statistics.

Ignore it: where the model takes other inputs than those given: pass forward=lambda model, batch: ...

Sources: none
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK001", ""


def check(evidence: Evidence) -> Iterator[Finding]:
    if evidence.failure is not None:
        yield make(CODE, "", "error", f"the forward raises {evidence.failure}", "pass forward=lambda model, batch: ...")


def sick() -> Example:
    return small_net(), images(channels=4)


def healthy() -> Example:
    return small_net(), images()
