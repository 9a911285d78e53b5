"""Where a mask comes from: `mask_from_lengths`, or a block of `normkit.lengths` around a norm's call.

Rule of the second: the road asks before it does anything else, and pays one comparison where there is no block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._operands import Operands
from .choose import may_look
from .spec import NormSpec

# While some thread is in a block. The output of a norm's call under the mask that fits its input; None: this thread is
# in no block, or the call is one of those that it makes itself.
follow: Callable[[NormSpec, Operands], Tensor | None] | None = None
# The mask that fits an input (N, C, *), bool (N, 1, *), or None where no padding of it is known.
find: Callable[[Tensor], Tensor | None] | None = None


def known_mask(input: Tensor) -> Tensor | None:
    """The mask that a surrounding block knows for an input (N, C, *)."""
    return None if find is None else find(input)


def mask_from_lengths(lengths: Tensor | Sequence[int], max_length: int | None = None) -> Tensor:
    r"""The mask of padded sequences: position t of sequence n is real where t < lengths[n].

    .. math:: \mathrm{mask}_{n,t} = [\,t < \mathrm{length}_n\,]

    Args:
        lengths: (N,), integers of 0 or more: how many real positions each sequence has, counted from the start.
        max_length: L, the padded length; None: the longest of `lengths` (reads it, so a GPU waits for the host).

    Returns:
        bool (N, L) on `lengths`' device, True = a real value: the `mask` of any norm over an input (N, C, L).

    Raises:
        TypeError: lengths are not integers.
        ValueError: lengths are not one number a sequence, or lie outside 0..L (checked on the CPU alone).

    Example:
        >>> bn(x, mask=normkit.mask_from_lengths(lengths, x.shape[-1]))
    """
    lengths = whole_numbers(torch.as_tensor(lengths), "sequence")
    if max_length is None:
        max_length = int(lengths.max()) if lengths.numel() else 0
    if may_look(lengths):
        _verify_range(lengths, max_length)
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def whole_numbers(lengths: Tensor, each: str) -> Tensor:
    """Lengths, one for each of what `each` names, if they are integers of shape (N,)."""
    if lengths.numel() == 0:
        lengths = lengths.long()  # an empty list has torch's default dtype
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}: use lengths.long()")
    if lengths.dim() != 1:
        raise ValueError(f"lengths must be one number a {each}, shape (N,), got shape {tuple(lengths.shape)}")
    return lengths


def _verify_range(lengths: Tensor, max_length: int) -> None:
    outside = (lengths < 0) | (lengths > max_length)
    if bool(outside.any()):
        raise ValueError(
            f"every length must lie in 0..{max_length}, got {int(lengths[outside][0])}: a longer sequence does not fit "
            "the padded input; give its padded length as max_length"
        )
