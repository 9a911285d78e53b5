"""What surrounds a run and is no part of the model: random numbers, gradient mode, autocast, modes, the compiler."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from .._torch import (
    count_dispatch_modes,
    count_function_modes,
    dispatch_mode_at,
    is_dynamo_loaded,
    pop_function_mode,
    run_compiled_eagerly,
)

P = ParamSpec("P")
R = TypeVar("R")
_AUTOCAST = ("cpu", "cuda")  # whose autocast a forward may turn on or off


class RandomStates:
    """Where the random numbers of torch (the CPU, the CUDA devices given), Python and NumPy stand."""

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices if device.type == "cuda"]
        self._python = random.getstate()
        self._numpy = _numpy_state()

    def give_back(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy.random"].set_state(self._numpy)


def drawn_outside_torch() -> tuple[Any, ...]:
    """Where the random numbers of Python and NumPy stand, in a form that can be compared."""
    numpy = _numpy_state()
    return random.getstate(), None if numpy is None else repr(_plain(numpy))


def _numpy_state() -> dict[str, Any] | None:
    """None where NumPy is not loaded: nothing can have drawn from it."""
    numpy = sys.modules.get("numpy.random")
    return None if numpy is None else numpy.get_state(legacy=False)


def _plain(state: Any) -> Any:
    """A bit generator's state with arrays as bytes: their repr is abridged."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state


def outside_of_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """The function where tensors are made that can be trained: what changes a model gives one for every use."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            return function(*args, **kwargs)

    return called


class Switches:
    """Gradient mode, autocast, torch function and dispatch modes, and the stance of the compiler, in this thread."""

    def __init__(self) -> None:
        self._gradients = torch.is_grad_enabled()
        self._autocast = [(kind, torch.is_autocast_enabled(kind)) for kind in _AUTOCAST]
        self._modes = count_function_modes(), count_dispatch_modes()
        self._eager: Any = None

    def run_eagerly(self) -> None:
        """Compiled parts run as they are written; without loading Dynamo, where nothing has yet."""
        if is_dynamo_loaded():
            self._eager = run_compiled_eagerly()

    def give_back(self) -> None:
        functions, dispatches = self._modes
        while count_function_modes() > functions:
            pop_function_mode()
        while (depth := count_dispatch_modes()) > dispatches:
            dispatch_mode_at(depth - 1).__exit__(None, None, None)
        if self._eager is not None:
            self._eager.__exit__(None, None, None)
        for kind, enabled in self._autocast:
            set_autocast(kind, enabled)
        torch.set_grad_enabled(self._gradients)


def set_autocast(kind: str, enabled: bool) -> None:
    if torch.is_autocast_enabled(kind) != enabled:
        torch.set_autocast_enabled(kind, enabled)


def set_autocasts(enabled: bool) -> None:
    for kind in _AUTOCAST:
        set_autocast(kind, enabled)


def autocasts() -> list[tuple[bool, torch.dtype]]:
    """(on, dtype) of each device's autocast."""
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _AUTOCAST]
