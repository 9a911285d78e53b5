"""What a model answers to one batch, as numbers that can be compared: a metric, a loss, or the outputs themselves.

metric given                          metric(output, batch)
the forward returns one number        that number, the loss
anything else                         the distance of the outputs to those of the exact statistics
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..model.recorder import named_leaves

Metric: TypeAlias = "Callable[[Any, Any], float | Tensor]"
Answer: TypeAlias = "float | tuple[Tensor, ...]"


def answer(output: Any, batch: Any, metric: Metric | None) -> Answer:
    """A number, or the floating-point tensors of the output.

    Raises TypeError where the metric's result is no number, or the output holds nothing that can be compared.
    """
    if metric is not None:
        found = metric(output, batch)
        if not _is_number(found):
            raise TypeError(
                "metric(output, batch) must return a number (a float, or a tensor of one element), got "
                f"{f'a tensor of shape {tuple(found.shape)}' if isinstance(found, Tensor) else type(found).__name__}"
            )
        return float(found)
    if _is_number(output) and not (isinstance(output, Tensor) and output.dim()):
        return float(output)
    leaves = [leaf for _, leaf in named_leaves(output) if isinstance(leaf, Tensor)]
    tensors = tuple(_real(leaf) for leaf in leaves if leaf.is_floating_point() or leaf.is_complex())
    if not tensors:
        raise TypeError(
            f"the model returned {type(output).__name__} without a floating-point tensor, so two answers cannot be "
            "compared: pass metric=lambda output, batch: ... that returns a number"
        )
    return tensors


class Scale:
    """Answers to the same batches as numbers, one a batch; outputs by their distance to the `exact` ones."""

    def __init__(self, exact: Sequence[Answer]) -> None:
        self.exact = exact
        self._variances = [] if isinstance(exact[0], float) else _variances(exact)

    def value(self, batch: int, answer: Answer) -> float:
        r"""The number itself, or the root mean square distance in standard deviations of the exact outputs.

        .. math:: \sqrt{\frac{1}{K} \sum_k \frac{\mathrm{mean}((y_k - y^*_k)^2)}{\mathrm{var}(y^*_k)}}
                  \quad \text{over the } K \text{ outputs}

        Raises ValueError where the outputs have no counterparts.
        """
        exact = self.exact[batch]
        if isinstance(answer, float) and isinstance(exact, float):
            return answer
        ours, theirs = _shapes(answer), _shapes(exact)
        if isinstance(answer, float) or isinstance(exact, float) or ours != theirs:
            raise ValueError(
                f"the output of batch {batch} has shapes {ours}, and {theirs} with other statistics or modes, so two "
                "answers cannot be compared: pass metric=lambda output, batch: ... that returns a number"
            )
        parts = [_mean_square(a, e) / variance for a, e, variance in zip(answer, exact, self._variances, strict=True)]
        return math.sqrt(sum(parts) / len(parts))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _real(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.detach().clone()  # a model may write into the memory that it returned


def _mean_square(a: Tensor, e: Tensor) -> float:
    """Of the difference. An infinity on both sides is none: masked scores are."""
    return float(torch.where(a == e, 0.0, a.double() - e.double()).square().mean()) if a.numel() else 0.0


def _variances(answers: Sequence[Answer]) -> list[float]:
    """Of each output, over all its finite values in all batches; 1 where they do not vary."""
    found = []
    for parts in zip(*(one for one in answers if not isinstance(one, float)), strict=False):
        values = torch.cat([part.flatten().double() for part in parts])
        values = values[values.isfinite()]
        var = float(values.var(correction=0)) if len(values) else 0.0
        found.append(var if var > 0 else 1.0)
    return found


def _shapes(answer: Answer) -> str:
    return "()" if isinstance(answer, float) else ", ".join(str(tuple(part.shape)) for part in answer)
