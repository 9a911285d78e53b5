"""Where calls that move, cut, join and reduce axes leave the padded ones.

A rule takes the call and one of its results and gives the track of that, or None where the call is none of its cases:
then the result is laid beside the operand (`follow.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import PaddedCall
from .track import LOST, Lengths, Span, Track, agreed

Rule = Callable[
    [PaddedCall, "tuple[int, ...]", list[Tensor]], "list[Track] | None"
]  # the operand's shape before, the results


def moved(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """Axes that change places, come or go, by any function: it is asked on an operand whose sizes tell axes apart."""
    sizes = [max(shape, default=0) + 2 + axis for axis in range(len(shape))]
    told = call.on(torch.empty(sizes, device="meta"), call.args, call.kwargs)
    told = [told] if isinstance(told, Tensor) else list(told)
    if len(told) < len(results) or not all(isinstance(one, Tensor) for one in told):
        return None
    tracks = []
    for one in told[: len(results)]:  # unbind gives more, all alike
        where = {axis: one.shape.index(size) for axis, size in enumerate(sizes) if size in one.shape}
        tracks.append(call.track.moved(where))
    return tracks


def squeezed(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """Axes of size 1 that go."""
    dims = call.argument(1, "dim")
    dims = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {dim % len(shape) for dim in dims if shape[dim] == 1}
    return [call.track.moved({a: n for n, a in enumerate(a for a in range(len(shape)) if a not in gone)})]


def reduced(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """Reductions over given axes."""
    dim = call.argument(1, "dim", call.kwargs.get("axis"))
    if isinstance(dim, Tensor):  # max(x, y) is no reduction
        return None
    return [LOST] * len(results) if dim is None else moved(call, shape, results)


def indexed(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """x[...]: slices, numbers, None and ...; a slice of a padded axis cuts each sample as it would cut it alone."""
    index = call.args[1]
    index = index if isinstance(index, tuple) else (index,)
    named = sum(1 for part in index if part is not None and part is not Ellipsis)
    if Ellipsis in [part for part in index if not isinstance(part, Tensor)]:
        at = next(place for place, part in enumerate(index) if part is Ellipsis)
        index = (*index[:at], *[slice(None)] * (len(shape) - named), *index[at + 1 :])
    else:
        index = (*index, *[slice(None)] * (len(shape) - named))
    axis, place = 0, 0
    track = call.track
    where: dict[int, int] = {}
    spans: dict[int, Span] = {}
    for part in index:
        if part is None:
            place += 1
            continue
        if isinstance(part, slice):
            if axis == track.batch and part != slice(None):
                track = chosen(track, part)
            elif axis in track.spans:
                cut = _cut(call, track.spans[axis], shape[axis], part)
                if cut is not None:
                    spans[axis] = cut
                    where[axis] = place
            if axis not in track.spans:
                where[axis] = place
            place += 1
        elif isinstance(part, int) and not isinstance(part, bool):
            pass
        else:
            return _by_tensor(call, index, results)
        axis += 1
    return [track.with_spans(spans).moved(where)]


def _by_tensor(call: PaddedCall, index: Sequence[Any], results: list[Tensor]) -> list[Track] | None:
    """Samples chosen by a tensor or list; any other choice loses the axis."""
    track, asked = call.track, index[call.track.batch] if len(index) > call.track.batch else None
    others = [part for place, part in enumerate(index) if place != track.batch]
    if isinstance(asked, (Tensor, list)) and all(isinstance(part, slice) and part == slice(None) for part in others):
        asked = (asked if isinstance(asked, Tensor) else torch.as_tensor(asked, device="cpu")).cpu()
        if asked.dim() == 1 and results[0].dim() == call.x.dim():
            return [chosen(track, asked)]
    return [LOST]


def chosen(track: Track, index: Any) -> Track:
    """The track of these samples, in this order."""
    spans = {axis: Span(span.origin, span.real[index]) for axis, span in track.spans.items()}
    return Track(track.batch, spans, None if track.rows is None else track.rows[index])


def _cut(call: PaddedCall, span: Span, size: int, part: slice) -> Span | None:
    """A slice of a padded axis. A negative end counts from a sample's own end, and an end that is the padded size of
    another tensor is that tensor's length; None where it begins at the end, which lies elsewhere in each sample."""
    real, step = span.real, 1 if part.step is None else int(part.step)
    if step < 1 or (part.start is not None and int(part.start) < 0):
        return None
    if part.stop is not None:
        stop = int(part.stop)
        if stop < 0:
            real = real + stop
        elif stop <= size:
            real = _ending(call, span, stop)
    real = real - (0 if part.start is None else int(part.start))
    return span.of(-(-real).div(step, rounding_mode="floor"))


