"""What a pass over the data has shown of one layer, and the two ways to read it.

    population      mean, m2 / (count - 1)          all values as one set: the spread between batches counts
    batch_average   mean, within / freedom          the average of the batches' unbiased variances

Rules: float64, constant size, order of the merges is the order of the calls, then of the ranks. A call with NaN or
Inf adds nothing and is counted as skipped; off the CPU that is decided without waiting for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._precision import wide_dtype
from ..moments import Moments
from .sample import Sample

TOGETHER = 16  # calls merged at once: a merge is a dozen small operations, dearer than the numbers in it
NEVER = 2**53  # the place in the order of calls of a layer that was never called; exact in float64


@dataclass
class Accumulator:
    """Statistics of all calls so far. mean, m2, within: (C,) float64; calls and skipped count forward calls."""

    moments: Moments
    within: Tensor
    average: bool  # which of the two ways it is read
    freedom: int | Tensor = 0
    calls: int = 0
    skipped: int | Tensor = 0
    first: int = NEVER  # the layer's place in the order in which layers were first called
    pending: list[Sample] = field(default_factory=list)
    refusal: str | None = None  # why nothing was taken

    @staticmethod
    def empty(channels: int, device: torch.device, average: bool) -> Accumulator:
        """Nothing seen yet."""
        zero = torch.zeros(channels, dtype=wide_dtype(device), device=device)
        return Accumulator(Moments(0, zero, zero), zero, average)

    def add(self, sample: Sample) -> None:
        """Take one call; it is merged with others when there are enough of them, or when something is read."""
        self.calls += 1
        self.pending.append(sample)
        if len(self.pending) == TOGETHER:
            self.flush()

    def flush(self) -> Accumulator:
        """Merge what is pending; returns the accumulator itself."""
        if not self.pending:
            return self
        samples, self.pending = self.pending, []
        table = torch.stack([sample.table for sample in samples])  # (K, 3, C)
        counts = _column([sample.values for sample in samples], table)
        means, m2 = table[:, 0], table[:, 1] * counts.unsqueeze(1)
        per_instance = samples[0].within is not None
        within = torch.stack([s.within for s in samples if s.within is not None]) if per_instance else m2
        finite = (means + within).isfinite().all(1)  # (K,); no branch: the host need not wait for the device
        counts = counts * finite
        means, m2, within = (torch.where(finite.unsqueeze(1), part, 0) for part in (means, m2, within))
        both = Moments(counts.unsqueeze(1), means, m2).merge_along(0)
        self.moments = self.moments.merge(Moments(_number(counts.sum()), both.mean, both.m2))
        self.within = self.within + within.sum(0)
        self.freedom += _number((counts if per_instance else (counts - 1).clamp(min=0)).sum())
        self.skipped += _number((~finite).sum())
        return self

    def merge(self, other: Accumulator) -> Accumulator:
        """Both together; the earlier of the two first calls is kept."""
        self.flush(), other.flush()
        return Accumulator(
            self.moments.merge(other.moments),
            self.within + other.within,
            self.average,
            self.freedom + other.freedom,
            self.calls + other.calls,
            self.skipped + other.skipped,
            min(self.first, other.first),
        )

    def read(self) -> tuple[Tensor, Tensor] | None:
        """(mean, unbiased variance), or None where nothing tells a variance."""
        self.flush()
        if self.average:
            return (self.moments.mean, self.within / self.freedom) if int(self.freedom) >= 1 else None
        return (self.moments.mean, self.moments.var(correction=1)) if int(self.moments.count) >= 2 else None

    @property
    def values(self) -> int:
        """How many values (for instance norm: samples) of each channel were merged."""
        return int(self.flush().moments.count)

    def to_tensor(self) -> Tensor:
        """(5 + 3 C,): the form in which accumulators travel between ranks."""
        self.flush()
        mean = self.moments.mean
        head = [self.moments.count, self.freedom, self.calls, self.skipped, self.first]
        counts = torch.stack([torch.as_tensor(value, dtype=mean.dtype, device=mean.device) for value in head])
        return torch.cat([counts, mean, self.moments.m2, self.within])

    @staticmethod
    def from_tensor(packed: Tensor, average: bool) -> Accumulator:
        """The inverse of `to_tensor`."""
        count, freedom, calls, skipped, first = (int(value) for value in packed[:5].tolist())
        mean, m2, within = packed[5:].view(3, -1)
        return Accumulator(Moments(count, mean, m2), within, average, freedom, calls, skipped, first)


def _column(numbers: list[int | Tensor], like: Tensor) -> Tensor:
    """(K,) int64 of K numbers, on the device of `like`."""
    if any(isinstance(number, Tensor) for number in numbers):
        return torch.stack([torch.as_tensor(number, device=like.device) for number in numbers])
    return torch.tensor(numbers, device=like.device)


def _number(value: Tensor) -> int | Tensor:
    """A plain int where that costs no waiting."""
    return int(value) if value.device.type == "cpu" else value
