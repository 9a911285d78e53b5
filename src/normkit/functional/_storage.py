"""Whether a tensor's values are in memory: torch's operations read freed storage and end the process.

FSDP and offloading free the storage of a tensor (`untyped_storage().resize_(0)`) that is not in use; a tensor that is
read all the same is a mistake of whoever freed it, and gets words. The native core looks for itself (native/edge.h).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._torch import is_zerotensor
from .choose import has_memory, is_plain

_FREED = (
    "The tensor has a non-zero number of elements, but its data is not allocated yet.\nA {} of sizes {}: its storage "
    "was freed (resize_(0), as FSDP and offloading do); it has to be brought back before it is read"
)
_SHORT = (
    "setStorage: sizes {}, strides {}, storage offset {} of a {} require a storage size of {} bytes, but its storage "
    "was resized to {}; it has to be made as large again before it is read"
)


def verify(tensors: Iterable[Tensor | None]) -> None:
    """Raise torch's error for a plain CPU tensor whose storage was freed or is too short; torch looks at others."""
    if not has_memory():
        return
    for tensor in tensors:
        if tensor is None or not is_plain(tensor) or not tensor.is_cpu or tensor.layout is not torch.strided:
            continue
        if not tensor.numel() or is_zerotensor(tensor):
            continue
        held = tensor.untyped_storage().nbytes()
        if held == 0:
            raise RuntimeError(_FREED.format(tensor.dtype, list(tensor.shape)))
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
        if held < needed:
            at = list(tensor.shape), list(tensor.stride()), tensor.storage_offset()
            raise RuntimeError(_SHORT.format(*at, tensor.dtype, needed, held))
