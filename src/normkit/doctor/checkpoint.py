"""Checkpoints as files: what is in them, without running what is in them.

Rules: `.pt` and the like are read with weights_only=True, always; `.safetensors` by their header. A mapping with
tensors under names is a state dict; several in one file are copies (the model, its EMA), told by their place.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import reason
from .._reading import open_plain, parse
from ..errors import UsageError
from .state import NormState, State, of_tensors

LARGEST = 1 << 40  # bytes of a checkpoint
HEADER = 100 << 20  # bytes of a safetensors header, as its authors bound it
DEEPEST = 4  # mappings inside of mappings
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".th")
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NORM_NAME = re.compile(r"(norm|bn|ln)_?\d*$", re.IGNORECASE)


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds. UsageError, in one line: not there, no checkpoint, truncated, or it needs code."""
    try:
        with open_plain(path, LARGEST) as file:
            found = _safetensors(file) if path.suffix == ".safetensors" else _torch(file)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {reason(error)}") from None
    except ValueError as error:
        raise UsageError(f"{path} is no checkpoint that can be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, Mapping):
        raise UsageError(f"{path} holds a {type(found).__name__}, expected a state dict or a mapping that holds one")
    return dict(found)


def state_of(content: Mapping[Any, Any]) -> State:
    """The norms of all state dicts in a mapping."""
    states = {
        name: norms for name, tensors in state_dicts(content) if (norms := (*of_tensors(tensors), *_others(tensors)))
    }
    copies = {"" if len(states) == 1 else name: norms for name, norms in states.items()}
    norms = tuple(_in_copy(norm, copy) for copy, found in copies.items() for norm in found)
    return State(norms, "state dict")


def state_dicts(
    content: Mapping[Any, Any], place: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """(place, tensors by name) of each state dict in a mapping, itself among them."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str) and depth < DEEPEST:
            yield from state_dicts(value, f"{place}.{key}".lstrip("."), depth + 1)


def _in_copy(norm: NormState, copy: str) -> NormState:
    return norm if not copy else NormState(**{**norm.__dict__, "copy": copy})


def _others(tensors: Mapping[str, Tensor]) -> Iterator[NormState]:
    """What is called a norm and has one gamma a channel and no statistics."""
    for key, gamma in tensors.items():
        layer, _, name = key.rpartition(".")
        if (
            name == "weight"
            and _NORM_NAME.search(layer)
            and gamma.dim() == 1
            and f"{layer}.running_mean" not in tensors
        ):
            beta = tensors.get(f"{layer}.bias")
            wide = [None if t is None else t.detach().to("cpu", torch.float64) for t in (gamma, beta)]
            yield NormState(layer, "norm", None, weight=wide[0], bias=wide[1], dtypes={"weight": gamma.dtype})


def _torch(file: Any) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL ([\w.]+)", str(error))
        needs = f"it needs the code of {what.group(1)}" if what else "it holds more than tensors"
        raise ValueError(
            f"{needs}, and nothing that is pickled is run here; save the state dict alone: "
            "torch.save(model.state_dict(), path), or give the model as package.module:factory"
        ) from None
    except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, IndexError, AssertionError) as error:
        text = " ".join(str(error).split())[:120]
        raise ValueError(f"truncated, damaged, or of another kind ({type(error).__name__}: {text})") from None


def _safetensors(file: Any) -> dict[str, Tensor]:
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


def _tensor(name: str, entry: Any, data: bytes) -> Tensor:
    try:
        dtype, shape, (begin, end) = (
            _TYPES[entry["dtype"]],
            [int(size) for size in entry["shape"]],
            entry["data_offsets"],
        )
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"the entry of {name!r} is {json.dumps(entry)[:80]}: no tensor that is known") from None
    count = 1
    for size in shape:
        count *= size
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data) or end - begin != count * dtype.itemsize:
        raise ValueError(f"truncated: {name!r} lies at bytes {begin} to {end} of {len(data)}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(shape)
