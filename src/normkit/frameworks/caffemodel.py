"""The layers of a .caffemodel, read without Caffe: the part of its protocol buffers that norms need.

Rules: nothing in the file is run; every length is checked against the bytes that are there. Field numbers are those of
Caffe's caffe.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._reading import open_plain

LARGEST = 1 << 34  # bytes of a file
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LAYER, _OLD_LAYER = 100, 2  # of NetParameter
_NAME, _TYPE, _BOTTOM, _TOP, _BLOBS, _BATCH_NORM = 1, 2, 3, 4, 7, 139  # of LayerParameter
_FRACTION, _EPS = 2, 3  # of BatchNormParameter
_DATA, _DOUBLE_DATA = 5, 8  # of BlobProto


@dataclass
class Layer:
    """name, type, and the names of what it reads (bottom) and writes (top). blobs: its arrays, flat, not yet read."""

    name: str = ""
    type: str = ""
    bottom: list[str] = field(default_factory=list)
    top: list[str] = field(default_factory=list)
    blobs: list[memoryview] = field(default_factory=list)
    eps: float | None = None
    fraction: float | None = None

    def arrays(self) -> list[Tensor]:
        """Each blob's numbers, (values,) float64."""
        return [_numbers(blob) for blob in self.blobs]


def layers_of(path: Path) -> list[Layer]:
    """All layers, in order. OSError, or ValueError: not such a file, truncated, or of Caffe's oldest format."""
    with open_plain(path, LARGEST) as file:
        net = memoryview(file.read())
    found, old = [], False
    for number, value in _fields(net):
        if number == _LAYER and isinstance(value, memoryview):
            found.append(_layer(value))
        old = old or number == _OLD_LAYER
    if not found:
        raise ValueError(
            "it is of Caffe's first format, which has no BatchNorm: Caffe's upgrade_net_proto_binary rewrites it"
            if old
            else "expected a .caffemodel with layers, found none"
        )
    return found


def _layer(message: memoryview) -> Layer:
    layer = Layer()
    for number, value in _fields(message):
        if not isinstance(value, memoryview):
            continue
        if number == _NAME:
            layer.name = _text(value)
        elif number == _TYPE:
            layer.type = _text(value)
        elif number in (_BOTTOM, _TOP):
            (layer.bottom if number == _BOTTOM else layer.top).append(_text(value))
        elif number == _BLOBS:
            layer.blobs.append(value)
        elif number == _BATCH_NORM:
            settings = dict(_fields(value))
            layer.eps, layer.fraction = _float(settings.get(_EPS)), _float(settings.get(_FRACTION))
    return layer


def _numbers(blob: memoryview) -> Tensor:
    parts = []
    for number, value in _fields(blob):
        if number in (_DATA, _DOUBLE_DATA):
            raw = bytes(value) if isinstance(value, (memoryview, bytes)) else b""
            dtype = torch.float32 if number == _DATA else torch.float64
            if len(raw) % dtype.itemsize:
                raise ValueError("truncated in a blob")
            if raw:
                parts.append(torch.frombuffer(bytearray(raw), dtype=dtype).double())
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value): an int, the bytes of a fixed number, or a view of what has a length."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"no protocol buffer: a field of kind {kind}")
        if number == 0 or at + length > len(message):
            raise ValueError("truncated, or no protocol buffer")
        view = message[at : at + length]
        yield number, view if kind == _BYTES else bytes(view)
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("truncated, or no protocol buffer")


def _float(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("no protocol buffer of Caffe: eps and moving_average_fraction are floats there")
    return float(struct.unpack("<f", value)[0])


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")
