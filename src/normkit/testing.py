"""For the user's own tests: `normkit.testing.assert_healthy(model, batches)` is one line in a test suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .doctor.diagnose import Diagnosis, diagnose
from .doctor.finding import Severity


def assert_healthy(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    ignore: Mapping[str, str] | None = None,
    fail_on: Severity = "warning",
    **options: Any,
) -> Diagnosis:
    """Fail where `nk.diagnose(model, batches)` finds anything as severe as `fail_on`; the message is the report.

    Args:
        model, batches: as for `nk.diagnose`.
        ignore: code of a rule -> the reason why it does not count here: ``{"NK206": "batch of 2 on purpose"}``.
        fail_on: "note", "warning" or "error".
        options: `nk.diagnose`'s others (forward, optimizer, loss_fn, metric).

    Returns: the diagnosis, where it is healthy.

    Raises:
        AssertionError: it is not.
        TypeError, ValueError: as `nk.diagnose`; an ignored code without a reason.
    """
    reasons = {} if ignore is None else dict(ignore)
    for code, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"ignore needs a reason for {code}: {{{code!r}: 'why it does not count here'}}")
    found = diagnose(model, batches, ignore=reasons, **options)
    if found.at_least(fail_on):
        raise AssertionError(f"expected nothing as severe as {fail_on!r}\n{found}")
    return found