def _ending(call: PaddedCall, span: Span, stop: int) -> Tensor:
    known = call.known(span.origin, stop)
    if known is not None and len(known) == len(span.real):
        return torch.minimum(span.real, known)
    return span.real.clamp(max=stop)


def narrowed(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """narrow(x, dim, start, length)."""
    dim, start, length = (call.argument(i, name) for i, name in ((1, "dim"), (2, "start"), (3, "length")))
    index = [slice(None)] * len(shape)
    index[dim] = slice(int(start), int(start) + int(length))
    return indexed(replace(call, args=(call.x, tuple(index)), kwargs={}), shape, results)


def pieces(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """split, chunk and their like: a padded axis that is cut leaves each piece its part of the real positions."""
    cut = [axis for axis in range(len(shape)) if any(one.shape[axis] != shape[axis] for one in results)]
    if not cut:
        return [call.track] * len(results)
    (axis,) = cut
    tracks, begin = [], 0
    for one in results:
        track, end = call.track, begin + one.shape[axis]
        if axis == track.batch:
            track = chosen(track, slice(begin, end))
        elif axis in track.spans:
            real = track.spans[axis].real
            track = track.with_spans({axis: track.spans[axis].of((real - begin).clamp(max=end - begin))})
        tracks.append(track)
        begin = end
    return tracks


def selected(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """index_select(x, dim, index): samples in another order, as packed sequences have them."""
    dim, index = int(call.argument(1, "dim")) % len(shape), call.argument(2, "index")
    if dim == call.track.batch:
        return [chosen(call.track, index.cpu())]
    return [call.track.without([dim])]


def padded_again(results: list[Tensor], args: Sequence[Any]) -> list[Track]:
    """What torch.nn.utils.rnn.pad_packed_sequence calls: (sequences, their lengths)."""
    batch_first = bool(args[2]) if len(args) > 2 else False
    batch, positions = (0, 1) if batch_first else (1, 0)
    return [Track(batch, {positions: Span(0, results[1].cpu().long())}), *[LOST] * (len(results) - 1)]


def contracted(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """Products that sum over the operand's last axis."""
    last = len(shape) - 1
    return [call.track.without([last])] if last in call.track.spans else None


def unfolded(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """x.unfold(dim, size, step): frames; (L - size) // step + 1 of a sample are whole.

    torch.nn.functional.unfold has the same name, and its columns an order of their own.
    """
    if call.function is F.unfold:
        return [LOST]
    dim, size, step = (int(call.argument(i, name)) for i, name in ((1, "dimension"), (2, "size"), (3, "step")))
    dim %= len(shape)
    span = call.track.spans.get(dim)
    if span is None:
        return [call.track]
    frames = (span.real - size).div(step, rounding_mode="floor") + 1
    return [call.track.with_spans({dim: span.of(frames)})]


def joined(parts: Sequence[Tensor], tracks: Sequence[Track], dim: int, known: Lengths) -> Track:
    """cat: beside each other; real values in front of a padded tensor (a class token) are real."""
    padded = [place for place, track in enumerate(tracks) if not track.lost]
    if not padded:
        return LOST
    dim, first = dim % parts[0].dim(), tracks[padded[0]]
    if dim == first.batch:
        if len(padded) < len(parts) or any(t.axes != first.axes or t.rows is not None for t in tracks):
            return LOST
        spans = {a: Span(s.origin, torch.cat([t.spans[a].real for t in tracks])) for a, s in first.spans.items()}
        return Track(first.batch, spans)
    if dim in first.spans:
        if padded != [len(parts) - 1]:
            return LOST
        span = first.spans[dim]
        front = sum(part.shape[dim] for part in parts[:-1])
        return first.with_spans({dim: span.of(torch.where(span.real > 0, span.real + front, 0))})
    return agreed([tracks[place] for place in padded], parts[0].shape, known)


def stacked(parts: Sequence[Tensor], tracks: Sequence[Track], dim: int, known: Lengths) -> Track:
    """stack: beside each other along a new axis."""
    padded = [track for track in tracks if not track.lost]
    rank = parts[0].dim()
    dim %= rank + 1
    where = {axis: axis + (axis >= dim) for axis in range(rank)}
    return agreed(padded, parts[0].shape, known).moved(where) if padded else LOST
