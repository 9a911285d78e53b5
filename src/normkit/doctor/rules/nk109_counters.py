"""The counters of batches do not fit each other.

What it checks: num_batches_tracked of layers that trained together: negative, of a floating-point type, or of several
values in one model.

Why: the counter is an integer buffer. What averages all buffers (EMA and SWA with use_buffers=True, federated
averages) averages it too and cuts it off, so it falls behind or stands still; with momentum=None it is the weight of
the next batch, and statistics then move too fast. Models that are merged from parts count differently in each.

Ignore it: where momentum is a number nothing reads the counter. Counters at 0 after weights were ported say nothing
and are not reported. Always a note.

Sources: pytorch's AveragedModel(use_buffers=True) averages num_batches_tracked as an integer
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mode

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK109", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    norms = [norm for norm in evidence.norms if norm.counter is not None and norm.fixed is None and norm.tracked]
    for copy in dict.fromkeys(norm.copy for norm in norms):
        own = [norm for norm in norms if norm.copy == copy and norm.counter]
        usual = mode([norm.counter for norm in own]) if own else 0
        for norm in norms:
            counter = float(norm.counter or 0)
            odd_type = norm.dtypes["num_batches_tracked"].is_floating_point
            if norm.copy == copy and (counter < 0 or odd_type or (counter and counter != usual)):
                yield make(
                    CODE,
                    norm.where,
                    "note",
                    f"num_batches_tracked is {counter:g}"
                    + (
                        f", of type {norm.dtypes['num_batches_tracked']}"
                        if odd_type
                        else f", most layers have {usual:g}"
                    ),
                    "set the counters to the number of steps; average floating-point buffers only",
                    measured=counter,
                    limit=usual,
                    unit="batches",
                )


def sick() -> Example:
    model = small_net()
    model[4].num_batches_tracked.fill_(370)
    return model, images()


def healthy() -> Example:
    return small_net(), images()
