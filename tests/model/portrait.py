"""What surgery and statistics must give back, in a form that can be compared: `portrait` and `differences`."""

from __future__ import annotations

import random
import signal
from collections import deque
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from normkit import _torch

Portrait = dict[str, Any]


def portrait(model: nn.Module) -> Portrait:
    """place -> what is there: of the modules, their attributes, their tensors, and of what surrounds the model.

    Held objects are compared by identity, so the portrait holds them.
    """
    found: Portrait = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[f"{name}: module"] = (_Same(module), type(module))
        for key, value in module.__dict__.items():
            found[f"{name}.{key}"] = _described(value)
        found[f"{name}: order"] = [list(module._parameters), list(module._buffers), list(module._modules)]
    return found | surroundings()


def surroundings() -> Portrait:
    return {
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": str(numpy.random.get_state()[1:3]) + numpy.random.get_state()[1].tobytes().hex(),
        "gradient mode": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "saved tensors hooks": _torch.saved_tensors_hooks_top(),
        "the handler of SIGINT": _Same(signal.getsignal(signal.SIGINT)),
        "autograd functions": _Same(torch.autograd.Function.__dict__["apply"]),
    }


def differences(before: Portrait, after: Portrait) -> list[str]:
    """The places that differ."""
    return [key for key in {**before, **after} if key not in before or key not in after or before[key] != after[key]]


class _Same:
    """Equal to the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"<{self.value!r}>"


def _described(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        grad = value.grad if value.is_leaf else None
        return (
            _Same(value),
            value.data_ptr(),
            value.dtype,
            value.requires_grad,
            _bytes(value),
            _Same(grad),
            _bytes(grad),
        )
    if depth < 3 and isinstance(value, dict):
        return _Same(value), [(key, _described(part, depth + 1)) for key, part in value.items()]
    if depth < 3 and isinstance(value, (list, tuple, set, deque)):
        return type(value), [_described(part, depth + 1) for part in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else _Same(value)


def _bytes(tensor: Tensor | None) -> bytes | None:
    if tensor is None:
        return None
    return tensor.detach().clone().contiguous().flatten().view(torch.uint8).numpy().tobytes()
