"""Is the changed model still the same function? Largest error of each output on the example inputs.

Rules: both models run from the same random state and are given back as they were. The limit is relative to the largest
absolute value of the output; it is there to catch a wrong fold, not to grade rounding: errors are reported whatever
they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model.dataflow import call_with, refuse_lazy
from ..model.recorder import named_leaves, output_name
from ..model.restore import Restored, in_both_modes
from .changes import OutputError

# Some hundred layers, each adding a few roundings of what its neighbour amplifies.
_RELATIVE_LIMIT = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


def outputs_of(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Every tensor of the model's result by its place ("output['out']"), without touching the model."""
    refuse_lazy(model)
    with Restored(model) as restored, restored:
        return _outputs(model, example_inputs)


def _outputs(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    leaves = named_leaves(call_with(model, example_inputs))
    return {output_name(path): leaf.clone() for path, leaf in leaves if isinstance(leaf, Tensor)}


def compare(operation: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[OutputError, ...]:
    """One entry an output; an output that is missing or not finite where it was gives infinity."""
    return tuple(_error(operation, name, tensor, after.get(name)) for name, tensor in before.items())


def outputs_in_both_modes(model: nn.Module, example_inputs: Any) -> dict[bool, dict[str, Tensor]]:
    """mode -> outputs; training only where the model can."""
    refuse_lazy(model)
    return in_both_modes(model, lambda: _outputs(model, example_inputs))


def check(
    model: nn.Module, example_inputs: Any, before: dict[bool, dict[str, Tensor]]
) -> tuple[tuple[OutputError, ...], str | None]:
    """The errors in evaluation against `before`, and what is wrong with the model now, or None."""
    if not before:
        return (), None
    try:
        after = outputs_in_both_modes(model, example_inputs)
    except Exception as error:
        return (), f"the changed model fails with {type(error).__name__}: {error}"
    if True in before and True not in after:
        return (), "the changed model fails in training"
    errors = compare("accelerate", before[False], after[False])
    # statistics of few values amplify rounding without bound: training is compared for gross errors, once, loosely
    training = compare("accelerate", before.get(True, {}), after.get(True, {}))
    wrong = [e for e in errors if not e.largest <= e.limit] + [e for e in training if not e.largest <= 100 * e.limit]
    return errors, f"{wrong[0].output} differs by {wrong[0].largest:.3g}" if wrong else None


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
