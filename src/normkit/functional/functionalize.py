"""Running statistics under `torch.func.functionalize`, for which torch has no rule of autograd functions.

Rules: buffers that are arguments of the functionalized function are written as it sees them; where it captured one, as
a module's, they are written outside of it, with values that it does not wrap any more, as torch's own batch norm does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import _torch

_DEEPER = (
    "running statistics cannot move in functionalize(transform(f)): torch has no rule of autograd functions there; "
    "write transform(functionalize(f)), put the norms in evaluation mode, or give them track_running_stats=False"
)


def is_functionalized() -> bool:
    """Whether a functionalization is among the transforms around this call."""
    stack = _torch.transform_stack() or ()
    return any(interpreter.key() == _torch.FUNCTIONALIZE for interpreter in stack)


def write_through(write: Callable[..., object], move: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """write(*arguments), the first three of which are buffers or None, as the functionalization wants it.

    move: the same under the transforms around it.
    """
    innermost = _torch.innermost_transform()
    if innermost.key() != _torch.FUNCTIONALIZE:
        raise RuntimeError(_DEEPER)
    if all(_torch.is_functional(buffer) for buffer in arguments[:3] if buffer is not None):
        write(*arguments)
        return
    plain = map(_unwrapped, arguments)
    with innermost.lower():
        (write if _torch.peek_transform() is None else move)(*plain)


def _unwrapped(argument: Any) -> Any:
    return _torch.unwrapped_functional(argument) if _torch.is_functional(argument) else argument
