"""Bits that carry their order of memory, in as many bytes as either order takes.

A norm's bits lie as its input did. Its backward may be given that input in another memory format: hooks on saved
tensors give back what they like (`save_on_cpu(pin_memory=True)` everything row-major), and an activation checkpoint
inside of them calls the function again on it, so that the bits are those of another forward than the one that autograd
recorded. So where hooks are at work, and in compiled graphs, which cannot know, a last byte says which order it is. No
memory format changes the size, which a checkpoint compares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .._torch import without_dispatch_modes


def size(shape: Sequence[int]) -> int:
    """How many bytes bits of this shape take: whole bytes of channels and of positions, and the one that tells.

    shape: (N, C, *), at whose rows or pixels the bytes start anew.
    """
    n, c, *positions = shape
    whole = n * ((c + 7) // 8)
    return (8 * whole * ((math.prod(positions) + 7) // 8) if positions else whole) + 1


def pack(bits: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """The bits of a forward, uint8, with their order."""
    room = bits.new_zeros(size(shape))
    room[: bits.numel()] = bits
    room[-1] = channels_last
    return room


def unpack(room: Tensor, shape: Sequence[int]) -> tuple[Tensor, bool]:
    """(bits, whether channels are last).

    Raises:
        RuntimeError: a hook gave back something else than it was given.
    """
    if room.shape != (size(shape),):
        raise RuntimeError(
            f"bits must be the {size(shape)} bytes of the forward, got {room.numel()}: hooks on saved tensors have to "
            "give back what they were given"
        )
    with without_dispatch_modes():  # one of fake tensors would hide the value
        channels_last = bool(room[-1])
    n, c, *positions = shape
    s = math.prod(positions)
    count = n * s * ((c + 7) // 8) if channels_last or s == 1 else n * c * ((s + 7) // 8)
    return room[:count], channels_last
