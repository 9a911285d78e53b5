"""torch 2.4 to 2.9 have no table of DLPack functions and no C symbol of their parallel loop: both from other parts.

Tensors are read through libtorch's C shim (aoti_torch_*), threads are those of the libgomp that libtorch has loaded.
Both are found by name in the loaded library, nothing is linked. What the shim takes is the address of the at::Tensor
inside of the Python object: it is found by the value that it must hold, and proved on tensors of every kind before use.
"""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .. import _torch

_READ = ("dim", "sizes", "strides", "dtype", "device_type")
_LOOP = (
    *("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num"),
    *("_ZN2at15get_num_threadsEv", "_ZN2at18in_parallel_regionEv"),  # at::get_num_threads, at::in_parallel_region
)
_WORD = ctypes.sizeof(ctypes.c_void_p)


def library() -> ctypes.CDLL | None:
    """libtorch's CPU library, which is loaded: symbols are found in it and in what it has loaded itself."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "*torch_cpu.*")):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def table(core: ModuleType) -> Any:
    """The capsule of the table of functions that read and make tensors.

    Raises:
        RuntimeError: this torch shows its tensors in neither way.
    """
    lib = library()
    names = [f"aoti_torch_get_{fact}" for fact in _READ]
    functions = addresses(lib, names)
    if lib is None or functions is None:
        raise RuntimeError("libtorch has neither a table of DLPack functions nor the C shim of its tensors")
    offset = offset_of_tensor()
    prove(lib, offset)
    return core.older_table(functions, offset, Tensor.data_ptr, _torch.from_dlpack)


def loop(core: ModuleType) -> int:
    """The address of a parallel loop over libgomp; 0 where libtorch has other threads."""
    functions = addresses(library(), _LOOP)
    return 0 if functions is None else core.older_loop(functions)


def addresses(lib: ctypes.CDLL | None, names: Iterable[str]) -> dict[str, int] | None:
    """Where functions of the library are; None unless all are there."""
    try:
        return {name: ctypes.cast(getattr(lib, name), ctypes.c_void_p).value or 0 for name in names}
    except AttributeError:
        return None


def offset_of_tensor() -> int:
    """How far into a Python tensor its at::Tensor lies: there is the pointer to the C++ tensor, and nowhere else.

    Raises:
        RuntimeError: there is no such place, or more than one.
    """
    found: set[int] | None = None
    dense = torch.zeros(2, 3, device="cpu")
    for tensor in (dense, nn.Parameter(dense), dense[1:]):
        wanted = _torch.implementation_of(tensor)
        size = type(tensor).__basicsize__ // _WORD * _WORD
        here = {at for at in range(0, size, _WORD) if ctypes.c_void_p.from_address(id(tensor) + at).value == wanted}
        found = here if found is None else found & here
    if found is None or len(found) != 1:
        raise RuntimeError("the at::Tensor inside of a Python tensor is not found")
    return found.pop()


def prove(lib: ctypes.CDLL, offset: int) -> None:
    """Hold what the shim tells of tensors of several kinds to what Python tells.

    Raises:
        RuntimeError: they differ.
    """
    dense = torch.zeros(2, 3, 4, device="cpu")
    for tensor in (
        dense,
        dense.transpose(0, 2),
        nn.Parameter(dense.double()),
        torch.zeros((), device="cpu"),
        dense.bfloat16()[:, 1:],
    ):
        handle = ctypes.c_void_p(id(tensor) + offset)
        rank = ctypes.c_int64()
        sizes, strides = ctypes.POINTER(ctypes.c_int64)(), ctypes.POINTER(ctypes.c_int64)()
        scalar, device = ctypes.c_int32(), ctypes.c_int32()
        for fact, out in zip(_READ, (rank, sizes, strides, scalar, device), strict=True):
            if getattr(lib, f"aoti_torch_get_{fact}")(handle, ctypes.byref(out)) != 0:
                raise RuntimeError(f"libtorch's C shim does not tell {fact}")
        told = [rank.value, sizes[: rank.value], strides[: rank.value], scalar.value, device.value]
        if told != [tensor.dim(), [*tensor.shape], [*tensor.stride()], _SCALARS[tensor.dtype], 0]:
            raise RuntimeError(f"libtorch's C shim tells {told} of a tensor of sizes {[*tensor.shape]}")


_SCALARS = {torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}  # c10::ScalarType, as native/older_torch.h
