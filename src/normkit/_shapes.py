"""Axes of each family, and the error texts about shapes; a leaf that imports torch alone.

The texts are torch's wherever torch has one, so that code which matches on them keeps working.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ._torch import tracing_state

ONE_VALUE = "Expected more than 1 value per channel when training, got input size {}"


def channel_shape(rank: int, channels: int) -> list[int]:
    """The shape that lays (C,) beside an input of shape (N, C, *): (1, C, 1, ...)."""
    return [1, channels, *[1] * (rank - 2)]


def is_channels_last(input: Tensor) -> bool:
    """Whether the channels are innermost in memory."""
    return input.dim() > 2 and not input.is_contiguous() and input.movedim(1, -1).is_contiguous()


def in_order(input: Tensor, channels_last: bool) -> Tensor:
    """The input in that order of memory: as it is, or a copy."""
    if is_channels_last(input) == channels_last:
        return input
    return input.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else input.contiguous()


def batch_dims(rank: int) -> tuple[int, ...]:
    """The axes that batch norm reduces in an input of shape (N, C, *): all but the channel axis."""
    return (0, *range(2, rank))


def values_per_channel(size: Sequence[int]) -> int:
    """How many values each channel of an input (N, C, *) has: N times the positions."""
    return math.prod(size[:1]) * math.prod(size[2:])


def even_sizes(samples: int, slices: int) -> list[int]:
    """How many samples each of so many slices has: near-equal, the longer ones first, as numpy.array_split cuts."""
    size, longer = samples // slices, samples % slices  # not by divmod, which Dynamo of torch 2.4 lacks
    return [size + 1] * longer + [size] * (slices - longer)


def verify_more_than_one_position(size: Sequence[int]) -> None:
    """Raise torch's error when instance norm has one single spatial position."""
    if math.prod(size[2:]) == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {size}")


def verify_eps(eps: float, training: bool) -> None:
    """Raise torch's error for an eps that cannot guard the square root.

    Which that is, and the words, differ from version to version (2.4 takes any): torch itself is asked.
    """
    if eps < 0.0 or (training and eps == 0.0):
        one = torch.ones(1, device="cpu")
        F.batch_norm(one.expand(2, 1), one.clone(), one.clone(), training=training, eps=eps)


def verify_number(function: str, name: str, value: object) -> None:
    """Raise torch's error for an argument that has to be a number and is none."""
    if value is None or isinstance(value, (str, complex)):
        raise TypeError(f"{function}(): argument '{name}' must be float, not {type(value).__name__}")


def verify_num_groups(num_groups: int) -> None:
    """Raise for a number of groups below 1; torch divides by zero, or asks when the layer is called."""
    if num_groups < 1:
        raise ValueError(f"num_groups must be a positive integer, got {num_groups}")


def verify_momentum(function: str, momentum: object) -> None:
    """Raise torch's error for a momentum that is no number: the cumulative average (None) is the layers' alone."""
    if momentum is None or isinstance(momentum, str):
        kind = type(momentum).__name__
        raise TypeError(f"{function}(): argument 'momentum' (position 7) must be float, not {kind}")


def verify_per_channel(channels: int, **tensors: Tensor | None) -> None:
    """Raise torch's error when a per-channel tensor does not have one element per channel."""
    if tracing_state() is not None:
        return  # a trace's sizes are tensors and comparing them warns; the traced operation checks for itself
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != (channels,) and tensor.numel() != channels:
            raise RuntimeError(f"{name} should contain {channels} elements not {tensor.numel()}")


def verify_vectors(**tensors: Tensor | None) -> None:
    """Raise torch's class of error for tensors of one element per channel that have more axes than one, or none."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dim() != 1:
            raise RuntimeError(f"{name} must have the shape ({tensor.numel()},), got {tuple(tensor.shape)}")


def fitting_residual(residual: Tensor | None, input: Tensor) -> Tensor | None:
    """The residual in the input's dtype, whichever kernel adds it; the errors of :func:`verify_residual`."""
    if residual is None:
        return None
    verify_residual(residual, input)
    return residual.to(input.dtype)


