"""Views in another shape: which axes hold samples and positions is told from the sizes alone.

Both shapes are cut into runs of axes that hold as many values. A run of one axis on either side is the same axis; in a
longer one axes were merged or split, and what that means for samples and positions is said below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .call import PaddedCall
from .track import LOST, Span, Track


def reshaped(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """The rule of `axes.py` for views."""
    return [regrouped(call.track, shape, tuple(results[0].shape))]


def regrouped(track: Track, old: tuple[int, ...], new: tuple[int, ...]) -> Track:
    """The track of the same values in another shape."""
    if track.lost or math.prod(old) != math.prod(new) or math.prod(old) == 0:
        return LOST
    regrouping = _Regrouping(track, old, new)
    for before, after in _runs(old, new):
        regrouping.take(before, after)
    return regrouping.track()


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes of both shapes that hold as many values, the shortest from the left."""
    runs, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        before, after, a, b = [i], [j], old[i], new[j]
        while a != b:
            if a < b:
                i += 1
                a *= old[i]
                before.append(i)
            else:
                j += 1
                b *= new[j]
                after.append(j)
        runs.append((before, after))
        i, j = i + 1, j + 1
    return runs


class _Regrouping:
    """What is known of the new shape, run by run."""

    def __init__(self, track: Track, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        self.old, self.new, self.before = old, new, track
        self.batch: int | None = None
        self.spans: dict[int, Span] = {}
        self.rows = track.rows
        self.order: Tensor | None = None  # which of the old samples each of the new ones is

    def track(self) -> Track:
        if self.batch is None or (not self.spans and self.rows is None):
            return LOST
        order = self.order
        spans = self.spans if order is None else {a: Span(s.origin, s.real[order]) for a, s in self.spans.items()}
        return Track(self.batch, spans, self.rows)

    def take(self, before: list[int], after: list[int]) -> None:
        """One run: axes of the old shape, and of the new."""
        known = [axis for axis in before if axis in self.before.axes]
        if not known:
            return
        if len(known) == 1:  # axes of size 1 beside it say nothing
            before = [axis for axis in before if self.old[axis] != 1 or axis in known]
            after = [axis for axis in after if self.new[axis] != 1] or after[:1]
        if self.before.batch not in known:
            self._positions(known, before, after)
        elif len(before) == len(after) == 1:
            self.batch = after[0]
        elif len(known) > 1:
            self._flatten(before, after)
        elif self.rows is not None:
            self._unflatten(after)
        elif len(after) == 1:
            self._merge(before, after)
        elif len(before) == 1:
            self._split(after)

    def _positions(self, known: list[int], before: list[int], after: list[int]) -> None:
        """Positions with what else a sample has: only if they come first do a sample's real values stay in front."""
        span = self.before.spans[known[0]]
        if len(before) == len(after) == 1:
            self.spans[after[0]] = span
        elif len(known) == 1 and known[0] == before[0]:
            values = span.real * math.prod(self.old[axis] for axis in before[1:])
            each = math.prod(self.new[axis] for axis in after[1:])
            self.spans[after[0]] = span.of(-(-values).div(each, rounding_mode="floor"))

    def _flatten(self, before: list[int], after: list[int]) -> None:
        """Samples and positions become one axis of rows."""
        if len(after) == 1 and set(self.before.spans) <= set(before):
            sizes = [size if axis in before else 1 for axis, size in enumerate(self.old)]
            self.batch, self.rows = after[0], self.before.real(self.old).expand(sizes).reshape(-1)

    def _unflatten(self, after: list[int]) -> None:
        """Rows become samples and positions again, if the real ones are in front in each."""
        assert self.rows is not None
        rows, self.rows = self.rows, None
        if len(after) == 2:
            lengths = rows.view(self.new[after[0]], -1).sum(1)
            positions = torch.arange(self.new[after[1]], device="cpu")
            if torch.equal((positions < lengths.unsqueeze(1)).flatten(), rows):
                self.batch, self.spans[after[1]] = after[0], Span(0, lengths)

    def _merge(self, before: list[int], after: list[int]) -> None:
        """Samples with heads or channels: each of these is a sample."""
        shape = [self.old[axis] if axis == self.before.batch else 1 for axis in before]
        numbers = torch.arange(self.old[self.before.batch], device="cpu").view(shape)
        self.batch, self.order = after[0], numbers.expand([self.old[axis] for axis in before]).reshape(-1)

    def _split(self, after: list[int]) -> None:
        """The way back, if what becomes one sample has one length."""
        count = math.prod(self.new[axis] for axis in after[1:])
        lengths = [span.real.view(-1, count) for span in self.before.spans.values()]
        if all(bool((one == one[:, :1]).all()) for one in lengths):
            self.batch = after[0]
            self.order = torch.arange(0, self.old[self.before.batch], count, device="cpu")
