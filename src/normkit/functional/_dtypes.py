"""Which dtypes go together, with torch's classes and texts for those that do not.

input                 parameters                     running statistics      output
float32, float64      the same                       the same or wider       as the input
float16, bfloat16     the same, or float32           any real                as the input
"""

from __future__ import annotations

import torch
from torch import Tensor

_NAMES = {
    torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16",
    torch.int8: "Char", torch.uint8: "Byte", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long",
    torch.bool: "Bool", torch.complex64: "ComplexFloat", torch.complex128: "ComplexDouble",
    torch.complex32: "ComplexHalf",
}  # fmt: skip
_HALF = (torch.float16, torch.bfloat16)
_NOT_FLOAT = "mixed dtype (CPU): expect parameter to have scalar type of Float (a running statistic is {})"


def verify_statistics(*buffers: Tensor | None) -> None:
    """Raise torch's error for running statistics that are not floating point."""
    for buffer in buffers:
        if buffer is not None and not buffer.is_floating_point():
            raise RuntimeError(_NOT_FLOAT.format(buffer.dtype))


def verify(kernel: str, input: Tensor, *tensors: Tensor | None) -> None:
    """Raise torch's error unless `input` is real floating point and the parameters' dtypes fit it."""
    dtype = input.dtype
    if not input.is_floating_point():
        name = _NAMES.get(dtype, str(dtype))
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{name}'")
    for tensor in tensors:
        if tensor is None or tensor.dtype == dtype or (dtype in _HALF and tensor.dtype == torch.float32):
            continue
        if kernel == "batch_norm" and input.numel() == 0:
            continue  # torch mixes dtypes where there is nothing to compute
        if dtype == torch.float64:
            raise RuntimeError("mixed dtype (CPU): all inputs must share same datatype.")
        expected = _NAMES[torch.float32]
        raise RuntimeError(
            f"mixed dtype (CPU): expect parameter to have scalar type of {expected}"
            f" (the input is {dtype}, a parameter or statistic is {tensor.dtype})"
        )
