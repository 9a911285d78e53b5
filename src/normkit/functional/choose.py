"""Which path computes a call of a norm: one function, from the call to (path, reason).

    native      the C++ core; one opaque operator in a compiled graph
    triton      Triton's kernels, for CUDA tensors; operators of a compiled graph that the compiler sees into
    aten        PyTorch's own kernels, under the same autograd Function
    composed    differentiable torch operations
    exported    PyTorch's own operation: in a program that must run without normkit; nested, complex, oneDNN's tensors

The reasons are for people: `normkit info` prints them and errors quote them. The road's first look (`is_eager` and the
norm's `in_core`) is the short cut to "native" for the common call; a test holds the two to the same answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _torch
from .._operands import Operands, is_modulated
from .._torch import are_transforms_active, count_dispatch_modes, forward_level, peek_transform, tracing_state
from ..kernels import native, triton
from .spec import NormSpec

T = TypeVar("T")
BACKENDS = ("aten", "native", "composed", "triton")

_is_traced_by_dynamo = torch.compiler.is_dynamo_compiling

# The backend asked for by `with normkit.backend(...)`; None = choose. A module global, because Dynamo guards those.
_requested: str | None = None
_entered: list[list[str]] = []  # what each block asks for, in their order
_changing = threading.RLock()  # a signal's handler may enter a block in the midst of this thread's


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute every norm inside the `with` block on one path: "aten", "native", "composed" or "triton".

    A norm that cannot run there raises a RuntimeError that says why; nothing falls back silently. The choice holds for
    all threads of the process. Derivatives of a second or higher order always use the composed operations. Enter it
    inside of a function under an activation checkpoint, not around: the recomputation has to take the same path.

    Raises:
        ValueError: an unknown name.
    """
    global _requested
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    own = [name]
    try:
        with changing():
            _entered.append(own)
            _requested = name
        yield
    finally:
        with changing():
            _requested = leave(own, _entered)


def changing() -> AbstractContextManager[Any]:
    """Around what a thread does to enter or leave a block: no other thread does so meanwhile.

    Nothing in a program that is compiled, which knows no locks.
    """
    return nullcontext() if torch.compiler.is_compiling() else _changing


def leave(own: list[T], entered: list[list[T]]) -> T | None:
    """What holds after a block: what the latest that is entered asks for, not what held before. Blocks of several
    threads end in any order.

    entered: a list of its own for each block, which this one is taken out of, if it is there. Asked for while
    `changing`.
    """
    entered[:] = [other for other in entered if other is not own]
    return entered[-1][0] if entered else None


def choose(norm: NormSpec, operands: Operands) -> tuple[str, str]:
    """The path for one call, and why.

    Args:
        norm: the call but for its tensors.
        operands: its tensors, verified.

    Raises:
        RuntimeError: the backend that was asked for cannot serve this call.
    """
    if _requested is None:
        return _best(norm, operands)
    if _requested == "composed":
        return "composed", "asked for"
    path = "exported" if _requested == "aten" and _is_captured() else _requested
    why_not = _WHY_NOT[path](norm, operands)
    if why_not is not None:
        raise RuntimeError(f"backend {_requested!r} was asked for and cannot serve this call: {why_not}")
    return path, "asked for"


def _best(norm: NormSpec, operands: Operands) -> tuple[str, str]:
    if is_exporting():
        why_not = why_not_exported(norm, operands)
        return ("exported", "programs must run without normkit") if why_not is None else ("composed", why_not)
    if operands.input.is_nested or operands.input.is_complex() or operands.input.is_mkldnn:
        why_not = why_not_exported(norm, operands)
        reason = "nested, complex or oneDNN's layout: PyTorch's own operation"
        return ("exported", reason) if why_not is None else ("composed", why_not)
    why_not = why_not_native(norm, operands)
    if why_not is None:
        how = "as one operator of the compiled graph" if torch.compiler.is_compiling() else "as it is"
        return "native", f"{how}, {_modulated(norm, operands)}" if is_modulated(operands) else how
    if operands.input.device.type != "cuda":
        return "composed", why_not
    small = triton.is_small(operands.input) and why_not_aten(norm, operands) is None
    if torch.version.hip is None and not small and why_not_triton(norm, operands) is None:  # not tried on ROCm
        return "triton", "Triton's kernels serve CUDA"
    if why_not_aten(norm, operands) is None:
        if torch.compiler.is_compiling() and why_not_exported(norm, operands) is None:
            return "exported", "PyTorch's own operation is left to the compiler on CUDA"
        if not torch.compiler.is_compiling():
            return "aten", "PyTorch's own kernels serve CUDA" + (", faster on so few bytes" if small else "")
    return "composed", why_not


def _modulated(norm: NormSpec, operands: Operands) -> str:
    """What becomes of a modulation on the native kernels."""
    why_not = norm.why_not_affine(operands)
    if why_not is None:
        return "the modulation as weight and bias"
    input, *_, scale, shift = operands
    if scale is not None and shift is not None and scale.shape == shift.shape == input.shape:
        why_not = norm.why_not_elements(operands)
        if why_not is None:
            return "the modulation in the same passes, element by element"
    return f"the modulation as an operation of its own: {why_not}"


def is_exporting() -> bool:
    """Whether a program is being captured that must not need normkit: torch.export, ONNX or jit tracing."""
    return _torch.is_exporting() or tracing_state() is not None


def _is_captured() -> bool:
    """Whether the operations become a graph, where a kernel that Python calls cannot be part of."""
    return is_exporting() or torch.compiler.is_compiling()


