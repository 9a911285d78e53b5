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

from ..model.families import author
from ..model.row_norm import RowNorm
from ..model.row_probe import row_norm_of
from ..model.row_twin import arguments
from ..model.select import why_no_family
from .build import Built
from .instance_forward import InstanceForward


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

    def added(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor] | None:
        """(what the call gives for x + residual, and that sum), or None where it is not known."""
        row, own = self.row, self.owner
        weight = None if row.weight is None else getattr(own, row.weight)
        if not row.adds or not row.takes(x, weight, None):
            return None
        return row.added(x, residual, weight, None if row.bias is None else getattr(own, row.bias))

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None] | None:
        """The input and the gate, where nothing else was given and both are tensors."""
        if kwargs:
            names = self._names[len(args) :][: len(kwargs)]
            if kwargs.keys() != set(names):
                return None
            args = (*args, *(kwargs[name] for name in names))
        if len(args) > 2 or not all(isinstance(tensor, Tensor) for tensor in args) or not args:
            return None
        return (args[0], args[1]) if len(args) == 2 else (args[0], None)


def installed(module: nn.Module) -> bool:
    """Whether the module's forward calls our kernels already."""
    return isinstance(module.__dict__.get("forward"), RowForward)


def why_unknown(module: nn.Module) -> str | None:
    """For `select`: why what a module computes is not known, "" where it is no norm, None where it is known."""
    reason = why_no_family(module)
    if reason is None or author(type(module)):
        return reason
    if installed(module):
        return None
    row = row_norm_of(module)
    return None if isinstance(row, RowNorm) else reason and f"{reason}: {row}"


def replacement(module: nn.Module) -> Built:
    """The module itself, to be given a `RowForward`, and what it computes; or why it is kept."""
    if installed(module):
        return "it calls normkit's kernels already"
    row = row_norm_of(module)
    if isinstance(row, str):
        return row
    dtypes = {parameter.dtype for parameter in module._parameters.values() if parameter is not None}
    for dtype in dtypes or {torch.float32}:
        if (dtype, dtype if row.weight else None) not in row.casts:
            return f"in {str(dtype).removeprefix('torch.')} it rounds otherwise than normkit's kernels"
    return module, f"its forward calls normkit's {row}"


def install(module: nn.Module) -> None:
    """Give the module the forward that `replacement` speaks of."""
    row = row_norm_of(module)
    assert isinstance(row, RowNorm)
    RowForward(module, row).install()
