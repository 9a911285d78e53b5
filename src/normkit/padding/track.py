"""What is known of one tensor of a padded batch: which axis counts samples, which are padded, and how far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

Lengths = Callable[[int, int], "Tensor | None"]  # (origin, padded size) -> the lengths first seen at it


class Span(NamedTuple):
    """One padded axis. origin: which padded axis of the block's input it comes from. real: int64 (N,), on the CPU: how
    many positions of each sample are real, from the first on."""

    origin: int
    real: Tensor

    def of(self, real: Tensor) -> Span:
        """The same axis with these lengths."""
        return Span(self.origin, real.clamp(min=0))


@dataclass(frozen=True, eq=False)
class Track:
    """Of one tensor. batch: the axis of samples, N long. spans: its padded axes. rows: where one axis, `batch`, holds
    samples and positions together: bool, which of its entries are real.

    A track without both is `LOST`: of a tensor that was made of padded ones in a way that is not known.
    """

    batch: int
    spans: Mapping[int, Span]
    rows: Tensor | None = None

    @property
    def lost(self) -> bool:
        return not self.spans and self.rows is None

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes whose sizes mean something: samples and positions."""
        return (self.batch, *self.spans)

    def moved(self, where: Mapping[int, int]) -> Track:
        """The track of a tensor whose axis `where[a]` is axis a of this one; axes that are not named are gone."""
        if self.lost or self.batch not in where:
            return LOST
        spans = {where[axis]: span for axis, span in self.spans.items() if axis in where}
        return Track(where[self.batch], spans, self.rows) if spans or self.rows is not None else LOST

    def shifted(self, by: int) -> Track:
        """The track of a tensor with `by` axes more in front."""
        return self.moved({axis: axis + by for axis in self.axes})

    def with_spans(self, spans: Mapping[int, Span]) -> Track:
        """The same with other lengths on some axes."""
        return replace(self, spans={**self.spans, **spans})

    def without(self, axes: Iterable[int]) -> Track:
        """The same, of these padded axes nothing being known any more."""
        gone = set(axes)
        return self.moved({axis: axis for axis in self.axes if axis not in gone})

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can have the track."""
        if self.lost or not all(0 <= axis < len(shape) for axis in self.axes):
            return False
        values = self.rows if self.rows is not None else next(iter(self.spans.values())).real
        return shape[self.batch] == len(values)

    def is_full(self, shape: Sequence[int]) -> bool:
        """Whether every position is real."""
        if self.rows is not None and not bool(self.rows.all()):
            return False
        return all(bool((span.real >= shape[axis]).all()) for axis, span in self.spans.items())

    def real(self, shape: Sequence[int]) -> Tensor:
        """bool, on the CPU, of the rank of a tensor of this shape, with 1 on axes along which nothing is padded."""

        def beside(values: Tensor, axis: int) -> Tensor:
            return values.view([-1 if place == axis else 1 for place in range(len(shape))])

        found = torch.ones([1] * len(shape), dtype=torch.bool, device="cpu")
        if self.rows is not None:
            found = beside(self.rows, self.batch)
        for axis, span in self.spans.items():
            positions = torch.arange(shape[axis], device="cpu")
            found = found & (beside(positions, axis) < beside(span.real, self.batch))
        return found

    def mask(self, x: Tensor) -> Tensor:
        """The same beside x; True = a real value."""
        return self.real(x.shape).to(x.device)


LOST = Track(-1, {})


def agreed(tracks: Sequence[Track], shape: Sequence[int], known: Lengths) -> Track:
    """One track for what is made of several padded tensors, in a shape that all of them have along their axes.

    Lengths differ where a sample alone would have been cropped or padded to a skip connection and the batch was not:
    then those that were first seen at this padded size count, else the smallest.
    """
    first = tracks[0]
    others = [track for track in tracks[1:] if track.axes == first.axes and track.rows is None is first.rows]
    spans = {}
    for axis, span in first.spans.items():
        found = [span.real, *(track.spans[axis].real for track in others)]
        if all(torch.equal(span.real, real) for real in found):
            continue
        usual = known(span.origin, shape[axis])
        if usual is not None and any(torch.equal(usual, real) for real in found):
            spans[axis] = span.of(usual)
        else:
            spans[axis] = span.of(torch.stack(found).amin(0))
    return first.with_spans(spans) if spans else first