def is_eager() -> bool:
    """Whether the call is an ordinary one: no other path asked for, nothing that captures or transforms it."""
    return (
        (_requested is None or _requested == "native")
        and not _is_traced_by_dynamo()
        and not count_dispatch_modes()
        and peek_transform() is None
        and forward_level() < 0
        and tracing_state() is None
    )


def has_memory() -> bool:
    """Whether the tensors of a call have storages to ask for: those of a mode, a trace or a transform may have none."""
    return not (
        _is_traced_by_dynamo() or count_dispatch_modes() or peek_transform() is not None or tracing_state() is not None
    )


def may_look(tensor: Tensor) -> bool:
    """Whether Python may branch on the tensor's values: they are there, and no device is waited for.

    Not in a program that is compiled, traced or transformed, and under no torch-dispatch mode: fake tensors have no
    values, and those of a program that `make_fx` records are not yet known.
    """
    if torch.compiler.is_compiling() or is_transformed() or not has_memory():
        return False
    return is_plain(tensor) and tensor.device.type == "cpu"


def is_transformed() -> bool:
    """Whether a torch.func transform or a forward-mode level is active."""
    return peek_transform() is not None or forward_level() >= 0


def why_not_native(norm: NormSpec, operands: Operands) -> str | None:
    """The first condition that keeps the native kernels from this call, or None."""
    input = operands.input
    if not is_plain(input):
        return f"{type(input).__name__} is a tensor subclass"
    if not input.is_cpu:
        return f"the tensor is on {input.device.type}, the native kernels are for the CPU"
    if not native.supports_dtype(input.dtype):
        return native.why_not() or f"no native kernel for {input.dtype}"
    if torch.compiler.is_compiling():
        return norm.why_not_native(operands) or norm.why_not_operator(native, operands) or _why_not_opaque(operands)
    if count_dispatch_modes():
        return "a torch-dispatch mode is active (fake tensors have no memory)"
    if is_transformed():
        return "a torch.func transform or forward-mode level is active"
    if tracing_state() is not None:
        return "the call is being traced"
    if input.layout is not torch.strided:
        return f"the layout is {input.layout}"
    for tensor in (*tuple(operands)[1:], *norm.buffers()):
        if tensor is not None and not (is_plain(tensor) and tensor.is_cpu):
            return "a parameter, buffer, residual or mask is not a plain CPU tensor"
    return norm.why_not_native(operands)


def is_plain(tensor: Tensor) -> bool:
    """Whether it is exactly a Tensor or Parameter: a subclass may mean anything by its values."""
    return type(tensor) is Tensor or type(tensor) is Parameter


def _why_not_opaque(operands: Operands) -> str | None:
    """In a compiled graph the native kernels are opaque operators, which torch.func transforms cannot see into."""
    why_not = _why_not_transformable()
    if why_not is not None:
        return why_not
    if any(tensor is not None and not tensor.is_cpu for tensor in operands):
        return "a parameter or residual is not on the CPU"
    return None


def why_not_aten(norm: NormSpec, operands: Operands) -> str | None:
    """The first condition that keeps PyTorch's kernels from this call, or None."""
    if not norm.has_aten:
        return f"PyTorch has no kernel of {norm.name}"
    if operands.mask is not None:
        return "PyTorch's norms take no mask"
    if is_transformed():
        return "a torch.func transform is active, or a forward-mode level: the kernels are behind a first derivative"
    return None


def why_not_exported(norm: NormSpec, operands: Operands) -> str | None:
    """The first condition that keeps PyTorch's own operation from an exported program, or None."""
    return norm.why_not_exported() if operands.mask is None else "PyTorch's norms take no mask"


def why_not_triton(norm: NormSpec, operands: Operands) -> str | None:
    """The first condition that keeps Triton's kernels from this call, or None."""
    input = operands.input
    why_not = triton.why_not(input.device.type)
    if why_not is not None:
        return why_not
    if not norm.has_triton:
        return f"normkit has no Triton kernels of {norm.name}"
    if not is_plain(input):
        return f"{type(input).__name__} is a tensor subclass"
    if input.layout is not torch.strided:
        return f"the layout is {input.layout}"
    others = [tensor for tensor in (*tuple(operands)[1:], *norm.buffers()) if tensor is not None]
    for tensor in (input, *others):
        if tensor.dtype not in triton.DTYPES and tensor is not operands.mask:
            return f"no Triton kernel for {tensor.dtype}"
    if any(tensor.device != input.device for tensor in others):
        return "a parameter, buffer, residual or mask is on another device"
    if is_exporting():
        return "an exported program must run without normkit"
    if triton.exceeds(input):
        return "a channel has more values than 32 bits count"
    if torch.compiler.is_compiling():
        return norm.why_not_operator(triton, operands) or _why_not_transformable()
    if not all(is_plain(tensor) for tensor in others):
        return "a parameter, buffer, residual or mask is a tensor subclass"
    if count_dispatch_modes():
        return "a torch-dispatch mode is active (fake tensors have no memory)"
    if is_transformed():
        return "a torch.func transform or forward-mode level is active"
    return "the call is being traced" if tracing_state() is not None else None


def _why_not_transformable() -> str | None:
    return "a torch.func transform is active in the compiled function" if are_transforms_active() else None


_WHY_NOT = {
    "native": why_not_native, "aten": why_not_aten, "exported": why_not_exported, "triton": why_not_triton,
}  # fmt: skip
