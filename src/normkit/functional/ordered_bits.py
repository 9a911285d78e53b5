"""Bits that carry their order of memory through hooks on saved tensors.

A norm's bits lie as its input did. What its backward unpacks may come from another forward than the one that autograd
recorded: an activation checkpoint calls the function again, and hooks around it may have given its input back in
another memory format (`save_on_cpu(pin_memory=True)` gives everything back row-major). So where hooks are at work the
order goes through them beside the bits, and both have sizes that no memory format changes: a checkpoint compares them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._torch import without_dispatch_modes

_GIVE_BACK = ": hooks on saved tensors have to give back what they were given"


def pack(bits: Tensor, input: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """(bits with room for either order; int64 (3,) on the CPU: that room, how many of its bytes are bits, whether
    channels are last).

    input: (N, C, *), at whose rows or pixels the bytes start anew.
    """
    n, c = input.shape[:2]
    positions = input.numel() // max(1, n * c)
    room = bits.new_zeros(max(n * c * ((positions + 7) // 8), n * positions * ((c + 7) // 8)))
    room[: bits.numel()] = bits
    return room, torch.tensor([room.numel(), bits.numel(), channels_last], dtype=torch.int64, device="cpu")


def unpack(room: Tensor, order: Tensor) -> tuple[Tensor, bool]:
    """(bits, whether channels are last).

    Raises:
        RuntimeError: a hook gave back something else than it was given.
    """
    if order.shape != (3,):
        raise RuntimeError(f"the order of bits must be the 3 numbers of the forward, got {order.numel()}{_GIVE_BACK}")
    with without_dispatch_modes():  # one of fake tensors would hide the values
        size, count, channels_last = (int(number) for number in order)
    if room.shape != (size,):
        raise RuntimeError(f"bits must be the {size} bytes of the forward, got {room.numel()}{_GIVE_BACK}")
    return room[:count], bool(channels_last)
