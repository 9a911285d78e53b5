"""The running statistics of training: how mean and var of a batch move them.

Rules: `momentum` weighs the NEW value, as in torch; momentum=None is the cumulative mean over batches; the variance
that is averaged is unbiased, m/(m-1) times the batch's, m = values per channel of this batch. All: (C,).
"""

from __future__ import annotations

from torch import Tensor


def unbiased(var: Tensor, m: int | Tensor) -> Tensor:
    """m/(m-1) * var, the unbiased variance of m values from the biased one."""
    if m < 2:
        raise ValueError(f"expected more than 1 value per channel for an unbiased variance (got {m})")
    return var * m / (m - 1)


def exponential(running: Tensor, new: Tensor, momentum: float) -> Tensor:
    """(1 - momentum)*running + momentum*new."""
    return (1 - momentum) * running + momentum * new


def cumulative(running: Tensor, new: Tensor, num_batches: int) -> Tensor:
    """The mean of `num_batches` values: `running` is the mean of all but the last of them, `new` the last."""
    return running + (new - running) / num_batches


def exponential_closed_form(initial: Tensor, values: list[Tensor], momentum: float) -> Tensor:
    """`exponential` after all of `values`, as one weighted sum: value t of T weighs momentum*(1 - momentum)^(T - t)."""
    steps = len(values)
    result = (1 - momentum) ** steps * initial
    for t, value in enumerate(values, start=1):
        result = result + momentum * (1 - momentum) ** (steps - t) * value
    return result


def update(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: int,
    mean: Tensor,
    var: Tensor,
    m: int,
    momentum: float | None,
) -> tuple[Tensor, Tensor, int]:
    """(running_mean, running_var, num_batches_tracked) after one more batch: its mean and biased var, of m values."""
    num_batches = num_batches_tracked + 1
    new_var = unbiased(var, m)
    if momentum is None:
        return cumulative(running_mean, mean, num_batches), cumulative(running_var, new_var, num_batches), num_batches
    return exponential(running_mean, mean, momentum), exponential(running_var, new_var, momentum), num_batches
