"""How large a tensor's storage is, for the native core: torch's table of DLPack functions does not tell it.

A storage may be cut short while a tensor still lies over it (`untyped_storage().resize_`); its address says nothing of
that, and what lies behind it would be read. libtorch's C shim tells sizes of storages in some nanoseconds.
"""

from __future__ import annotations

import ctypes

import torch

from . import older_torch

_FACTS = ("aoti_torch_get_storage_size", "aoti_torch_get_storage_offset")  # in bytes; in elements


def shim() -> dict[str, int] | None:
    """The addresses of the two functions, and `at`: how far into a Python tensor lies the at::Tensor that they take.

    None where this torch does not show them; the core then takes storages to be as large as their tensors.
    """
    lib = older_torch.library()
    functions = older_torch.addresses(lib, _FACTS)
    if lib is None or functions is None:
        return None
    try:
        at = older_torch.offset_of_tensor()
    except RuntimeError:
        return None
    return {**functions, "at": at} if _is_right(lib, at) else None


def _is_right(lib: ctypes.CDLL, at: int) -> bool:
    """Whether the functions tell of tensors what Python tells."""
    whole = torch.zeros(5, 3, device="cpu")
    for tensor in (whole, whole[2:, 1], torch.nn.Parameter(whole.double()), torch.zeros(0, device="cpu")):
        told = []
        for name in _FACTS:
            out = ctypes.c_int64(-1)
            if getattr(lib, name)(ctypes.c_void_p(id(tensor) + at), ctypes.byref(out)) != 0:
                return False
            told.append(out.value)
        if told != [tensor.untyped_storage().nbytes(), tensor.storage_offset()]:
            return False
    return True
