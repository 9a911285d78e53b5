"""`RowNorm`: RMS or layer norm over one axis as a module of somebody else computes it, on normkit's kernels.

What differs between the modules of the field, and is said here: eps, whether the weight or 1 + weight is meant, over
which axis of an input of each rank, whether a gate multiplies before or after the norm, and, in half precision, whether
the weight multiplies before the cast back to the input's dtype (one rounding: Gemma, OLMo 2, torch.nn.RMSNorm) or after
it (two: Llama, Qwen, Mistral, T5). The kernels round once; where the weight comes after the cast they run without it
and one more operation multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .._activation import NONE
from ..functional.add_norm import run_added
from ..functional.layer_norm import LayerNormSpec, over_channels
from ..functional.rms_norm import RMSNormSpec
from ..functional.road import run
from ..functional.spec import NormSpec

Dtypes: TypeAlias = "tuple[torch.dtype, torch.dtype | None]"  # of the input and of the weight
BEFORE, AFTER = "before", "after"
ROUNDED = "rounded"  # before it, and the factor is 1 + weight in the weight's dtype (Nemotron)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}
GATES = tuple((place, name) for place in (BEFORE, AFTER) for name in _ACTIVATIONS)


@dataclass(frozen=True)
class RowNorm:
    """One norm. kind: "rms" or "layer". width: D, None for any. weight, bias: the names of its parameters of (D,), or
    None.

    unit_offset: the factor is 1 + weight. axes: rank of the input -> the normalized axis, -1 or 1. gate: None, or
    (whether it multiplies before or after the norm, its activation). casts: which dtypes of input and weight are known,
    and whether the weight multiplies before (BEFORE, ROUNDED) or after the cast to the input's dtype. groups: into how
    many equal parts the last axis is cut, each normalized for itself (Mamba 2).
    """

    kind: str
    width: int | None
    eps: float
    weight: str | None
    bias: str | None
    unit_offset: bool
    gate: tuple[str, str] | None
    axes: Mapping[int, int]
    casts: Mapping[Dtypes, str]
    groups: int = 1

    def takes(self, x: Tensor, weight: Tensor | None, gate: Tensor | None) -> bool:
        """Whether this is a call of which it is known what the module gives."""
        axis = self.axes.get(x.dim())
        if axis is None or (x.dtype, None if weight is None else weight.dtype) not in self.casts:
            return False
        if x.shape[axis] < 2 if self.width is None else x.shape[axis] != self.width:
            return False
        if (gate is None) != (self.gate is None) or (gate is not None and not _alike(gate, x)):
            return False
        # on an accelerator autocast would run our norm in float32 and give float32
        device = x.device.type
        return x.dtype == torch.float32 or device == "cpu" or not torch.is_autocast_enabled(device)

    def __call__(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, gate: Tensor | None = None
    ) -> Tensor:
        """What the module gives for a call that it `takes`. x: (*, D), or (N, D, *) with axis 1; gate: its shape."""
        axis = self.axes[x.dim()]
        cast = self._cast(x, weight)
        weight = self._factor(weight, cast)
        if gate is None:
            return self._normalized(x, axis, weight, bias, cast, x.dtype)
        assert self.gate is not None  # `takes` has seen to it
        place, name = self.gate
        factor = _ACTIVATIONS[name](gate.float())
        if place == BEFORE:
            return self._normalized(x * factor, axis, weight, bias, cast, x.dtype)
        wide = x if cast == AFTER else x.float()  # before the cast back the gate multiplies in float32 too
        return (self._normalized(wide, axis, weight, bias, cast, wide.dtype) * factor).to(x.dtype)

    @property
    def adds(self) -> bool:
        """Whether it has a call after an addition."""
        return self.gate is None and self.groups == 1

    def added(
        self, x: Tensor, residual: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(what the module gives for x + residual, and that sum), where it `adds` and `takes` x; residual: as x."""
        if self.axes[x.dim()] == 1:
            total = x + residual
            return self(total, weight, bias), total
        cast = self._cast(x, weight)
        weight = self._factor(weight, cast)
        if self._in_kernel(weight, cast, x.dtype):
            y, total = run_added(self._spec(x.shape[-1]), x, residual, weight, bias)
            return y.to(x.dtype), total
        y, total = run_added(self._spec(x.shape[-1]), x, residual)
        return _scaled(y.to(x.dtype), weight, bias), total

    def _cast(self, x: Tensor, weight: Tensor | None) -> str:
        return self.casts[x.dtype, None if weight is None else weight.dtype]

    def _factor(self, weight: Tensor | None, cast: str) -> Tensor | None:
        if weight is None or not self.unit_offset:
            return weight
        return 1.0 + (weight if cast == ROUNDED else weight.float())

    def _in_kernel(self, weight: Tensor | None, cast: str, dtype: torch.dtype) -> bool:
        """Whether the kernel multiplies by the weight: where it multiplies before the cast, or nothing is cast."""
        return weight is None or cast != AFTER or dtype == torch.float32 == weight.dtype

    def _normalized(
        self, x: Tensor, axis: int, weight: Tensor | None, bias: Tensor | None, cast: str, dtype: torch.dtype
    ) -> Tensor:
        """The norm of x times weight plus bias, rounded to dtype before or after the weight."""
        if self.groups > 1 and cast != AFTER:
            y = self._kernel(x.float(), axis, None, None)
            y = y if weight is None else weight.float() * y
            return (y if bias is None else y + bias.float()).to(dtype)
        if self.groups == 1 and self._in_kernel(weight, cast, dtype):
            return self._kernel(x, axis, weight, bias).to(dtype)
        return _scaled(self._kernel(x, axis, None, None).to(dtype), weight, bias, axis)

    def _kernel(self, x: Tensor, axis: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.groups > 1:
            x = x.unflatten(-1, (self.groups, -1))
        spec = self._spec(x.shape[axis])
        if axis == 1:
            return over_channels(spec, x, weight, bias, None)
        y = run(spec, x, weight, bias)
        return y if self.groups == 1 else y.flatten(-2)

    def _spec(self, width: int) -> NormSpec:
        return (RMSNormSpec if self.kind == "rms" else LayerNormSpec)(NONE, (width,), self.eps)

    def __str__(self) -> str:
        factor = "1 + weight" if self.unit_offset else "weight" if self.weight else "no weight"
        factor += " and bias" if self.bias else ""
        axes = {"its channels" if axis == 1 else "its last axis" for axis in self.axes.values()}
        gate = "" if self.gate is None else f", {self.gate[1]}(gate) {self.gate[0]} it"
        parts = "" if self.groups == 1 else f" in {self.groups} groups"
        name = f"{'RMS' if self.kind == 'rms' else 'layer'} norm over {' or '.join(sorted(axes))}{parts}"
        return f"{name}: eps {self.eps:.4g}, {factor}{gate}{self._shown_casts()}"

    def _shown_casts(self) -> str:
        """What happens in half precision, where its input has the weight's dtype or it has no weight."""
        shown = []
        for dtype in (torch.bfloat16, torch.float16):
            cast = self.casts.get((dtype, dtype if self.weight else None))
            order = "as here"
            if self.weight:
                factor = "1 + weight, rounded," if cast == ROUNDED else "the weight"
                order = f"{factor} multiplies {BEFORE if cast == ROUNDED else cast} the cast back"
            shown.append(order if cast else "its own forward, which rounds otherwise")
        if shown[0] == shown[1]:
            return "" if not self.weight and shown[0] == "as here" else f"; in half precision {shown[0]}"
        return f"; in bfloat16 {shown[0]}; in float16 {shown[1]}"


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, axis: int = -1) -> Tensor:
    """y times the weight plus the bias, which lie along the axis, in y's dtype or wider."""
    shape = (-1, *[1] * (y.dim() - 2)) if axis == 1 else (-1,)
    y = y if weight is None else weight.view(shape) * y
    return y if bias is None else y + bias.view(shape)


def _alike(gate: Tensor, x: Tensor) -> bool:
    return gate.dtype == x.dtype and gate.shape == x.shape
