"""Give a model back as it was: modes, buffers, random state, gradient mode, also when an exception flies.

Inside the block the whole model is in evaluation mode, since the statistics are meant for evaluation: dropout and
stochastic depth are off. Flags are set directly: `train()` and `eval()` may be overridden and do more than that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no compiled code inside the block; afterwards the model is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = _snapshot(model)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_devices(model)))
        if "torch._dynamo" in sys.modules:  # compiled modules would not see the stand-ins; nothing else imports Dynamo
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
            _restore(buffers)


_Saved = list[tuple[nn.Module, str, Tensor, Tensor, int]]


def _snapshot(model: nn.Module) -> _Saved:
    """Each buffer by owner and name, with a copy of its values and its version."""
    return [
        (module, name, buffer, buffer.detach().clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not nn.parameter.is_lazy(buffer)
    ]


def _restore(saved: _Saved) -> None:
    for module, name, buffer, values, version in saved:
        module._buffers[name] = buffer  # the same object, should the forward have put another in its place
        if _version(buffer) != version or version < 0:
            with torch.no_grad():
                buffer.copy_(values)


def _version(buffer: Tensor) -> int:
    """How often a buffer was written; -1 where that is not counted."""
    return -1 if buffer.is_inference() else buffer._version


def _devices(model: nn.Module) -> list[torch.device]:
    """The CUDA devices whose random state a forward may move."""
    found = {tensor.device for tensor in [*model.parameters(), *model.buffers()] if tensor.device.type == "cuda"}
    return sorted(found, key=str)
