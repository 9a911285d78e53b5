"""NaN or Inf in a norm's statistics or parameters.

What it checks: running_mean, running_var, gamma and beta are finite, in the model and in every copy that a file holds
(an EMA of the weights).

Why: one Inf in one batch makes running_var NaN for ever, since NaN times 0.9 is NaN; training goes on, for it uses
the batch's statistics, and only evaluation is lost. An averaged copy takes it over and keeps it after the model
itself has recovered.

Ignore it: never.

Sources: pytorch#90342, pytorch#115500, pytorch#1206
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK108", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        held = {"running_mean": norm.mean, "running_var": norm.var, "gamma": norm.weight, "beta": norm.bias}
        bad = {name: int((~t.isfinite()).sum()) for name, t in held.items() if t is not None and not t.isfinite().all()}
        if bad:
            shown = ", ".join(f"{name} ({count} of {len(held[name].flatten())})" for name, count in bad.items())  # type: ignore[union-attr]  # it is there
            statistics = set(bad) <= {"running_mean", "running_var"}
            yield make(
                CODE,
                norm.where,
                "error",
                f"NaN or Inf in {shown}",
                f"nk.recalibrate(model, batches, only={norm.name!r})" if statistics else "take an earlier checkpoint",
                measured=sum(bad.values()),
                limit=0,
                unit="values that are not finite",
            )


def sick() -> Example:
    model = small_net()
    model[4].running_var[0] = float("nan")
    return model, images()


def healthy() -> Example:
    return small_net(), images()
