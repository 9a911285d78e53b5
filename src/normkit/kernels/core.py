"""Loads the native core: the only importer of normkit._native.

Threads are torch's own: libtorch exports `torch_parallel_for` as a C symbol, and the kernels call it by its address.
"""

from __future__ import annotations

import ctypes
import glob
import importlib
import os
import warnings
from types import ModuleType

import torch

from . import memory

_INTERFACE = 5  # native/bind.cpp holds the same number


def load() -> tuple[ModuleType | None, str | None]:
    """The core, ready to be called; or None, and why."""
    try:
        core = importlib.import_module("normkit._native")
    except ImportError as error:
        return None, f"the native core is not built ({error}); reinstall normkit where a C++ compiler is found"
    if getattr(core, "INTERFACE", None) != _INTERFACE:
        return None, "the native core is of another version of normkit than its Python code; reinstall normkit"
    core.set_torch(torch)
    core.set_parallel(torch_parallel_for())
    core.keep_memory(memory.to_keep())
    if core.isa_problem():
        warnings.warn(f"{core.isa_problem()}; using {core.isa()}", RuntimeWarning, stacklevel=2)
    return core, None


def torch_parallel_for() -> int:
    """The address of libtorch's parallel loop, 0 where it cannot be found."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "*torch_cpu.*")):
        try:
            function = ctypes.CDLL(path).torch_parallel_for
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


core, problem = load()
