"""Whether somebody listens to the calls of a module."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether a hook sees or changes what goes through the module."""
    return bool(  # not in a loop: rewritten forwards ask at each call
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_watched() -> bool:
    """Whether somebody listens to the calls of all modules, as counters of operations do."""
    return not torch.compiler.is_compiling() and _has_any_global_hook()
