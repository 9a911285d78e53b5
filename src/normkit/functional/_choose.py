"""Which kernel computes a norm: one function from the call to (path, reason).

Paths: "native" (the C++ core), "composed" (differentiable torch operations), "aten" (PyTorch's own kernels).
The reasons are for people: `normkit info` prints them and errors quote them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .._activation import Activation
from ..kernels import aten, native

BACKENDS = ("aten", "native", "composed", "triton")

_is_traced_by_dynamo = torch.compiler.is_dynamo_compiling
_peek_transform = torch._C._functorch.peek_interpreter_stack
_count_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
# The norms that the native module serves; ghost and synchronised batch norm and batch renorm by batch norm's kernels.
_NATIVE = frozenset(
    ["batch_norm", "batch_renorm", "ghost_batch_norm", "group_norm", "layer_norm", "rms_norm", "sync_batch_norm"]
)
_NATIVE_MASKED = frozenset({"batch_norm"})  # of these, the ones that take a mask

# The backend asked for by `with normkit.backend(...)`; None = choose. A module global, because Dynamo guards those.
_requested: str | None = None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute every norm inside the `with` block on one path: "aten", "native", "composed" or "triton".

    A norm that cannot run there raises a RuntimeError that says why; nothing falls back silently. The choice holds for
    all threads of the process. Derivatives of a second or higher order always use the composed operations.

    Raises:
        ValueError: an unknown name.
    """
    global _requested
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def choose(
    norm: str, input: Tensor, activation: Activation, mask: Tensor | None, others: tuple[Tensor | None, ...] = ()
) -> tuple[str, str]:
    """The path for one call, and why.

    Args:
        norm: the kernels' name of the norm, such as "batch_norm".
        input: the tensor to normalize.
        activation: what follows the normalization.
        mask: the mask of real values, or None.
        others: residual, parameters and buffers of the call.

    Raises:
        RuntimeError: the backend that was asked for cannot serve this call.
    """
    if _requested is None:
        return _best(norm, input, activation, mask, others)
    if _requested == "composed":
        return "composed", "asked for"
    why_not = {"native": why_not_native, "aten": why_not_aten, "triton": _why_not_triton}[_requested](
        norm, input, activation, mask, others
    )
    if why_not is not None:
        raise RuntimeError(f"backend {_requested!r} was asked for and cannot serve this call: {why_not}")
    return _requested, "asked for"


def _best(
    norm: str, input: Tensor, activation: Activation, mask: Tensor | None, others: tuple[Tensor | None, ...]
) -> tuple[str, str]:
    if is_exporting():
        # exported programs must not need normkit
        return ("aten", "export") if mask is None else ("composed", "export of a masked norm")
    why_not = why_not_native(norm, input, activation, mask, others)
    if why_not is None:
        return "native", "all conditions hold"
    if input.device.type == "cuda" and why_not_aten(norm, input, activation, mask, others) is None:
        return "aten", "PyTorch's own kernels serve CUDA"
    return "composed", why_not


def is_exporting() -> bool:
    """Whether a program is being captured that must not need normkit: torch.export, ONNX or jit tracing."""
    return torch.compiler.is_exporting() or _tracing_state() is not None


def is_eager() -> bool:
    """Whether the call is an ordinary one: no other path asked for, nothing that captures or transforms it."""
    return (
        (_requested is None or _requested == "native")
        and not _is_traced_by_dynamo()
        and not _count_modes()
        and _peek_transform() is None
        and forward_ad._current_level < 0
        and _tracing_state() is None
    )


def is_transformed() -> bool:
    """Whether a torch.func transform or a forward-mode level is active."""
    return _peek_transform() is not None or forward_ad._current_level >= 0


def why_not_native(
    norm: str, input: Tensor, activation: Activation, mask: Tensor | None, others: tuple[Tensor | None, ...]
) -> str | None:
    """The first condition that keeps the native kernels from this call, or None.

    Every eager call passes here: each condition is one cheap look, and the text is made only when it fails.
    """
    if type(input) is not Tensor and type(input) is not Parameter:
        return f"{type(input).__name__} is a tensor subclass"
    if not input.is_cpu:
        return f"the tensor is on {input.device.type}, the native kernels are for the CPU"
    if not native.supports_dtype(input.dtype):
        return native.why_not() or f"no native kernel for {input.dtype}"
    if norm not in _NATIVE:
        return f"no native kernel for {norm}"
    if mask is not None and (norm not in _NATIVE_MASKED or torch.compiler.is_compiling()):
        return "a mask is given"
    if torch.compiler.is_compiling():
        return _why_not_opaque(others)
    if _count_modes():
        return "a torch-dispatch mode is active (fake tensors have no memory)"
    if _peek_transform() is not None or forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode level is active"
    if _tracing_state() is not None:
        return "the call is being traced"
    if input.layout is not torch.strided:
        return f"the layout is {input.layout}"
    for tensor in (mask, *others):
        if tensor is not None and ((type(tensor) is not Tensor and type(tensor) is not Parameter) or not tensor.is_cpu):
            return "a parameter, buffer, residual or mask is not a plain CPU tensor"
    return None


def _why_not_opaque(others: tuple[Tensor | None, ...]) -> str | None:
    """Under torch.compile the native kernels are opaque operators, which torch.func transforms cannot see into."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active in the compiled function"
    for tensor in others:
        if tensor is not None and not tensor.is_cpu:
            return "a parameter, buffer or residual is not on the CPU"
    return None


def why_not_aten(
    norm: str, input: Tensor, activation: Activation, mask: Tensor | None, others: tuple[Tensor | None, ...]
) -> str | None:
    """The first condition that keeps PyTorch's kernels from this call, or None."""
    if not hasattr(aten, f"{norm}_forward"):
        return f"no wrapper of PyTorch's kernel for {norm}"
    if mask is not None:
        return "PyTorch's norms take no mask"
    if _peek_transform() is not None:
        return "a torch.func transform is active, and PyTorch's batch norm moves statistics in place"
    return None


def _why_not_triton(
    norm: str, input: Tensor, activation: Activation, mask: Tensor | None, others: tuple[Tensor | None, ...]
) -> str | None:
    return "no Triton kernels are installed"


__all__ = ["BACKENDS", "backend", "choose"]
