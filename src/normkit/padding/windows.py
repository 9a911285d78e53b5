r"""Convolutions and pools over a padded axis: how long each sample's result is, and what is read beyond its end.

With kernel k, stride s, padding p, dilation d and a sample of length L the result has

.. math:: \text{convolution:} \quad \Big\lfloor \frac{L + 2p - d(k - 1) - 1}{s} \Big\rfloor + 1
.. math:: \text{transposed:} \quad (L - 1)s - 2p + d(k - 1) + p_{out} + 1
.. math:: \text{pool:} \quad \text{as a convolution; with ceil\_mode } \lceil \cdot \rceil + 1
          \text{, less a window that would begin after } L + p

real positions, and none where that is below 1. A sample by itself meets zeros (a maximum pool: minus infinity) after
its end; so do these, whatever the batch holds there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.composed import cleared
from .call import PaddedCall
from .track import LOST, Track

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_MAX_UNPOOL = ("input", "indices", "kernel_size", "stride", "padding", "output_size")
_AVG_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def convolution_length(length: Tensor, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    """floor((L + 2p - d(k - 1) - 1) / s) + 1, and 0 where that is less, or where nothing is real."""
    found = (length + 2 * padding - dilation * (kernel - 1) - 1).div(stride, rounding_mode="floor") + 1
    return torch.where(length > 0, found.clamp(min=0), 0)


def transposed_length(  # the five numbers of the formula
    length: Tensor, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, output_padding: int = 0
) -> Tensor:
    """(L - 1)s - 2p + d(k - 1) + output_padding + 1, and 0 where nothing is real."""
    found = (length - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    return torch.where(length > 0, found.clamp(min=0), 0)


def pool_length(  # the numbers of the formula
    length: Tensor, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> Tensor:
    """As a convolution's; with ceil_mode rounded up, less a window that would begin after L + p."""
    if not ceil_mode:
        return convolution_length(length, kernel, stride, padding, dilation)
    span = length + 2 * padding - dilation * (kernel - 1) - 1
    found = -(-span).div(stride, rounding_mode="floor") + 1
    found = found - ((found - 1) * stride >= length + padding).long()
    return torch.where(length > 0, found.clamp(min=0), 0)


def convolve(call: PaddedCall) -> tuple[Any, Track] | None:
    """A convolution, transposed or not: (its result, the track of that). None: no padded axis is convolved."""
    x, track = call.x, call.track
    transposed = "transpose" in call.name
    given = call.bound(_TRANSPOSED if transposed else _CONVOLUTION)
    weight, rank = given["weight"], int(call.name[-2])
    if track.rows is not None or track.batch != 0 or x.dim() != rank + 2:
        return None
    if any(axis < 2 for axis in track.spans):
        return call.run(), LOST  # positions are its channels
    sizes = {name: _each(given.get(name, default), rank) for name, default in _DEFAULTS.items()}

    def length(place: int, real: Tensor) -> Tensor:
        kernel, stride, dilation = weight.shape[place + 2], sizes["stride"][place], sizes["dilation"][place]
        padding = sizes["padding"][place]
        if transposed:
            return transposed_length(real, kernel, stride, padding, dilation, sizes["output_padding"][place])
        if padding == "same":
            return real
        return convolution_length(real, kernel, stride, 0 if padding == "valid" else padding, dilation)

    return _windowed(call, rank, length, 0.0)


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}


def max_pool(call: PaddedCall) -> tuple[Any, Track] | None:
    """A maximum pool, with indices or without."""
    given, rank = call.bound(_MAX_POOL), int(call.name[len("max_pool")])
    kernel = _each(given["kernel_size"], rank)
    stride = _each(given.get("stride") or given["kernel_size"], rank)
    padding, dilation = (_each(given.get(name, default), rank) for name, default in (("padding", 0), ("dilation", 1)))
    ceil_mode = bool(given.get("ceil_mode", False))

    def length(place: int, real: Tensor) -> Tensor:
        return pool_length(real, kernel[place], stride[place], padding[place], dilation[place], ceil_mode)

    return _windowed(call, rank, length, float("-inf"))


