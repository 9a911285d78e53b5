"""What stands around a launch: dense operands, stand-ins for absent ones, the device, and graphs that are captured."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..._activation import IDENTITY
from ..._operands import Gradients, Needs, Operands
from ..._shapes import is_channels_last
from ..._torch import count_dispatch_modes
from . import INTERPRETS


def dense(input: Tensor) -> Tensor:
    """The input as kernels read it: contiguous, or channels last."""
    return input if input.is_contiguous() or is_channels_last(input) else input.contiguous()


def beside(tensor: Tensor | None, input: Tensor) -> Tensor:
    """A tensor of the input's shape in its order of memory; for None the input itself, which nobody reads as such."""
    if tensor is None:
        return input
    if input.is_contiguous():
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def vector(parameter: Tensor | None, input: Tensor) -> Tensor:
    """A parameter (C,), contiguous; for None the input, which nobody reads as such."""
    return input if parameter is None else parameter.contiguous()


def positions(mask: Tensor | None, input: Tensor) -> Tensor:
    """A mask (N, 1, *) as bytes (N, S) in row-major order; for None the input, which nobody reads as such.

    Compilers hold a bool in a bit, which they cannot read as another type: in a graph it is converted.
    """
    if mask is None:
        return input
    each = mask.expand(input.shape[0], 1, *input.shape[2:]).contiguous()
    return each.to(torch.uint8) if is_traced() else each.view(torch.uint8)


def is_traced() -> bool:
    """Whether kernels become nodes of a graph: then they are wrapped, which costs too much in every eager call."""
    return count_dispatch_modes() > 0


def has_memory() -> bool:
    """Whether there is something to compute: the interpreter cannot be traced, and needs only shapes there."""
    return not (INTERPRETS and is_traced())


def on_device(input: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device, which need not be the tensors'."""
    return torch.cuda.device(input.device) if input.is_cuda and not is_traced() else nullcontext()


def compiled_for(operands: Operands, code: int) -> dict[str, Any]:
    """What a kernel is compiled for: its activation, and which operands there are."""
    return {
        "CODE": code, "HAS_WEIGHT": operands.weight is not None, "HAS_BIAS": operands.bias is not None,
        "HAS_RESIDUAL": operands.residual is not None, "MASKED": operands.mask is not None,
    }  # fmt: skip


def empty_gradients(operands: Operands, x: Tensor, code: int, needs: Needs) -> Gradients:
    """The gradients that are wanted, to be written; those of parameters are 0 where there are no values, and else not
    filled first, which would be a launch for each. x: the dense input.

    Without the residual's where there is neither activation nor mask: see `with_residual`.
    """
    _, weight, bias, _, mask, *_ = operands
    vector_like = torch.empty_like if x.numel() else torch.zeros_like
    return Gradients(
        torch.empty_like(x) if needs.input else None,
        vector_like(weight) if needs.weight and weight is not None else None,
        vector_like(bias) if needs.bias and bias is not None else None,
        torch.empty_like(x) if needs.residual and (code != IDENTITY or mask is not None) else None,
    )


def with_residual(found: Gradients, dy: Tensor, operands: Operands, code: int, needs: Needs) -> Gradients:
    """Behind no activation the residual's gradient is dy itself; under a mask the kernels have cleared it."""
    through = needs.residual and code == IDENTITY and operands.mask is None
    return found._replace(residual=dy) if through else found
