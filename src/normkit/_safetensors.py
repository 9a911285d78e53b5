"""The safetensors format, read and written: a header in JSON, then the numbers. Nothing in such a file is code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from ._reading import parse

HEADER = 100 << 20  # bytes of a header, as the format's authors bound it
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def read(file: IO[bytes]) -> dict[str, Tensor]:
    """The tensors by name. ValueError: truncated, or not such a file."""
    size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= HEADER:
        raise ValueError(f"expected a safetensors header of at most {HEADER:,} bytes, found one of {size:,}")
    raw = file.read(size)
    if len(raw) < size:
        raise ValueError("truncated in its header")
    header = parse(raw.decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("expected an object as header")
    data = file.read()
    return {name: _tensor(name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def written(tensors: Mapping[str, Tensor]) -> bytes:
    """The file that holds these tensors. ValueError for a dtype that the format does not have."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"safetensors has no {tensor.dtype}, which {name} is: write a .pt file")
        flat = tensor.detach().to("cpu").contiguous().flatten()
        part = _bytes(flat)
        begin, end = end, end + len(part)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _bytes(flat: Tensor) -> bytes:
    """Its memory; without NumPy, which PyTorch does not need."""
    held = bytearray(flat.numel() * flat.element_size())
    if held:
        torch.frombuffer(held, dtype=torch.uint8).copy_(flat.view(torch.uint8))
    return bytes(held)


def _tensor(name: str, entry: Any, data: bytes) -> Tensor:
    try:
        dtype, shape, (begin, end) = (
            _TYPES[entry["dtype"]],
            [int(size) for size in entry["shape"]],
            entry["data_offsets"],
        )
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"the entry of {name!r} is {json.dumps(entry)[:80]}: no tensor that is known") from None
    count = math.prod(shape)
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data) or end - begin != count * dtype.itemsize:
        raise ValueError(f"truncated: {name!r} lies at bytes {begin} to {end} of {len(data)}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(shape)
