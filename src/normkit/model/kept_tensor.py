"""One tensor as it was: where its memory is, what it holds, and what gradient it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch import PLAIN_TYPES, version_of

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KeptTensor:
    """Memory, version, requires_grad and .grad of a tensor; its values if asked for."""

    def __init__(self, tensor: Tensor, values: bool) -> None:
        self.tensor, self.memory, self.version = tensor, tensor.detach(), version_of(tensor)
        self.nbytes = tensor.untyped_storage().nbytes() if _is_plain(tensor) else 0
        self.requires_grad, self.grad = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
        self.values: Tensor | None = None
        if values:
            self.keep_values()

    def keep_values(self) -> None:
        if self.values is None and not _is_freed(self.tensor):
            self.values = self.memory.clone()

    def give_back(self) -> None:
        tensor = self.tensor
        if self.values is not None and _is_freed(self.memory):
            self.memory.untyped_storage().resize_(self.nbytes)
        if _place(tensor) != _place(self.memory) and not tensor.is_inference():
            tensor.data = self.memory
        if self.values is not None and self._is_written(self.values):
            # .data: graphs that have saved the tensor see what they have saved
            overwrite(tensor if tensor.is_inference() else tensor.data, self.values)
        if tensor.is_leaf and tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad

    def _is_written(self, values: Tensor) -> bool:
        """By the values where they can be read: torch's batch norm moves no version when it moves a buffer."""
        if _is_plain(self.tensor):
            return not _same_bits(self.tensor.detach(), values)
        return self.version < 0 or self.version != version_of(self.tensor)


def overwrite(tensor: Tensor, values: Tensor) -> None:
    """Write values, into one that was made in inference mode too: it takes them in that mode alone."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(values)


def _is_plain(tensor: Tensor) -> bool:
    strided = type(tensor) in PLAIN_TYPES and tensor.layout == torch.strided
    return strided and not tensor.is_meta and not tensor.is_quantized


def _is_freed(tensor: Tensor) -> bool:
    """Whether its memory is elsewhere for the moment, as a sharded model's may be."""
    return _is_plain(tensor) and tensor.numel() > 0 and tensor.untyped_storage().size() == 0


def _place(tensor: Tensor) -> tuple[Any, ...]:
    plain = _is_plain(tensor) and not _is_freed(tensor)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device) if plain else ()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal, NaN and the sign of zero included."""
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    bits = _BITS[a.dtype.itemsize]
    return torch.equal(a.resolve_neg().view(bits), b.resolve_neg().view(bits))
