"""Loads the native core: the only importer of normkit._native.

Whatever keeps the core from being used (not built, broken, of another version, a torch that it does not know) is a
reason that `problem` tells, never an exception of `import normkit`; the main process says it in one line, unless
NORMKIT_NO_NATIVE says that it is wanted so. Threads are torch's own: libtorch exports
`torch_parallel_for` as a C symbol, and the kernels call it by its address. That and the table of functions that read
tensors are there since torch 2.10; `older_torch` makes both for the versions before.
"""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import torch

from .. import _environment, _torch
from . import memory, older_torch, storages

__all__ = ["core", "is_recomputation", "load", "parallel_loop", "problem"]

_INTERFACE = 12  # native/bind.cpp holds the same number
_NOT_WANTED = "NORMKIT_NO_NATIVE"


def is_recomputation() -> bool:
    """Whether this forward runs inside a backward, as an activation checkpoint's recomputation does."""
    return _torch.graph_task_id() != -1


def at_import() -> tuple[ModuleType | None, str | None]:
    """The core or why there is none, which the program's main process is told; unless the environment asks for none."""
    if _environment.switched_on(_NOT_WANTED):
        return None, f"{_NOT_WANTED} asks for none"
    core, problem = load()
    if core is None and torch.multiprocessing.current_process().name == "MainProcess":
        _environment.tell(f"slower, on PyTorch's operations: {problem}; {_NOT_WANTED}=1 says that this is wanted")
    return core, problem


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
    if not core.isa():
        return None, f"the native core does not run here: {core.isa_problem()}; reinstall normkit on this machine"
    try:
        core.set_torch(_names(core))
        core.set_parallel(parallel_loop(core))
    except Exception as error:
        return None, f"the native core does not know this torch, {torch.__version__} ({_text(error)}); update normkit"
    core.keep_memory(memory.to_keep())
    _choose_isa(core, _environment.asked("NORMKIT_ISA") or "")
    return core, None


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _choose_isa(core: ModuleType, name: str) -> None:
    """Use the instruction set that NORMKIT_ISA names; "": the widest, which is in use already."""
    printable = name if name.isascii() and name.isprintable() else ascii(name)
    if name and not core.use_isa(printable):
        _environment.tell(f"NORMKIT_ISA={printable}: {core.isa_problem()}; using {core.isa()}")


def parallel_loop(core: ModuleType) -> int:
    """The address of libtorch's parallel loop, or of one over its threads; 0 where there is neither: one thread."""
    found = older_torch.addresses(older_torch.library(), ["torch_parallel_for"])
    return older_torch.loop(core) if found is None else found["torch_parallel_for"]


def _names(core: ModuleType) -> SimpleNamespace:
    """What the core needs of torch, by the names that native/torch.h asks for."""
    return SimpleNamespace(
        exchange=older_torch.table(core) if _torch.exchange_table is None else _torch.exchange_table,
        tensor=torch.Tensor,
        parameter=torch.nn.Parameter,
        empty_like=torch.empty_like,
        uint8=torch.uint8,
        float64=torch.float64,
        increment_versions=_torch.increment_versions,
        is_recomputation=is_recomputation,
        is_zerotensor=_torch.is_zerotensor,
        count_modes=_torch.count_dispatch_modes,
        storages=storages.shim(),
    )


if TYPE_CHECKING:
    from normkit import _native as core  # typed by _native.pyi; None where `problem` says why

    problem: str | None
else:
    core, problem = at_import()
