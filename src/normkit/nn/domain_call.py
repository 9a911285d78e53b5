"""Which domain a call of a domain batch norm is of (`nk.domain`), and a call whose samples are of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import _shapes
from .._operands import Maybe, Modulate
from ..functional.choose import changing, leave
from ..functional.modulate import lay_one, pair
from .base import Given

Domain: TypeAlias = "int | Tensor"

# The domain of the innermost `with normkit.domain(...)`. A module global, because Dynamo guards those.
_current: Domain | None = None
_entered: list[list[Domain]] = []  # of each block, in their order


@contextmanager
def domain(which: Domain) -> Iterator[None]:
    """Compute every :class:`DomainBatchNorm2d` and its kin inside the `with` block as this domain.

    Holds for all threads of the process. A domain given to a layer's call goes before. Under an activation checkpoint
    enter it inside of the checkpointed function: its recomputation runs in the backward.

    Args:
        which: the domain's number from 0, or int64 (N,), a number for each sample of the batch.

    Raises:
        TypeError: neither an integer nor a tensor of integers.

    Example:
        >>> with normkit.domain(1):
        ...     logits = model(target_images)
    """
    global _current
    verify(which)
    own = [which]
    try:
        with changing():
            _entered.append(own)
            _current = which
        yield
    finally:
        with changing():
            _current = leave(own, _entered)


def current() -> Domain | None:
    """The domain of the innermost block."""
    return _current


def verify(domain: Any) -> None:
    """Raise TypeError for what is neither a number nor numbers."""
    if isinstance(domain, Tensor):
        if domain.is_floating_point() or domain.is_complex() or domain.dtype == torch.bool:
            raise TypeError(f"domain must be integers, a number for each sample, got {domain.dtype}")
    elif isinstance(domain, bool) or not isinstance(domain, int):
        raise TypeError(f"domain must be an integer or a tensor of integers (N,), got {type(domain).__name__}")


@dataclass(slots=True, eq=False)
class DomainCall:
    """What a batch norm layer is called with."""

    input: Tensor
    residual: Maybe
    mask: Maybe
    activation: Given
    modulate: Modulate

    def by(self, norm: nn.Module) -> Tensor:
        """This call of `norm`; a layer that takes the input alone serves the plain one."""
        given: dict[str, Any] = {}
        if self.residual is not None:
            given["residual"] = self.residual
        if self.mask is not None:
            given["mask"] = self.mask
        if self.activation is not None:
            given["activation"] = self.activation
        if self.modulate is not None:
            given["modulate"] = self.modulate
        output: Tensor = norm(self.input, **given)
        return output

    def verified(self) -> DomainCall:
        """The same call, its operands seen to fit the whole batch: a domain's norm sees its samples alone, which others
        may fit by chance. Raises what that norm would for a batch of one domain."""
        if self.residual is not None:
            _shapes.verify_residual(self.residual, self.input)
        mask = _shapes.optional_channel_mask(self.mask, self.input)
        modulate = self.modulate
        if modulate is not None:
            scale, shift = pair(modulate)
            modulate = lay_one("scale", scale, self.input, 0), lay_one("shift", shift, self.input, 0)
        return DomainCall(self.input, self.residual, mask, self.activation, modulate)

    def of(self, samples: Tensor) -> DomainCall:
        """The call of these samples alone. samples: their places in the batch, (n,)."""
        n = self.input.shape[0]

        def taken(tensor: Maybe) -> Maybe:
            if tensor is None or tensor.dim() == 0 or tensor.shape[0] != n:
                return tensor  # one for all samples
            return tensor.index_select(0, samples.to(tensor.device))

        modulate = self.modulate
        if modulate is not None:
            scale, shift = pair(modulate)
            modulate = taken(scale), taken(shift)
        return DomainCall(
            self.input.index_select(0, samples.to(self.input.device)), taken(self.residual), taken(self.mask),
            self.activation, modulate,
        )  # fmt: skip

    def under(self, here: Tensor) -> DomainCall:
        """The same call with all samples hidden but those of `here`, bool (N,)."""
        mask = here.to(self.input.device).reshape(-1, *[1] * (self.input.dim() - 1))
        mask = mask if self.mask is None else mask & _shapes.channel_mask(self.mask, self.input)
        return DomainCall(self.input, self.residual, mask, self.activation, self.modulate)


def by_parts(norms: Iterable[nn.Module], call: DomainCall, which: Tensor, *, everywhere: bool) -> Tensor:
    """Each domain's samples by its norm. which: (N,), readable; everywhere: also where a domain has no sample."""
    input, places, parts = call.input, [], []
    for number, norm in enumerate(norms):
        samples = (which == number).nonzero().flatten()
        if len(samples) == len(which) and not everywhere:
            return call.by(norm)
        if len(samples) or everywhere:
            places.append(samples.to(input.device))
            parts.append(call.of(samples).by(norm))
    if not parts:
        return torch.empty_like(input)  # a batch without a sample
    y = torch.empty_like(input, dtype=parts[0].dtype)  # in the input's memory format
    return y.index_copy_(0, torch.cat(places), torch.cat(parts))


def by_masks(norms: Iterable[nn.Module], call: DomainCall, which: Tensor) -> Tensor:
    """The same where the numbers cannot be read: each norm over all samples, with those of other domains hidden."""
    total: Maybe = None
    for number, norm in enumerate(norms):
        part = call.under(which == number).by(norm)  # zero at other domains' samples
        total = part if total is None else total + part
    assert total is not None
    return total
