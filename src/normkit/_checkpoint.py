"""Checkpoints as files: what is in them, without running what is in them.

Rules: `.pt` and the like are read with weights_only=True, always; `.safetensors` by their header. A mapping with
tensors under names is a state dict; several in one file are copies (the model, its EMA), told by their place.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _safetensors
from ._files import reason
from ._reading import open_plain
from .errors import UsageError

LARGEST = 1 << 40  # bytes of a checkpoint
DEEPEST = 4  # mappings inside of mappings
EXTRA_STATE = "_extra_state"  # the last part of its key in a state dict
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".th")


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds. UsageError, in one line: not there, no checkpoint, truncated, or it needs code."""
    try:
        with open_plain(path, LARGEST) as file:
            found = _safetensors.read(file) if path.suffix == ".safetensors" else _torch(file)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {reason(error)}") from None
    except ValueError as error:
        raise UsageError(f"{path} is no checkpoint that can be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, Mapping):
        raise UsageError(f"{path} holds a {type(found).__name__}, expected a state dict or a mapping that holds one")
    return dict(found)


def state_dicts(
    content: Mapping[Any, Any], place: str = "", depth: int = 0, extra: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, tensors by name) of each state dict in a mapping, itself among them.

    extra: with what modules add to their state that is no tensor (``get_extra_state``).
    """
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    state = {k: v for k, v in named.items() if isinstance(v, Tensor) or (extra and k.endswith(EXTRA_STATE))}
    if any(isinstance(value, Tensor) for value in state.values()):
        yield place, state
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str) and depth < DEEPEST:
            yield from state_dicts(value, f"{place}.{key}".lstrip("."), depth + 1, extra)


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
