"""What is padded: the lengths that a block was given, checked, and which inputs of a model they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.mask import whole_numbers
from ..model.families import family
from .track import Span, Track


@dataclass(frozen=True, eq=False)
class Padding:
    """dims: the padded axes of an input. real: of each, int64 (N,) on the CPU, how many positions of each sample are
    real. sizes: of each, how many there are with the padding; None, any number."""

    dims: tuple[int, ...]
    real: tuple[Tensor, ...]
    sizes: tuple[int, ...] | None

    @staticmethod
    def of_lengths(lengths: Tensor | Sequence[int], dim: int) -> Padding:
        """One padded axis. Raises what `normkit.lengths` documents."""
        # not as_tensor of a tensor: it would move to the default device, which may hold no values
        given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
        given = whole_numbers(given, "sample").detach().cpu().long()
        if bool((given < 0).any()):
            raise ValueError(f"every length must be 0 or more, got {int(given.min())}")
        return Padding((dim,), (given,), None)

    @staticmethod
    def of_mask(mask: Tensor, dim: int | Sequence[int] | None) -> Padding:
        """The axes of a mask after that of samples. Raises what `normkit.mask` documents."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor (True = a real value), got {what}: use mask.bool()")
        if mask.dim() < 2:
            raise ValueError(f"mask must have the shape (N, T) or (N, *spatial), got {tuple(mask.shape)}")
        rank = mask.dim() - 1
        dims = tuple(range(-rank, 0)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
        if len(dims) != rank:
            raise ValueError(
                f"dim must name one axis of the input for each of the mask's {rank} behind the samples, got {dim}"
            )
        mask = mask.detach().cpu()
        along = [mask.movedim(axis, 1).flatten(2).any(2) if rank > 1 else mask for axis in range(1, rank + 1)]
        real = tuple(one.sum(1) for one in along)
        box = Track(0, {axis: Span(axis, one) for axis, one in enumerate(real, start=1)}).real(mask.shape)
        if not torch.equal(box.expand(mask.shape), mask):
            raise ValueError(
                "along each axis a sample's real values must come first and its padding behind them; give a mask of "
                "another form to the norms themselves: norm(x, mask=mask)"
            )
        return Padding(dims, real, tuple(mask.shape[1:]))

    def found(self, module: nn.Module, given: Sequence[Any], later: bool) -> list[tuple[Tensor, Track]]:
        """The padded tensors among a module's inputs: the first that may be one, and others of its samples and sizes.

        later: whether a module has been called before; then what does not fit is something else, as the steps of a
        decoder are. Raises ValueError where the first does not fit and holds a norm: others are losses or metrics.
        """
        several = [value for value in given if value.dim() > 1]
        several = [value for value in several if value.is_floating_point()] or several  # or tokens
        if not several:
            return []
        first = several[0]
        try:
            batch, axes = self._axes(first)
        except ValueError:
            if not later and any(family(part) is not None for part in module.modules()):
                raise
            return []
        counted = [batch, *axes]
        fitting = [
            value
            for value in given
            if value.dim() > max(counted) and all(value.shape[axis] == first.shape[axis] for axis in counted)
        ]
        spans = {axis: Span(place, real) for place, (axis, real) in enumerate(zip(axes, self.real, strict=True))}
        return [(value, Track(batch, spans)) for value in fitting]

    def _axes(self, x: Tensor) -> tuple[int, tuple[int, ...]]:
        """(the axis of samples, the padded axes) of an input. Raises ValueError where it does not fit."""
        shape, rank, count = tuple(x.shape), x.dim(), len(self.real[0])
        axes = tuple(dim % rank for dim in self.dims if -rank <= dim < rank)
        if len(axes) < len(self.dims):
            raise ValueError(f"the input of shape {shape} has no axis {', '.join(map(str, self.dims))}")
        batch = 1 if 0 in axes else 0
        if batch in axes:
            raise ValueError(f"axis {batch} of the input of shape {shape} is that of the samples, got dim={self.dims}")
        if shape[batch] != count:
            raise ValueError(
                f"lengths are for {count} samples, and the input of shape {shape} has {shape[batch]} along axis "
                f"{batch}: expected one length a sample"
            )
        for axis, real, size in zip(axes, self.real, self.sizes or (None,) * len(axes), strict=True):
            longest = int(real.max()) if count else 0
            if size is not None and size != shape[axis]:
                raise ValueError(
                    f"the mask has {size} positions where axis {axis} of the input of shape {shape} has {shape[axis]}; "
                    "dim= says which axes are its own"
                )
            if longest > shape[axis]:
                raise ValueError(
                    f"every length must lie in 0..{shape[axis]}, the size of axis {axis} of the input of shape "
                    f"{shape}, got {longest}; is another axis padded? dim= says which"
                )
        return batch, axes