def verify_residual(residual: Tensor, input: Tensor) -> None:
    """A residual is added element by element: the input's shape, nothing broadcast."""
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual must be a Tensor of shape {tuple(input.shape)}, got {type(residual).__name__}")
    if residual.shape != input.shape:
        raise ValueError(
            f"residual must have the input's shape {tuple(input.shape)}, got {tuple(residual.shape)}: "
            "it is added element by element; expand it first if a broadcast is meant"
        )
    if not residual.is_floating_point():
        raise TypeError(f"residual must be floating point like the input ({input.dtype}), got {residual.dtype}")


def expand_mask(mask: Tensor, input: Tensor) -> Tensor:
    """A mask as bool of the input's rank: (N, *spatial) gets a channel axis; broadcastable sizes are kept.

    Raises:
        TypeError: the mask is not a bool tensor.
        ValueError: its shape fits neither (N, *spatial) nor the input's rank.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor (True = a real value), got {what}: use mask.bool()")
    shape = input.shape
    expanded = mask.unsqueeze(1) if mask.dim() == input.dim() - 1 else mask
    if expanded.dim() == input.dim() and all(a in (1, b) for a, b in zip(expanded.shape, shape, strict=True)):
        return expanded
    spatial = (shape[0], *shape[2:])
    raise ValueError(
        f"mask of shape {tuple(mask.shape)} does not fit an input of shape {tuple(shape)}: "
        f"expected {tuple(spatial)}, or {(shape[0], 1, *shape[2:])} with 1 on the channel axis"
    )


def channel_mask(mask: Tensor, input: Tensor) -> Tensor:
    """A mask for per-channel statistics: as :func:`expand_mask`, with exactly 1 on the channel axis."""
    expanded = expand_mask(mask, input)
    if expanded.shape[1] != 1:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} tells channels apart; expected {(input.shape[0], *input.shape[2:])} or "
            f"{(input.shape[0], 1, *input.shape[2:])}: a position is real or padding for all channels alike"
        )
    return expanded


def optional_channel_mask(mask: Tensor | None, input: Tensor) -> Tensor | None:
    """:func:`channel_mask`, where there is one."""
    return None if mask is None else channel_mask(mask, input)


def leading_mask(mask: Tensor, input: Tensor, axes: int) -> Tensor:
    """A mask of positions, as bool of the input's rank with exactly 1 on each of the last `axes` (normalized) axes.

    Raises:
        TypeError: the mask is not a bool tensor.
        ValueError: it covers normalized axes, or its leading sizes do not fit.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor (True = a real position), got {what}: use mask.bool()")
    leading, ones = tuple(input.shape[: input.dim() - axes]), (1,) * axes
    expanded = mask.reshape(*mask.shape, *ones) if mask.dim() == len(leading) else mask
    fits = expanded.dim() == input.dim() and tuple(expanded.shape[len(leading) :]) == ones
    if fits and all(a in (1, b) for a, b in zip(expanded.shape, leading, strict=False)):
        return expanded
    raise ValueError(
        f"mask of shape {tuple(mask.shape)} does not fit an input of shape {tuple(input.shape)} whose last {axes} axes "
        f"are normalized: expected {leading} or {leading + ones}. A position is real or padding as a whole; to leave "
        "values out of the statistics use batch, group or instance norm"
    )


def verify_normalized_shape(
    input: Tensor, normalized_shape: Sequence[int], torch_norm: Callable[..., Tensor], **tensors: Tensor | None
) -> None:
    """Raise torch's errors unless the input ends in `normalized_shape` and the parameters have it.

    torch_norm: the function of torch.nn.functional whose words they are.
    """
    shape = list(normalized_shape)
    if not shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            f"normalized_shape = {shape}"
        )
    for name, tensor in tensors.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(tensor.shape)} and normalized_shape = {shape}"
            )
    if list(input.shape[max(input.dim() - len(shape), 0) :]) != shape:
        pattern = _pattern(torch_norm)
        raise RuntimeError(
            f"Given normalized_shape={shape}, expected input with shape {pattern.format(', '.join(map(str, shape)))}, "
            f"but got input of size{list(input.shape)}"
        )


@cache
def _pattern(torch_norm: Callable[..., Tensor]) -> str:
    """How torch writes an expected shape around its sizes: its norms differ by a comma, and from version to version."""
    try:
        torch_norm(torch.ones(1, device="cpu"), [2])
    except RuntimeError as error:
        return "[*, {}]" if "[*, 2]" in str(error) else "[*{}]"
    return "[*, {}]"
