"""What surrounds a norm's call and knows its mask: `normkit.lengths`, while some thread is inside of such a block.

Rule: the road asks before it does anything else, and pays one comparison where there is no block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from .._operands import Operands

if TYPE_CHECKING:
    from .spec import NormSpec

# The output of a norm's call under the mask that fits its input; None: this thread is in no block, or the call is one
# of those that it makes itself.
follow: Callable[[NormSpec, Operands], Tensor | None] | None = None
# The mask that fits an input (N, C, *), bool (N, 1, *), or None where no padding of it is known.
find: Callable[[Tensor], Tensor | None] | None = None


def mask_of(input: Tensor) -> Tensor | None:
    """The mask that a surrounding block knows for an input (N, C, *)."""
    return None if find is None else find(input)
