"""A .caffemodel made by hand: the protocol buffer's wire format, written from its specification."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, *, legacy: bool = False, double: bool = False, packed: bool = True) -> bytes:
    """legacy: the four sizes num, channels, height, width of old files in place of a shape."""
    array = np.asarray(array)
    if legacy:
        sizes = (1, 1, 1, array.size)
        shape = b"".join(varint(number << 3) + varint(size) for number, size in enumerate(sizes, 1))
    else:
        shape = field(7, field(1, b"".join(varint(size) for size in array.shape)))
    if double:
        return shape + field(8, array.astype("<f8").tobytes())
    if packed:
        return shape + field(5, array.astype("<f4").tobytes())
    return shape + b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in array.ravel())


def layer(
    name: str, kind: str, bottom: Sequence[str], top: Sequence[str], blobs: Sequence[bytes] = (), extra: bytes = b""
) -> bytes:
    parts = [field(1, name.encode()), field(2, kind.encode())]
    parts += [field(3, text.encode()) for text in bottom] + [field(4, text.encode()) for text in top]
    parts += [field(7, content) for content in blobs]
    parts.append(varint(10 << 3) + varint(1))  # phase: TEST
    return field(100, b"".join(parts) + extra)


def batch_norm_param(eps: float, fraction: float) -> bytes:
    content = varint(1 << 3) + varint(1)  # use_global_stats
    content += varint(2 << 3 | 5) + struct.pack("<f", fraction) + varint(3 << 3 | 5) + struct.pack("<f", eps)
    return field(139, content)


def write(path: Path, layers: Sequence[bytes]) -> Path:
    path.write_bytes(field(1, b"net") + b"".join(layers))
    return path
