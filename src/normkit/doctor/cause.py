"""In words, how a layer's running statistics differ from the data's, and how they may have come to."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..statistics.layers import running_statistics
from .exact import Exact, eps_of

FORGOTTEN = 0.05  # of the start; less of it is left in a running statistic that has caught up
ALL_ALIKE = 1.25  # a factor; channels whose variances are all off by less are not off together


def cause(layer: nn.Module, exact: Exact) -> str:
    """ "running_var is 14 times the data's; momentum 0.001 after 200 steps" """
    mean, var = running_statistics(layer)
    return "; ".join(part for part in (_difference(layer, mean, var, exact), _history(layer, mean, var)) if part)


def _difference(layer: nn.Module, mean: Tensor, var: Tensor, exact: Exact) -> str:
    for name, value in (("running_mean", mean), ("running_var", var)):
        if broken := int((~value.isfinite()).sum()):
            return f"{name} is not finite in {broken} of {value.numel()} channels"
    if below := int((var < 0).sum()):
        return f"running_var is negative in {below} of {var.numel()} channels"
    eps = eps_of(layer)
    std, true_std = ((v.double() + eps).sqrt() for v in (var, exact.var))
    shift = ((mean.double() - exact.mean.double()) / true_std).abs()
    scale = (std - true_std).abs() / true_std
    if float(shift.square().mean()) > float(scale.square().mean()):
        typical, worst = float(shift.median()), int(shift.argmax())
        if typical > 0.1:
            return f"running_mean is {typical:.2g} standard deviations from the data's"
        return f"running_mean of channel {worst} is {float(shift[worst]):.2g} standard deviations from the data's"
    ratio = (std / true_std).square()
    typical, worst = math.exp(float(ratio.log().median())), int(ratio.log().abs().argmax())
    if max(typical, 1 / typical) > ALL_ALIKE:
        return f"running_var is {_times(typical)} the data's"
    return f"running_var of channel {worst} is {_times(float(ratio[worst]))} the data's"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio >= 0.01 else f"1/{_whole(1 / ratio)} of"


def _whole(number: float) -> str:
    return f"{float(f'{number:.2g}'):.15g}"


def _history(layer: nn.Module, mean: Tensor, var: Tensor) -> str:
    """What of the layer's own record explains it; nothing where it does not."""
    if bool((mean == 0).all()) and bool((var == 1).all()):
        return "they never moved from 0 and 1"
    counter, momentum = layer._buffers.get("num_batches_tracked"), getattr(layer, "momentum", None)
    steps = 0 if counter is None else int(counter)
    if not isinstance(momentum, float) or steps == 0 or not 0 <= momentum < 1:
        return ""
    return f"momentum {momentum:g} after {steps} steps" if (1 - momentum) ** steps > FORGOTTEN else ""
