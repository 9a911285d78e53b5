"""Calls that are made for each sample alone, where one call for the padded batch would give something else.

Adaptive pools divide a sample's own length, upsampling and mirrored borders look at its own end. Where the padded size
is written into the call (upsampling to the size of a skip connection), a sample gets what it would have written itself:
the length of the tensors of this padded size, else the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.composed import cleared
from .axes import chosen
from .call import PaddedCall
from .track import LOST, Track

_PAD = ("input", "pad", "mode", "value")
_INTERPOLATE = ("input", "size", "scale_factor")
_FLIPPED = {"flipud": 0, "fliplr": 1}
Arguments = Callable[[int], tuple[Sequence[Any], Mapping[str, Any]]]


def adaptive_pool(call: PaddedCall) -> tuple[Any, Track] | None:
    """An adaptive pool: a sample's own length is divided into the bins."""
    rank = int(call.name[call.name.index("pool") + 4])
    return _each_alone(call, rank, lambda sample: (call.args, call.kwargs))


def lp_pool(call: PaddedCall) -> tuple[Any, Track] | None:
    """A power-average pool: what its last window holds depends on where the sample ends."""
    return _each_alone(call, int(call.name[len("lp_pool")]), lambda sample: (call.args, call.kwargs))


def interpolate(call: PaddedCall) -> tuple[Any, Track] | None:
    """Upsampling or downsampling, by a factor or to a size."""
    given, rank = call.bound(_INTERPOLATE), call.x.dim() - 2
    size = given.get("size")
    if size is None:
        return _each_alone(call, rank, lambda sample: (call.args, call.kwargs))
    sizes = [size] * rank if isinstance(size, int) else [int(part) for part in size]
    targets = {axis: _target(call, axis, sizes[axis - 2]) for axis in call.track.spans if axis >= 2}

    def arguments(sample: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        own = [int(targets[i + 2][sample]) if i + 2 in targets else part for i, part in enumerate(sizes)]
        others = [given["input"], own, *call.args[2:]]
        return others, {name: value for name, value in call.kwargs.items() if name not in ("input", "size")}

    return _each_alone(call, rank, arguments)


def pad(call: PaddedCall) -> tuple[Any, Track] | None:
    """New positions at the ends: a sample's own end is followed by the constant, or by what is mirrored there."""
    given, track, x = call.bound(_PAD), call.track, call.x
    widths = given["pad"]
    widths = [int(part) for part in widths]
    at = {axis: 2 * (x.dim() - 1 - axis) for axis in track.spans}
    around = {axis: (widths[i], widths[i + 1]) for axis, i in at.items() if i < len(widths)}
    if not any(left or right for left, right in around.values()):
        return None
    if given.get("mode", "constant") != "constant":
        return _each_alone(call, x.dim() - track.batch - 1, lambda sample: (call.args, call.kwargs))
    spans = {}
    for axis, (left, right) in around.items():
        real = track.spans[axis].real
        spans[axis] = track.spans[axis].of(torch.where(real > 0, real + left + right, 0))
    after = track.with_spans(spans)
    y = call.run()
    if not call.exact or track.is_full(x.shape):
        return y, after
    inside = track.with_spans({axis: s.of(track.spans[axis].real + around[axis][0]) for axis, s in spans.items()})
    value = given.get("value") or 0.0
    y = cleared(y, inside.mask(y)) if value == 0.0 else torch.where(inside.mask(y), y, value)
    return (y if value == 0.0 else cleared(y, after.mask(y))), after


def turned(call: PaddedCall) -> tuple[Any, Track] | None:
    """flip, its like and roll: a sample's own positions change places along a padded axis, or the samples do."""
    dims = call.argument(1 if call.name == "flip" else 2, "dims", _FLIPPED.get(call.name, ()))
    dims = (
        call.args[1:] if call.name == "flip" and isinstance(dims, int) else (dims,) if isinstance(dims, int) else dims
    )
    axes = {dim % call.x.dim() for dim in dims}
    along = axes & set(call.track.spans)
    if call.track.batch in axes or not axes:
        if along or not axes:  # roll over all values
            return call.run(), LOST
        places = [-1 if axis == call.track.batch else 1 for axis in range(call.x.dim())]
        order = torch.arange(call.x.shape[call.track.batch], device="cpu").view(places)
        return call.run(), chosen(call.track, call.run(order).flatten())
    if not along:
        return None
    if not call.exact:
        return call.run(), call.track.without(along)
    return _each_alone(call, call.x.dim() - call.track.batch - 1, lambda sample: (call.args, call.kwargs))


def _target(call: PaddedCall, axis: int, size: int) -> Tensor:
    """The size that each sample alone would ask for where the batch asks for `size`."""
    span = call.track.spans[axis]
    known = call.known(span.origin, size)
    if known is not None and len(known) == len(span.real):
        return torch.where(span.real > 0, known, 0)
    return -(-span.real * size).div(call.x.shape[axis], rounding_mode="floor")


def _each_alone(call: PaddedCall, rank: int, arguments: Arguments) -> tuple[Any, Track] | None:
    """The call for each sample's real part, laid side by side with zeros after. rank: over how many last axes it goes.

    arguments: of a sample's own call, but for the operand.
    """
    x, track = call.x, call.track
    if track.rows is not None or track.batch >= x.dim() - rank or all(axis < x.dim() - rank for axis in track.spans):
        return None
    whole = call.run()
    first = whole if isinstance(whole, Tensor) else whole[0]
    if track.is_full(x.shape):
        full = {axis: span.of(torch.full_like(span.real, first.shape[axis])) for axis, span in track.spans.items()}
        return whole, track.with_spans(full)
    real = {axis: torch.zeros_like(span.real) for axis, span in track.spans.items()}
    results: list[Any] = []
    for sample in range(x.shape[track.batch]):
        part = x.narrow(track.batch, sample, 1)
        for axis, span in track.spans.items():
            part = part.narrow(axis, 0, int(span.real[sample]))
        if not part.numel():
            results.append(None)
            continue
        args, kwargs = arguments(sample)
        results.append(call.on(part if call.exact else part.detach(), args, kwargs))
        shape = (results[-1] if isinstance(results[-1], Tensor) else results[-1][0]).shape
        for axis, lengths in real.items():
            lengths[sample] = shape[axis]
    after = track.with_spans({axis: track.spans[axis].of(lengths) for axis, lengths in real.items()})
    if not call.exact:
        return whole, after
    if isinstance(whole, Tensor):
        return _beside(results, whole, after), after
    parts = [[None if one is None else one[i] for one in results] for i in range(len(whole))]
    return tuple(_beside(part, like, after) for part, like in zip(parts, whole, strict=True)), after


def _beside(results: Sequence[Tensor | None], like: Tensor, track: Track) -> Tensor:
    """One batch of the samples' results, in the shape of `like`, zeros after each."""
    empty = like.new_zeros(like.narrow(track.batch, 0, 1).shape)
    return torch.cat([empty if one is None else _widened(one, like, track) for one in results], track.batch)


def _widened(part: Tensor, like: Tensor, track: Track) -> Tensor:
    widths = [0] * (2 * like.dim())
    for axis in track.spans:
        widths[2 * (like.dim() - 1 - axis) + 1] = like.shape[axis] - part.shape[axis]
    return F.pad(part, widths)
