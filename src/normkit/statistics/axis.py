"""Whether a forward that nobody knows normalizes axis 1 of its input by the layer's statistics.

A module may share the names of the buffers and no more: a normalizer of whole observations, or of the last axis. Such
a layer is asked with numbers, on its first real input: where input and running_mean move together, by another amount in
each channel, what it gives must stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..model.families import author_of_forward
from .lent import Lent

_TOLERANCE = 0.05  # of the largest output: rounding is far below, in half precision too, and another axis far above


class AxisCheck:
    """One layer's. `refusal`: why it is left alone, or None."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.refusal: str | None = None
        self._open = author_of_forward(module) == ""

    def refuses(self, own: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call must be left alone. own: the layer's forward; x: (N, C, *), the input in the arguments."""
        channels = self.module._buffers["running_mean"].numel()  # type: ignore[union-attr]  # a layer that is measured has it
        if self._open and x.dim() > 1 and x.shape[1] != channels:
            self._refuse(f"its input of shape {tuple(x.shape)} does not have its {channels} channels on axis 1")
        elif self._open and x.dim() > 1 and x.numel() > channels and bool(x.isfinite().all()):
            self._open = False
            if not self._moves_along(own, x, args, kwargs):
                self._refuse(f"it does not normalize axis 1 of its input of shape {tuple(x.shape)} by its statistics")
        return self.refusal is not None

    def _refuse(self, reason: str) -> None:
        self.refusal, self._open = reason, False

    @torch.no_grad()
    def _moves_along(self, own: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        given = args[0] if args else next(iter(kwargs.values()))
        axis = given.dim() - x.dim() + 1  # an instance norm may get one sample, without the batch's axis
        wide = x.detach().double()
        var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != 1], correction=0)
        var = torch.where(var > 0, var, 1)
        shift = var.sqrt() * torch.linspace(0.5, 1.5, var.numel(), device=x.device, dtype=torch.float64)
        column = shift.to(x.dtype).view(-1, *[1] * (given.dim() - axis - 1))
        still, moved = (
            self._output(own, statistics, input, args, kwargs)
            for statistics, input in (((mean, var), given.clone()), ((mean + shift, var), given + column))
        )
        if not isinstance(still, Tensor) or not isinstance(moved, Tensor):
            return True  # nothing to compare
        gap, largest = float((moved - still).abs().max()), float(still.abs().max())
        return gap <= _TOLERANCE * largest

    def _output(
        self,
        own: Callable[..., Any],
        statistics: tuple[Tensor, Tensor],
        input: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if args:
            args = (input, *args[1:])
        else:
            kwargs = {key: input if i == 0 else value for i, (key, value) in enumerate(kwargs.items())}
        with Lent(self.module, *statistics) as lent, lent:
            return own(*args, **kwargs)
