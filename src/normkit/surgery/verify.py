"""Is the changed model still the same function? Largest error of each output on the example inputs.

Rules: both models run from the same random state and are given back as they were; gradients and the buffers that a call
leaves are compared too, and another batch size. The limit is relative to the largest
absolute value of the output; it is there to catch a wrong fold, not to grade rounding: errors are reported whatever
they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import InstanceNormBase, tree_leaves, tree_map
from ..model.dataflow import arguments, call_with
from ..model.kept import Kept
from ..model.recorder import named_leaves, output_name
from ..model.restore import Restored, in_both_modes
from .changes import OutputError

# Some hundred layers, each adding a few roundings of what its neighbour amplifies.
_RELATIVE_LIMIT = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}

# Values below are zero but for rounding: outputs of a norm over equal samples, gradients of a bias in front of a norm.
_NOISE = 1e-3


def outputs_of(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Every tensor of the model's result by its place ("output['out']"), without touching the model."""
    with Restored(model) as restored, restored:
        return _outputs(model, example_inputs)


def _outputs(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    leaves = named_leaves(call_with(model, example_inputs))
    return {output_name(path): leaf.clone() for path, leaf in leaves if isinstance(leaf, Tensor)}


def compare(operation: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[OutputError, ...]:
    """One entry an output; an output that is missing or not finite where it was gives infinity."""
    return tuple(_error(operation, name, tensor, after.get(name)) for name, tensor in before.items())


@dataclass(frozen=True)
class Behaviour:
    """What one call of a model gives: outputs by place, gradients of inputs and parameters, buffers afterwards."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def behaviours(model: nn.Module, example_inputs: Any) -> dict[tuple[str, bool], Behaviour]:
    """(batch size, mode) -> behaviour: of the example and, where the model takes it, of another batch size.

    Training only where the model can. Gradients are taken on the example itself.
    """
    found: dict[tuple[str, bool], Behaviour] = {}
    kept = Kept(model, values=True)
    for size, inputs in (("", example_inputs), ("with another batch size", _resized(example_inputs))):
        try:
            runs = in_both_modes(model, partial(_behaviour, model, inputs, size == ""), kept)
        except Exception:
            if not found:
                raise
            continue
        found.update({(size, mode): run for mode, run in runs.items()})
    return found


def behaviour_of_rounded(model: nn.Module, example_inputs: Any) -> Behaviour:
    """In training, on inputs that differ by a rounding: how much of what is compared is noise."""
    inputs = tree_map(_rounded, example_inputs)
    with Restored(model) as restored, restored:
        model.train()
        return _behaviour(model, inputs, True)


def _rounded(leaf: Any) -> Any:
    """The leaf, every other value a few units in the last place larger."""
    if not _differentiable(leaf):
        return leaf
    up = torch.arange(leaf.numel(), device=leaf.device).view(leaf.shape) % 2
    return leaf.detach() * (1 + 4 * torch.finfo(leaf.dtype).eps * up.to(leaf.dtype))


def _behaviour(model: nn.Module, example_inputs: Any, differentiate: bool) -> Behaviour:
    if not differentiate:
        outputs = _outputs(model, example_inputs)
        return Behaviour(outputs, {}, _buffers(model))
    args, kwargs = arguments(example_inputs)
    leaves = {f"input {i}": t for i, t in enumerate(tree_leaves((args, kwargs))) if _differentiable(t)}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    # clones: a forward may work in place on what it is given, and autograd refuses that on leaves
    args, kwargs = tree_map(lambda t: t.clone() if _differentiable(t) else t, (args, kwargs))
    wanted = leaves | {f"parameter {name}": p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        try:
            result = model(*args, **kwargs)
            outputs = {output_name(path): leaf for path, leaf in named_leaves(result) if isinstance(leaf, Tensor)}
        except Exception:  # it cannot be differentiated: then as it runs without
            return Behaviour(_outputs(model, example_inputs), {}, _buffers(model))
        copies, buffers = {name: t.detach().clone() for name, t in outputs.items()}, _buffers(model)
        return Behaviour(copies, _gradients([t for t in outputs.values() if t.requires_grad], wanted), buffers)


def _gradients(outputs: list[Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a sum of all outputs with weights that differ: each counts. Empty where autograd refuses."""
    try:
        # sums, and not gradients of the outputs: those make torch import sympy, which takes half a second
        found = torch.autograd.grad(list(map(_weighted_sum, outputs)), list(wanted.values()), allow_unused=True)
    except Exception:
        return {}
    return {f"the gradient of {name}": g for name, g in zip(wanted, found, strict=True) if g is not None}


def _weighted_sum(output: Tensor) -> Tensor:
    parts = torch.view_as_real(output) if output.is_complex() else output
    weights = torch.linspace(-0.5, 1, parts.numel(), device=parts.device).to(parts.dtype)
    return (parts * weights.view_as(parts)).sum()


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """All but how many batches an instance norm has seen: ours count them, torch's never do."""
    norms = [name for name, module in model.named_modules() if isinstance(module, InstanceNormBase)]
    counters = {f"{name}.num_batches_tracked".lstrip(".") for name in norms}
    return {f"buffer {name}": b.detach().clone() for name, b in model.named_buffers() if name not in counters}


def _resized(example_inputs: Any) -> Any:
    """The example with fewer samples, or one more: of every tensor whose axis 0 is as long as the first one's."""
    sizes = [leaf.shape[0] for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor) and leaf.dim() > 0]

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != sizes[0]:
            return leaf
        return leaf[: max(2, sizes[0] // 2)] if sizes[0] > 2 else torch.cat([leaf, _other(leaf[:1])])

    return tree_map(resize, example_inputs)


def _other(sample: Tensor) -> Tensor:
    """Another sample: equal ones have no variance."""
    return sample * 0.5 if _differentiable(sample) else sample


def check(
    model: nn.Module,
    example_inputs: Any,
    before: dict[tuple[str, bool], Behaviour],
    rounded: Callable[[], Behaviour],
) -> tuple[tuple[OutputError, ...], str | None]:
    """The errors in evaluation against `before`, and what is wrong with the model now, or None.

    rounded: `behaviour_of_rounded` of the model as it was, asked for where it counts.
    """
    if not before:
        return (), None
    try:
        after = behaviours(model, example_inputs)
    except Exception as error:
        return (), f"the changed model fails with {type(error).__name__}: {error}"
    if not before.keys() <= after.keys():
        size, mode = min(before.keys() - after.keys())
        return (), f"the changed model fails in {'training' if mode else 'evaluation'} {size}".rstrip()
    errors = compare("accelerate", before["", False].outputs, after["", False].outputs)
    wrong = [e for e in errors if not e.largest <= e.limit]
    for key, then in before.items():
        gross = _gross(then, after[key])
        if gross and key == ("", True):
            moved = _amplified(then, rounded())
            gross = [error for error in gross if not error.largest <= 10 * moved.get(error.output, 0.0)]
        wrong += gross
    return errors, f"{wrong[0].output} differs by {wrong[0].largest:.3g}" if wrong else None


def _gross(before: Behaviour, after: Behaviour) -> list[OutputError]:
    """Statistics of few values amplify rounding without bound: all but evaluation's outputs is held to 100 times that,
    and training's to ten times what a rounding of the inputs does.

    A gradient is held to the largest of them all: that of a bias in front of a norm is zero but for rounding.
    """
    found = [
        replace(error, limit=max(error.limit, _NOISE * _RELATIVE_LIMIT.get(tensor.dtype, 0.0)))
        for then, now in zip(_parts(before), _parts(after), strict=True)
        for error, tensor in zip(compare("accelerate", then, now), then.values(), strict=True)
    ]
    largest = max((error.limit for error in found if error.output in before.gradients), default=0.0)
    found = [replace(error, limit=largest) if error.output in before.gradients else error for error in found]
    return [error for error in found if not error.largest <= 100 * error.limit]


def _amplified(before: Behaviour, rounded: Behaviour) -> dict[str, float]:
    """Name -> by how much it moves where the inputs are rounded; of gradients, the largest of them."""
    parts = [compare("", then, now) for then, now in zip(_parts(before), _parts(rounded), strict=True)]
    largest = max((error.largest for error in parts[1] if error.largest < float("inf")), default=0.0)
    moved = {error.output: error.largest for part in parts for error in part if error.largest < float("inf")}
    return moved | dict.fromkeys((error.output for error in parts[1]), largest)


def _parts(behaviour: Behaviour) -> tuple[dict[str, Tensor], ...]:
    return behaviour.outputs, behaviour.gradients, behaviour.buffers


def _error(operation: str, name: str, before: Tensor, after: Tensor | None) -> OutputError:
    if after is None or after.shape != before.shape:
        return OutputError(operation, name, float("inf"), 0.0)
    limit = _RELATIVE_LIMIT.get(before.dtype, 0.0)
    before, after = (t.detach().to(torch.promote_types(t.dtype, torch.float32)).flatten() for t in (before, after))
    if not before.numel():
        return OutputError(operation, name, 0.0, 0.0)
    largest, scale = float(_largest(before - after)), float(_largest(before))
    if not math.isfinite(largest + scale):  # NaN and Inf, each where it was, are no difference
        same = (before == after) | (before.isnan() & after.isnan())
        gap = torch.where(same, 0.0, (before - after).abs()).nan_to_num(nan=float("inf"))
        finite = before[before.isfinite()].abs()
        largest, scale = float(gap.max()), float(finite.max()) if finite.numel() else 0.0
    return OutputError(operation, name, largest, limit * scale)


def _largest(values: Tensor) -> Tensor:
    """Their largest absolute value, in one pass."""
    return torch.linalg.vector_norm(values, float("inf"))
