"""The block: `with nk.lengths(lengths): model(x)`.

Rules: the model stays as it is, what is followed are the calls of this thread: its functions of torch by a
TorchFunctionMode, the calls of its modules by global hooks, which look on in other threads. The innermost block counts.
What is known hangs on no tensor: it is gone with the block.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .._operands import Operands
from .._torch import count_function_modes, keywords_of_call, pop_function_mode, run_compiled_eagerly
from ..functional import ambient
from ..functional.road import run
from ..functional.spec import NormSpec
from ..kernels.composed import cleared
from ..model.families import family
from ..model.interrupts import UserBlock
from . import norms
from .follow import follow, name_of
from .track import LOST, Span, Track


def lengths(
    lengths: Tensor | Sequence[int], dim: int = -1, *, zero_input: bool = False, zero_convolutions: bool = True
) -> Padded:
    r"""Run models on a padded batch so that padding counts nowhere: each sample as if it were alone.

    ``with nk.lengths(lengths): y = model(x)``. Inside of the block every norm, normkit's and plain torch.nn's, takes the
    mask that fits its own input, and what reaches over a sample's end meets what it would meet without neighbours. The
    lengths behind each layer follow its own formula, with kernel k, stride s, padding p, dilation d:

    .. math:: \text{convolution:} \quad \Big\lfloor \frac{L + 2p - d(k - 1) - 1}{s} \Big\rfloor + 1
    .. math:: \text{transposed:} \quad (L - 1)s - 2p + d(k - 1) + p_{out} + 1

    A pool is a convolution (with ceil_mode rounded up); adaptive pools, upsampling and mirrored borders are computed for
    each sample alone; views, slices, joins and transpositions carry the axis along. Only where nothing else is known are
    the lengths the same share of the new size as of the old one.

    In evaluation every sample's result is that of the sample alone, in training too with group, instance and layer
    norm; batch norm in training uses the moments of all real values of the batch, and moves its running statistics by
    them. Behind a sample's end norms, convolutions and pools give zeros.

    Args:
        lengths: (N,), integers of 0 or more: how many positions of each sample are real, from the first on.
        dim: which axis of the input of the model (of the outermost module called) is padded. The batch is axis 0; with
            dim=0 it is axis 1. Inputs: (N, T) or (N, C, T), dim=-1; (N, T, C), dim=1; (T, N, C), dim=0.
        zero_input: put zeros where the input is padding, for padding that holds junk (NaN too).
        zero_convolutions: convolutions, pools, paddings and upsampling meet zeros behind each sample's end and leave
            zeros there. False: they compute what they always do, and norms alone take masks.

    Attention keeps the model's own mask: give the model its lengths or attention_mask as always. So do recurrent layers,
    means over time that are written as such, and norms written out by hand that average over time.

    The model is not touched; blocks nest (the inner one counts), each thread has its own. Modules compiled by
    torch.compile run eagerly inside. DistributedDataParallel works (each rank has its own lengths). Under an activation
    checkpoint enter the block inside of the checkpointed function, not around it, unless the backward runs inside the
    block too.

    Raises:
        TypeError: lengths are not integers.
        ValueError: lengths are not one number of 0 or more for each sample of the batch, or one is longer than the
            padded input; the input has no axis `dim`.
        RuntimeError: inside of torch.compile or torch.export; nn.DataParallel over several devices, whose threads the
            block does not reach.

    Warns (UserWarning) when the block ends and no norm took a mask, or one could not: the padded axis was lost on the
    way, and it says where.

    Example:
        >>> with normkit.lengths(lengths, dim=1):
        ...     frames, frame_lengths = conformer(features, lengths)
    """
    given = torch.as_tensor(lengths)
    if given.numel() == 0:
        given = given.long()  # an empty list has torch's default dtype
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {given.dtype}: use lengths.long()")
    if given.dim() != 1:
        raise ValueError(f"lengths must be one number a sample, shape (N,), got shape {tuple(given.shape)}")
    given = given.detach().cpu().long()
    if bool((given < 0).any()):
        raise ValueError(f"every length must be 0 or more, got {int(given.min())}")
    return Padded((dim,), (given,), None, zero_input, zero_convolutions)


def mask(
    mask: Tensor, dim: int | Sequence[int] | None = None, *, zero_input: bool = False, zero_convolutions: bool = True
) -> Padded:
    """As :func:`lengths`, from a mask of the input's positions; padding may lie on several axes, as of images of
    different sizes.

    Args:
        mask: bool, (N, T) or (N, *spatial), True = a real value. Along each axis the real values come first and then the
            padding, so that a sample's real values are a box in the first corner.
        dim: which axes of the input are the mask's axes behind the batch, in order; None: the last ones.
        zero_input, zero_convolutions: as there.

    Raises:
        TypeError: the mask is not a bool tensor.
        ValueError: real values that are no such box; and as `lengths`. A mask of another form belongs into the norms:
            ``norm(x, mask=mask)``.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor (True = a real value), got {what}: use mask.bool()")
    if mask.dim() < 2:
        raise ValueError(f"mask must have the shape (N, T) or (N, *spatial), got {tuple(mask.shape)}")
    rank = mask.dim() - 1
    dims = tuple(range(-rank, 0)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if len(dims) != rank:
        raise ValueError(f"dim must name one axis of the input for each of the mask's {rank} behind the batch, got {dim}")
    mask = mask.detach().cpu()
    found = []
    for axis in range(1, rank + 1):
        others = [other for other in range(1, rank + 1) if other != axis]
        along = mask.amax(others) if others else mask
        found.append(along.sum(1))
    box = Track(0, {axis: Span(axis, real) for axis, real in enumerate(found, start=1)}).real(mask.shape)
    if not torch.equal(box.expand(mask.shape), mask):
        raise ValueError(
            "along each axis a sample's real values must come first and its padding behind them; give a mask of another "
            "form to the norms themselves: norm(x, mask=mask)"
        )
    return Padded(dims, tuple(found), tuple(mask.shape[1:]), zero_input, zero_convolutions)


class _Local(threading.local):
    block: Padded | None = None  # the innermost one, unless one of its own calls is being made


_local = _Local()
_entered: list[Padded] = []  # of all threads


class Padded(UserBlock):
    """The block of :func:`lengths` and :func:`mask`."""

    def __init__(
        self,
        dims: tuple[int, ...],
        real: tuple[Tensor, ...],
        sizes: tuple[int, ...] | None,
        zero_input: bool,
        zero_convolutions: bool,
    ) -> None:
        super().__init__()
        if torch.compiler.is_compiling():
            raise RuntimeError(_COMPILING)
        self.dims, self.real, self.sizes = dims, real, sizes
        self.zero_input, self.zero_convolutions = zero_input, zero_convolutions
        self._inside = False

    def __exit__(self, *error: Any) -> bool | None:
        inside = self._inside
        ended = super().__exit__(*error)
        if inside and error[0] is None:
            self._report()
        return ended

    def begin(self) -> None:
        """Begin to follow this thread's calls."""
        if self._inside:
            raise RuntimeError("this block is already entered: make another with normkit.lengths")
        self._tracks = WeakTensorKeyDictionary()
        self._sizes: dict[tuple[int, int], Tensor] = {}
        self._depth, self._taken, self._missed, self._lost_at = 0, 0, 0, ""
        self._outer, self._modes, self._eager = _local.block, count_function_modes(), None
        self._inside = True
        _entered.append(self)
        ambient.follow, ambient.find = _norm_of_ours, _find
        self._hooks = [
            register_module_forward_pre_hook(self._before_module),
            register_module_forward_hook(self._after_module, always_call=True),
        ]
        _Mode(self).__enter__()
        _local.block = self

    def leave(self) -> None:
        """Everything as it was."""
        if not self._inside:
            return
        _local.block = self._outer
        while count_function_modes() > self._modes:
            pop_function_mode()
        for hook in self._hooks:
            hook.remove()
        if self._eager is not None:
            self._eager.__exit__(None, None, None)
        if self in _entered:
            _entered.remove(self)
        if not _entered:
            ambient.follow = ambient.find = None
        self._tracks.clear()
        self._inside = False

    # -- what comes in ------------------------------------------------------------------------------------------------
    def _before_module(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if _local.block is not self:
            return None
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise RuntimeError(
                "nn.DataParallel runs its replicas in threads of its own, which this block does not reach: use "
                "DistributedDataParallel, or enter the block inside of the module that is replicated"
            )
        self._depth += 1
        if self._depth > 1:
            return None
        if self._eager is None and "torch._dynamo" in sys.modules:
            self._eager = run_compiled_eagerly()
        return self._arrive(module, args, keywords_of_call())

    def _after_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if _local.block is self and self._depth > 0:
            self._depth -= 1

    def _arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Know the inputs of an outermost module. kwargs: those of its call, in place."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not given or any(value in self._tracks for value in given):
            return None
        found = [value for value in given if value.dim() > 1]
        found = [value for value in found if value.is_floating_point()] or found
        if not found:
            return None
        try:
            batch, axes = self._axes(found[0])
        except ValueError:
            with _aside():
                if any(family(part) is not None for part in module.modules()):
                    raise
            return None  # a loss or a metric
        sizes = [found[0].shape[axis] for axis in axes]
        zeroed: dict[int, Tensor] = {}
        for value in given:
            if value.dim() <= max(*axes, batch) or value.shape[batch] != found[0].shape[batch]:
                continue
            if any(value.shape[axis] != size for axis, size in zip(axes, sizes, strict=True)):
                continue
            track = Track(batch, {axis: Span(i, real) for i, (axis, real) in enumerate(zip(axes, self.real, strict=True))})
            if self.zero_input and value.is_floating_point():
                with _aside():
                    zeroed[id(value)] = cleared(value, track.mask(value))
            self._note(zeroed.get(id(value), value), track)
        for name, value in kwargs.items():
            kwargs[name] = zeroed.get(id(value), value)
        return tuple(zeroed.get(id(value), value) for value in args) if zeroed else None

    def _axes(self, x: Tensor) -> tuple[int, tuple[int, ...]]:
        """(the axis of samples, the padded axes) of an input. Raises ValueError where it does not fit."""
        shape, rank = tuple(x.shape), x.dim()
        if any(not -rank <= dim < rank for dim in self.dims):
            raise ValueError(f"the input of shape {shape} has no axis {self.dims if len(self.dims) > 1 else self.dims[0]}")
        axes = tuple(dim % rank for dim in self.dims)
        batch = 1 if 0 in axes else 0
        if batch in axes:
            raise ValueError(f"axis {batch} of the input of shape {shape} is that of the samples, got dim={self.dims}")
        count = len(self.real[0])
        if shape[batch] != count:
            raise ValueError(
                f"lengths are for {count} samples, and the input of shape {shape} has {shape[batch]} along axis {batch}: "
                "expected one length a sample"
            )
        for axis, real, size in zip(axes, self.real, self.sizes or (None,) * len(axes), strict=True):
            longest = int(real.max()) if count else 0
            if longest > shape[axis]:
                raise ValueError(
                    f"every length must lie in 0..{shape[axis]}, the size of axis {axis} of the input of shape {shape}, "
                    f"got {longest}; is another axis padded? dim= says which"
                )
            if size is not None and size != shape[axis]:
                raise ValueError(
                    f"the mask has {size} positions where axis {axis} of the input of shape {shape} has {shape[axis]}; "
                    "dim= says which axes are its own"
                )
        return batch, axes

    # -- what is followed ---------------------------------------------------------------------------------------------
    def _call(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A function of torch."""
        if torch.compiler.is_compiling():
            raise RuntimeError(_COMPILING)
        if function in norms.NORMS:
            x = args[0] if args else kwargs.get("input")
            track = self._tracks.get(x) if isinstance(x, Tensor) else None
            if track is not None:
                y = norms.masked(function, args, kwargs, track)
                rows = "normalized_shape" in norms.NORMS[function][1]
                self._count(y is not None, x, rows and track.lost)
                y = function(*args, **kwargs) if y is None else y
                self._note(y, track)
                return y
        result, found = follow(function, args, kwargs, self._tracks.get, self.zero_convolutions, self._known)
        for tensor, track in found:
            self._note(tensor, track)
            if track.lost and not self._lost_at and tensor.dim() > 2:
                self._lost_at = name_of(function)
        return result

    def _norm(self, norm: NormSpec, operands: Operands) -> Tensor | None:
        """A norm of normkit."""
        track = self._tracks.get(operands.input)
        if track is None:
            return None
        mask = operands.mask if operands.mask is not None else norms.mask_for(norm, operands.input, track)
        self._count(mask is not None, operands.input, track.lost and hasattr(norm, "normalized_shape"))
        y = run(norm, *operands[:4], mask)
        self._note(y, track)
        return y

    def _note(self, tensor: Tensor, track: Track) -> None:
        self._tracks[tensor] = track
        for axis, span in track.spans.items():
            self._sizes.setdefault((span.origin, tensor.shape[axis]), span.real)

    def _known(self, origin: int, size: int) -> Tensor | None:
        """The lengths of the first tensor whose padded axis had this size."""
        return self._sizes.get((origin, size))

    def _count(self, masked: bool, x: Tensor, needless: bool) -> None:
        """Note whether a norm took a mask. needless: it normalizes each position for itself."""
        self._taken += masked
        self._missed += not masked and not needless and x.dim() > 2

    def _mask_of(self, x: Tensor) -> Tensor | None:
        track = self._tracks.get(x)
        return None if track is None else norms.of_channels(track, x)

    def _report(self) -> None:
        where = f" (it was lost at torch's {self._lost_at})" if self._lost_at else ""
        if not self._taken:
            warnings.warn(
                f"normkit.lengths: no norm inside of the block took a mask{where}: was a model called, is dim={self.dims} "
                "its padded axis, are its norms modules or functions of torch.nn?",
                stacklevel=3,
            )
        elif self._missed:
            warnings.warn(
                f"normkit.lengths: {self._missed} calls of norms took no mask, since the padded axis of their input is "
                f"not known{where}; {self._taken} took one",
                stacklevel=3,
            )


_COMPILING = (
    "normkit.lengths follows a run in eager mode, and this is torch.compile or torch.export: enter the block around the "
    "call of a compiled model, which then runs eagerly, or give the norms their mask: norm(x, mask=mask)"
)


class _Mode(TorchFunctionMode):
    """The functions of torch that this thread calls inside of a block."""

    def __init__(self, block: Padded) -> None:
        self.block = block

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _local.block is not self.block:
            return func(*args, **kwargs)
        with _aside():
            return self.block._call(func, args, kwargs)


class _aside:
    """The calls that a block makes itself are not followed. A class: contextlib's costs as much as a small kernel."""

    __slots__ = ("_block",)

    def __enter__(self) -> None:
        self._block, _local.block = _local.block, None

    def __exit__(self, *error: object) -> None:
        _local.block = self._block


def _norm_of_ours(norm: NormSpec, operands: Operands) -> Tensor | None:
    """`ambient.follow`."""
    block = _local.block
    if block is None:
        return None
    with _aside():
        return block._norm(norm, operands)


def _find(x: Tensor) -> Tensor | None:
    """`ambient.find`."""
    block = _local.block
    if block is None:
        return None
    with _aside():
        return block._mask_of(x)