def avg_pool(call: PaddedCall) -> tuple[Any, Track] | None:
    """An average pool: a window across a sample's end counts what it would count for the sample alone."""
    given, rank = call.bound(_AVG_POOL), int(call.name[len("avg_pool")])
    kernel = _each(given["kernel_size"], rank)
    stride = _each(given.get("stride") or given["kernel_size"], rank)
    padding, ceil_mode = _each(given.get("padding", 0), rank), bool(given.get("ceil_mode", False))

    def length(place: int, real: Tensor) -> Tensor:
        return pool_length(real, kernel[place], stride[place], padding[place], 1, ceil_mode)

    found = _windowed(call, rank, length, 0.0)
    if found is None or not call.exact or given.get("divisor_override") is not None:
        return found
    y, track = found
    x, inside = call.x, not given.get("count_include_pad", True)
    for axis, span in call.track.spans.items():
        place = axis - (x.dim() - rank)
        if place >= 0:
            k, s, p = kernel[place], stride[place], padding[place]
            starts = torch.arange(y.shape[axis], device="cpu") * s - p
            of_batch = _counted(starts, k, torch.full((1,), x.shape[axis], device="cpu"), p, inside)
            of_sample = _counted(starts, k, span.real, p, inside)
            factor = (of_batch / of_sample.clamp(min=1)).to(y)
            if bool((factor != 1).any()):
                shape = [1] * y.dim()
                shape[track.batch], shape[axis] = factor.shape
                y = y * factor.view(shape)
    return y, track


def max_unpool(call: PaddedCall) -> tuple[Any, Track] | None:
    """The way back from a maximum pool: (L - 1)s - 2p + k positions, or as many as what was pooled had."""
    given, rank = call.bound(_MAX_UNPOOL), int(call.name[len("max_unpool")])
    kernel = _each(given["kernel_size"], rank)
    stride = _each(given.get("stride") or given["kernel_size"], rank)
    padding = _each(given.get("padding", 0), rank)
    wanted = given.get("output_size")
    first = call.x.dim() - rank

    def length(place: int, real: Tensor) -> Tensor:
        own = transposed_length(real, kernel[place], stride[place], padding[place])
        size = None if wanted is None else int(list(wanted)[place - rank])
        known = None if size is None else call.known(call.track.spans[first + place].origin, size)
        if known is None or len(known) != len(real):
            return own
        return torch.where(real > 0, known, 0)

    return _windowed(call, rank, length, 0.0)


def _counted(starts: Tensor, kernel: int, length: Tensor, padding: int, inside: bool) -> Tensor:
    """How many positions each window counts: (samples, windows). inside: without those of the padding."""
    ends = torch.minimum(starts + kernel, length.unsqueeze(1) + padding)
    if inside:
        starts, ends = starts.clamp(min=0), torch.minimum(ends, length.unsqueeze(1))
    return (ends - starts).double()


def _windowed(
    call: PaddedCall, rank: int, length: Callable[[int, Tensor], Tensor], beyond: float
) -> tuple[Any, Track] | None:
    """A call over the last `rank` axes. length: (place among them, lengths) -> lengths; beyond: what a window meets
    after a sample's end."""
    x, track = call.x, call.track
    first = x.dim() - rank
    if not any(axis >= first for axis in track.spans) or track.batch >= first:
        return None
    spans = {axis: span.of(length(axis - first, span.real)) for axis, span in track.spans.items() if axis >= first}
    after = track.with_spans(spans)
    if not call.exact or (track.is_full(x.shape)):
        return call.run(), after
    mask = track.mask(x)
    y = call.run(cleared(x, mask) if beyond == 0 else torch.where(mask, x, beyond))
    if isinstance(y, Tensor):
        return cleared(y, after.mask(y)), after
    return (cleared(y[0], after.mask(y[0])), *y[1:]), after  # the indices stay


def _each(value: Any, rank: int) -> Sequence[Any]:
    """One number for each axis."""
    if isinstance(value, (int, str)):
        return [value] * rank
    return list(value) * rank if len(value) == 1 else list(value)
