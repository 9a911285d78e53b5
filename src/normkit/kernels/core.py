"""Loads the native core: the only importer of normkit._native.

Whatever keeps the core from being used (not built, broken, of another version, a torch that it does not know) is a
reason that `problem` tells, never an exception of `import normkit`. Threads are torch's own: libtorch exports
`torch_parallel_for` as a C symbol, and the kernels call it by its address.
"""

from __future__ import annotations

import ctypes
import glob
import importlib
import os
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from .._torch import graph_task_id
from . import memory

__all__ = ["core", "is_recomputation", "load", "problem", "torch_parallel_for"]

_INTERFACE = 6  # native/bind.cpp holds the same number


def is_recomputation() -> bool:
    """Whether this forward runs inside a backward, as an activation checkpoint's recomputation does."""
    return graph_task_id() != -1


def load() -> tuple[ModuleType | None, str | None]:
    """The core, ready to be called; or None, and why."""
    try:
        core = importlib.import_module("normkit._native")
    except ImportError as error:
        return None, f"the native core is not built ({error}); reinstall normkit where a C++ compiler is found"
    except Exception as error:
        return None, f"the native core does not load ({_text(error)}); reinstall normkit"
    if getattr(core, "INTERFACE", None) != _INTERFACE:
        return None, "the native core is of another version of normkit than its Python code; reinstall normkit"
    try:
        core.set_torch(torch, is_recomputation)
        core.set_parallel(torch_parallel_for())
    except Exception as error:
        return None, f"the native core does not know this torch, {torch.__version__} ({_text(error)}); update normkit"
    core.keep_memory(memory.to_keep())
    _choose_isa(core, os.environ.get("NORMKIT_ISA", ""))
    return core, None


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _choose_isa(core: ModuleType, name: str) -> None:
    """Use the instruction set that NORMKIT_ISA names; "": the widest, which is in use already."""
    printable = name if name.isascii() and name.isprintable() else ascii(name)
    if name and not core.use_isa(printable):
        warnings.warn(
            f"NORMKIT_ISA={printable}: {core.isa_problem()}; using {core.isa()}", RuntimeWarning, stacklevel=2
        )


def torch_parallel_for() -> int:
    """The address of libtorch's parallel loop, 0 where it cannot be found."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "*torch_cpu.*")):
        try:
            function = ctypes.CDLL(path).torch_parallel_for
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


if TYPE_CHECKING:
    from normkit import _native as core  # typed by _native.pyi; None where `problem` says why

    problem: str | None
else:
    core, problem = load()
