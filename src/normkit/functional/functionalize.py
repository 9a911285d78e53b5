"""Running statistics under `torch.func.functionalize`, for which torch has no rule of autograd functions.

Rules: buffers that are arguments of the functionalized function are written as it sees them; where it captured one, as
a module's, they are written outside of it, with values that it does not wrap any more, as torch's own batch norm does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_TransformType = torch._C._functorch.TransformType
_DEEPER = (
    "running statistics cannot move in functionalize(transform(f)): torch has no rule of autograd functions there; "
    "write transform(functionalize(f)), put the norms in evaluation mode, or give them track_running_stats=False"
)


def is_functionalized() -> bool:
    """Whether a functionalization is among the transforms around this call."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(interpreter.key() == _TransformType.Functionalize for interpreter in stack)


def write_through(write: Callable[..., object], move: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """write(*arguments), the first three of which are buffers or None, as the functionalization wants it.

    move: the same under the transforms around it.
    """
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    innermost: Any = retrieve_current_functorch_interpreter()
    if innermost.key() != _TransformType.Functionalize:
        raise RuntimeError(_DEEPER)
    if all(torch._is_functional_tensor(buffer) for buffer in arguments[:3] if buffer is not None):
        write(*arguments)
        return
    plain = map(_unwrapped, arguments)
    with innermost.lower():
        (write if torch._C._functorch.peek_interpreter_stack() is None else move)(*plain)


def _unwrapped(argument: Any) -> Any:
    if not isinstance(argument, Tensor) or not torch._is_functional_tensor(argument):
        return argument
    torch._sync(argument)  # type: ignore[attr-defined]  # not in torch's stub
    return torch._C._functorch._unwrap_functional_tensor(argument, True)
