"""Stand in for a layer's forward: see its input, and let it normalize by statistics other than its own.

`put_in` puts stand-ins where layers' `forward` is; nothing else of a layer is touched, no hook, no counter, no buffer,
and who puts them in gives `FORWARD` back (see `model.kept.Kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .._torch import InstanceNormBase
from ..functional.mask import known_mask
from ..nn.base import TrackedNorm
from .accumulator import Accumulator
from .axis import AxisCheck
from .layers import Layer, running_statistics
from .lent import Lent
from .own_statistics import by_own_statistics, is_known
from .sample import Sample, sample

Forward = Callable[..., Any]
FORWARD = ("forward",)
_MARK = "_normkit_stands_in"


def put_in(forwards: Mapping[nn.Module, Forward]) -> None:
    """Make each layer's forward the given one.

    Raises RuntimeError where a layer already has a stand-in: two would measure each other.
    """
    if any(hasattr(module.__dict__.get("forward"), _MARK) for module in forwards):
        raise RuntimeError(
            "normkit.adapt or normkit.recalibrate is already at work on this model: leave that block first"
        )
    for module, forward in forwards.items():
        setattr(forward, _MARK, True)
        module.__dict__["forward"] = forward


def sampling(layer: Layer, accumulator: Accumulator, order: list[nn.Module]) -> Forward:
    """A stand-in for the layer's forward: under its input's own statistics, which it takes in."""
    module, own = layer.module, layer.module.forward
    known, check = is_known(module), AxisCheck(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        x, mask = arguments(module, args, kwargs)
        if check.refuses(own, x, args, kwargs):
            accumulator.refusal = check.refusal
            return own(*args, **kwargs)
        if accumulator.calls == 0:
            order.append(module)
        if layer.per_instance:
            accumulator.add(sample(x, mask, True))
            with Lent(module, None, None) as lent, lent:
                return own(*args, **kwargs)
        if known and mask is None and _enough(x):
            y, found = by_own_statistics(module, *args, **kwargs)
            accumulator.add(found)
            return y
        found = sample(x, mask, False)
        accumulator.add(found)
        with Lent(module, *_usable(found, accumulator, module)) as lent, lent:
            return own(*args, **kwargs)

    return forward


def _enough(x: Tensor) -> bool:
    return x.dim() >= 2 and x.numel() > x.shape[1]


def _usable(found: Sample, accumulator: Accumulator, module: nn.Module) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) of this call; of all calls so far where this one tells no variance."""
    if int(found.values) >= 2:
        return found.table[0], found.table[1]
    if accumulator.values >= 2:
        return accumulator.moments.mean, accumulator.moments.var(correction=0)
    return running_statistics(module)


def settled(module: nn.Module, accumulator: Accumulator) -> Forward:
    """A stand-in for the layer's forward: evaluation under what was accumulated, rounded as it will be written."""
    found = accumulator.read()
    assert found is not None
    mean, var = (new.to(old) for new, old in zip(found, running_statistics(module), strict=True))
    return under(module, mean, var)


def under(module: nn.Module, mean: Tensor, var: Tensor) -> Forward:
    """A stand-in for the layer's forward: evaluation under these statistics, (C,) each."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with Lent(module, mean, var) as lent, lent:
            return own(*args, **kwargs)

    return forward


def arguments(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """(input (N, C, *), mask) of one call: the mask that was given, which only normkit's layers take, or the one that a
    block of `normkit.lengths` around the call knows; only instance norms take inputs without a batch axis."""
    input = args[0] if args else kwargs.get("input", kwargs.get("x"))
    if not isinstance(input, Tensor):
        raise TypeError(f"expected a Tensor as the input of {type(layer).__name__}, got {type(input).__name__}")
    mask = None
    if isinstance(layer, TrackedNorm):
        mask = args[2] if len(args) > 2 else kwargs.get("mask")
    if isinstance(layer, InstanceNormBase) and input.dim() == getattr(layer, "_get_no_batch_dim", lambda: 0)():
        return input.unsqueeze(0), None if mask is None else mask.unsqueeze(0)
    return input, known_mask(input) if mask is None else mask
