"""How far a function of one number moves where its argument is in doubt.

What follows a norm, and the slope of that, rise and fall: from just below its threshold nn.Threshold(0.1, 2) falls from
2 to 0.1 and rises again, hardswish's slope is -1/2 and 3/2 inside of kinks beyond which it is 0 and 1. So beside the
ends of an interval the points count at which a function of the fuzzer's turns or jumps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Kinks of activations; 0.75 and 1.28, where gelu and silu are least, 1.41 and 2.4, where their slopes are steepest.
_TURNS = (0.0, 0.1, 0.5, 0.75, 1.0, 1.28, 1.41, 2.0, 2.4, 3.0, 6.0)
_BESIDE = 1e-9


def change(function: Callable[[Tensor], Tensor], z: Tensor, step: Tensor) -> Tensor:
    """The largest |function(v) - function(z)| of all |v - z| <= step."""
    z, low, high = z.detach(), (z - step).detach(), (z + step).detach()
    at = function(z)
    most = torch.maximum((function(low) - at).abs(), (function(high) - at).abs())
    for turn in sorted({sign * point for point in _TURNS for sign in (-1, 1)}):
        if not bool(((low <= turn) & (turn <= high)).any()):
            continue
        for side in (turn - _BESIDE, turn + _BESIDE):  # what does not reach so far is at one of its ends
            most = torch.maximum(most, (function(torch.maximum(low, high.clamp(max=side))) - at).abs())
    return most
