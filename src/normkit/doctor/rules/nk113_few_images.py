"""Too few images to tell.

What it checks: what the number of images leaves open: 2.5 standard errors of the distance between running and exact
statistics, at the layer (of those that are not surely far off) where they are largest, above the limit of 0.1.

Why: mean and variance of a sample are off by themselves. With n independent images the mean is off by 1 / sqrt(n)
standard deviations where all values of an image are one: 0.18 at 32 images, more than the limit. Values inside of an
image hang together, so images are counted, not pixels.

Ignore it: where no distance is near the limit. A note; the number it names would tell.

Sources: the standard error of a mean and of a variance from the fourth moment, with images as the unit
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make
from ..forward import SCREEN

CODE, WHERE = "NK113", ""


def check(evidence: Evidence) -> Iterator[Finding]:
    needed = None if evidence.forward is None else evidence.forward.needed()
    if evidence.forward is not None and needed is not None:
        yield make(
            CODE,
            "",
            "note",
            f"{evidence.forward.images} images cannot tell a distance of {SCREEN} at every layer; {needed} would",
            f"nk.diagnose(model, batches) with {needed} images",
            measured=evidence.forward.images,
            limit=needed,
            unit="images",
        )


def sick() -> Example:
    return small_net(), images(batches=2, size=8)


def healthy() -> Example:
    return small_net(), images(batches=8, size=128)
