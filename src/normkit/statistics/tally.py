"""What a pass over the data has shown of one layer, and the two ways to read it.

    population      mean, m2 / (count - 1)          all values as one set: the spread between batches counts
    batch_average   mean, within / freedom          the average of the batches' unbiased variances

Rules: float64, constant size, order of the merges is the order of the calls, then of the ranks. A call with NaN or
Inf adds nothing and is counted as skipped; off the CPU that is decided without waiting for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..moments import Moments
from .measure import Sample

NEVER = 2**53  # the place in the order of calls of a layer that was never called; exact in float64


@dataclass
class Tally:
    """Statistics of all calls so far. mean, m2, within: (C,) float64; calls and skipped count forward calls."""

    moments: Moments
    within: Tensor
    freedom: int | Tensor = 0
    calls: int = 0
    skipped: int | Tensor = 0
    first: int = NEVER  # the layer's place in the order in which layers were first called

    @staticmethod
    def empty(channels: int, device: torch.device) -> Tally:
        """Nothing seen yet."""
        zero = torch.zeros(channels, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        return Tally(Moments(0, zero, zero), zero)

    def add(self, sample: Sample) -> None:
        """Merge one call."""
        self.calls += 1
        moments, within, freedom = sample.moments, sample.within, sample.freedom
        finite = (moments.mean + moments.m2 + within).isfinite().all()
        if moments.mean.device.type == "cpu":
            if not finite:
                self.skipped += 1
                return
        else:  # a branch would make the host wait for the device at every layer
            moments = Moments(moments.count * finite, _zero(moments.mean, finite), _zero(moments.m2, finite))
            within, freedom = _zero(within, finite), freedom * finite
            self.skipped = self.skipped + ~finite
        self.moments = self.moments.merge(moments)
        self.within = self.within + within
        self.freedom = self.freedom + freedom

    def merge(self, other: Tally) -> Tally:
        """Both together; the earlier of the two first calls is kept."""
        return Tally(
            self.moments.merge(other.moments),
            self.within + other.within,
            self.freedom + other.freedom,
            self.calls + other.calls,
            self.skipped + other.skipped,
            min(self.first, other.first),
        )

    def read(self, average: bool) -> tuple[Tensor, Tensor] | None:
        """(mean, unbiased variance), or None where nothing tells a variance."""
        if average:
            return (self.moments.mean, self.within / self.freedom) if int(self.freedom) >= 1 else None
        return (self.moments.mean, self.moments.var(correction=1)) if int(self.moments.count) >= 2 else None

    @property
    def values(self) -> int:
        """How many values (for instance norm: samples) of each channel were merged."""
        return int(self.moments.count)

    def to_tensor(self) -> Tensor:
        """(5 + 3 C,): the form in which tallies travel between ranks."""
        mean = self.moments.mean
        head = [self.moments.count, self.freedom, self.calls, self.skipped, self.first]
        counts = torch.stack([torch.as_tensor(value, dtype=mean.dtype, device=mean.device) for value in head])
        return torch.cat([counts, mean, self.moments.m2, self.within])

    @staticmethod
    def from_tensor(packed: Tensor) -> Tally:
        """The inverse of `to_tensor`."""
        count, freedom, calls, skipped, first = (int(value) for value in packed[:5].tolist())
        mean, m2, within = packed[5:].view(3, -1)
        return Tally(Moments(count, mean, m2), within, freedom, calls, skipped, first)


def _zero(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, x, 0)
