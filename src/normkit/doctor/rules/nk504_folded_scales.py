"""Folded scales far apart.

What it checks: |gamma| / sqrt(running_var + eps) over the channels of a batch norm: the largest over 100 times the
median, or a gamma of exactly 0 beside others.

Why: folding multiplies each output channel of the convolution by it. With one scale per tensor, an 8-bit weight has
127 steps for the largest channel and so at most one for a channel 100 times smaller. Quantization-aware training
divides by gamma: 0 gives NaN.

Ignore it: always a note; with per-channel quantization the first does not matter.

Sources: Nagel et al. 2019, https://arxiv.org/abs/1906.04721; Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342
"""

from __future__ import annotations

from collections.abc import Iterator

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, small_net
from ..finding import Finding, make

LIMIT = 100.0

CODE, WHERE = "NK504", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if (
            norm.var is None
            or norm.weight is None
            or norm.weight.shape != norm.var.shape
            or norm.family not in BATCH_FAMILIES
        ):
            continue
        scales = norm.weight.abs() / (norm.var.clamp(min=0) + (1e-5 if norm.eps is None else norm.eps)).sqrt()
        zeros = int((norm.weight == 0).sum())
        alive = scales[(scales > 0) & scales.isfinite()]
        ratio = float(alive.max() / alive.median()) if alive.numel() else 0.0
        if ratio > LIMIT or 0 < zeros < scales.numel():
            yield make(
                CODE,
                norm.where,
                "note",
                f"the largest folded scale is {ratio:.3g} times the median"
                + (f"; gamma is exactly 0 in {zeros} channels" if zeros else ""),
                "quantize per channel, or equalize across layers first",
                measured=ratio,
                limit=LIMIT,
                unit="largest over median scale",
            )


def sick() -> Example:
    model = small_net()
    model[4].running_var[2], model[4].weight.data[2] = 1e-4, 1.0
    model[4].weight.data[0] = 200
    return model, None


def healthy() -> Example:
    return small_net(), None
