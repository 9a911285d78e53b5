"""The stand-ins for a layer's forward while a data set passes: one that measures, one that is settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .measure import Sample, measure
from .observe import arguments, by_own_statistics, is_known, under
from .tally import Tally
from .targets import Target, statistics


def watch(target: Target, tally: Tally, order: list[nn.Module]) -> Callable[..., Any]:
    """A stand-in for the layer's forward: under its input's own statistics, which it notes."""
    layer, own = target.layer, target.layer.forward
    known = is_known(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if tally.calls == 0:
            order.append(layer)
        x, mask = arguments(layer, args, kwargs)
        if target.per_instance:
            tally.add(measure(x, mask, True))
            with under(layer, None, None):
                return own(*args, **kwargs)
        if known and mask is None and _enough(x):
            y, sample = by_own_statistics(layer, *args, **kwargs)
            tally.add(sample)
            return y
        sample = measure(x, mask, False)
        tally.add(sample)
        with under(layer, *_usable(sample, tally, layer)):
            return own(*args, **kwargs)

    return forward


def _enough(x: Tensor) -> bool:
    return x.dim() >= 2 and x.numel() > x.shape[1]


def _usable(sample: Sample, tally: Tally, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) of this call; of all calls so far where this one tells no variance."""
    if int(sample.values) >= 2:
        return sample.table[0], sample.table[1]
    if tally.values >= 2:
        return tally.moments.mean, tally.moments.var(correction=0)
    return statistics(layer)


def settle(layer: nn.Module, tally: Tally) -> Callable[..., Any]:
    """A stand-in for the layer's forward: evaluation under the tally's statistics, rounded as they will be written."""
    own, found = layer.forward, tally.read()
    assert found is not None
    mean, var = (new.to(old) for new, old in zip(found, statistics(layer), strict=True))

    def forward(*args: Any, **kwargs: Any) -> Any:
        with under(layer, mean, var):
            return own(*args, **kwargs)

    return forward
