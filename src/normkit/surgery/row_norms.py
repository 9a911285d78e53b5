"""RMS and layer norms that are classes of their own (LlamaRMSNorm and its siblings): their forward calls our kernels.

Rules: the module stays, with its class, parameters, attributes and hooks, so checkpoints, `save_pretrained` and code
that looks for the class find what they found; it gets a forward of its own. A call of which the probe has not shown
what the class gives (another dtype, rank or argument, a tracer) goes to the class's forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..model.families import author, family, is_like_norm
from ..model.row_norm import RowNorm
from ..model.row_probe import arguments, row_norm_of
from .build import Built
from .instance_forward import InstanceForward, uninstall

_HALF_WEIGHT = "it computes in {} and rounds otherwise than normkit's kernels"


class RowForward(InstanceForward):
    """The forward of one such module. row: what it computes."""

    def __init__(self, owner: nn.Module, row: RowNorm) -> None:
        self.row = row
        super().__init__(owner)
        self._names = tuple(arguments(owner))

    def of(self, owner: nn.Module) -> RowForward:
        return RowForward(owner, self.row)

    def __getstate__(self) -> dict[str, Any]:
        row = {**self.row.__dict__, "axes": dict(self.row.axes), "casts": dict(self.row.casts)}
        return {**super().__getstate__(), "row": row}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.row = RowNorm(**state["row"])
        super().__setstate__(state)
        self._names = tuple(arguments(self.owner))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._bound(args, kwargs)
        if given is None:
            return self.original(*args, **kwargs)
        row, own = self.row, self.owner
        weight = None if row.weight is None else getattr(own, row.weight)
        if not row.takes(given[0], weight, given[1]):
            return self.original(*args, **kwargs)
        return row(given[0], weight, None if row.bias is None else getattr(own, row.bias), given[1])

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None] | None:
        """The input and the gate, where nothing else was given and both are tensors."""
        for name in self._names[len(args) :]:
            if name in kwargs:
                args = (*args, kwargs[name])
        if len(args) > 2 or not all(isinstance(tensor, Tensor) for tensor in args) or not args:
            return None
        return (args[0], args[1]) if len(args) == 2 else (args[0], None)


def why_unknown(module: nn.Module) -> str | None:
    """Why what a module of no known family computes is not known, or None where it is a norm that `accelerate` takes.

    "" for what does not look like a norm, and is not one.
    """
    if author(type(module)) or family(module) is not None:
        return "" if family(module) is None else None
    row = row_norm_of(module)
    if isinstance(row, RowNorm):
        return None
    return f"{type(module).__name__} is a class of its own, and what it computes is not known: {row}" if is_like_norm(module) else ""
