"""A forward that one module has in place of its class's: how it is put there, copied, replicated and taken away."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import nn

from .._torch import REPLICATE

_FORWARD = "forward"


class InstanceForward:
    """Stands for the bound method `type(owner).forward`, and looks like it to who asks for its signature."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self._look_like_a_method()

    def _look_like_a_method(self) -> None:
        self.__code__, self.__name__ = type(self).__call__.__code__, "forward"
        self.__signature__ = inspect.signature(partial(type(self.owner).forward, self.owner))

    def __getstate__(self) -> dict[str, Any]:
        return {"owner": self.owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.owner = state["owner"]
        self._look_like_a_method()

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's own forward gives."""
        return type(self.owner).forward(self.owner, *args, **kwargs)

    def of(self, owner: nn.Module) -> InstanceForward:
        """The same for another module."""
        return type(self)(owner)

    def install(self) -> None:
        """Give the owner this forward, and its replicas of nn.DataParallel, which copy attributes, one of their own."""
        self.owner.__dict__.update({_FORWARD: self, REPLICATE: self._replicate})

    def _replicate(self) -> nn.Module:
        replica = getattr(type(self.owner), REPLICATE)(self.owner)
        self.of(replica).install()
        return replica


def uninstall(module: nn.Module) -> None:
    """Give the module its class's forward again, if it has one of ours."""
    if isinstance(module.__dict__.get(_FORWARD), InstanceForward):
        del module.__dict__[_FORWARD], module.__dict__[REPLICATE]
