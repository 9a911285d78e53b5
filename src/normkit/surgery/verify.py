"""Is the changed model still the same function? Largest error of each output on the example inputs.

Rules: both models run from the same random state and are given back as they were. The limit is relative to the largest
absolute value of the output; it is there to catch a wrong fold, not to grade rounding: errors are reported whatever
they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from ..dataflow import call_with, output_name, untouched
from .changes import OutputError

# Some hundred layers, each adding a few roundings of what its neighbour amplifies.
_RELATIVE_LIMIT = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


def outputs_of(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Every tensor of the model's result by its place ("output['out']"), without touching the model."""
    with untouched(model), torch.no_grad():
        leaves = tree_flatten_with_path(call_with(model, example_inputs))[0]
    return {output_name(path): leaf.clone() for path, leaf in leaves if isinstance(leaf, Tensor)}


def compare(operation: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[OutputError, ...]:
    """One entry an output; an output that is missing or not finite where it was gives infinity."""
    return tuple(_error(operation, name, tensor, after.get(name)) for name, tensor in before.items())


def _error(operation: str, name: str, before: Tensor, after: Tensor | None) -> OutputError:
    if after is None or after.shape != before.shape:
        return OutputError(operation, name, float("inf"), 0.0)
    limit = _RELATIVE_LIMIT.get(before.dtype, 0.0)
    before, after = (t.to(torch.promote_types(t.dtype, torch.float32)).flatten() for t in (before, after))
    same = (before == after) | (before.isnan() & after.isnan())
    gap = torch.where(same, 0.0, (before - after).abs()).nan_to_num(nan=float("inf"))
    finite = before[before.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return OutputError(operation, name, float(gap.max()) if gap.numel() else 0.0, limit * scale)
