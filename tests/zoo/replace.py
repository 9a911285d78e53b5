"""`replaced_norms`: inside, whoever makes one of torch.nn's norms gets ours.

Libraries keep classes in default arguments and tables that were filled at import, so changing `torch.nn.BatchNorm2d`
would reach few of them. Instead the class's `__init__` turns the new object into our subclass and goes on there with
the same arguments. Subclasses of torch's norms (timm has some) stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import nn

import normkit as nk

NAMES = [
    *(f"{family}Norm{d}d" for family in ("Batch", "Instance") for d in (1, 2, 3)),
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
]


@contextmanager
def replaced_norms() -> Iterator[None]:
    """torch.nn's norm classes make normkit's layers inside."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            theirs, ours = getattr(nn, name), getattr(nk, name)

            def init(
                self: nn.Module,
                *args: Any,
                theirs: type = theirs,
                ours: type = ours,
                own: Any = theirs.__init__,
                **kw: Any,
            ) -> None:
                if type(self) is theirs:
                    self.__class__ = ours
                    ours.__init__(self, *args, **kw)  # which comes back here as one of ours
                else:
                    own(self, *args, **kw)

            patch.setattr(theirs, "__init__", init)
        yield


def count_ours(model: nn.Module) -> int:
    """How many of normkit's layers a model has; AssertionError if one of torch's is left."""
    plain = {getattr(nn, name) for name in NAMES}
    left = [name for name, module in model.named_modules() if type(module) in plain]
    assert not left, f"still torch's: {left}"
    return sum(isinstance(module, tuple(getattr(nk, name) for name in NAMES)) for module in model.modules())
