"""The block: who follows the calls inside of it, and how.

Rules: the model stays as it is, what is followed are the calls of this thread: its functions of torch by a
TorchFunctionMode, the calls of its modules by global hooks, which look on in other threads. The innermost block counts.
What is known hangs on no tensor: it is gone with the block.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from .._operands import Operands, is_modulated
from .._torch import (
    count_function_modes,
    frame_compiler,
    is_dynamo_loaded,
    keywords_of_call,
    pop_function_mode,
    run_compiled_eagerly,
)
from ..functional import mask as masks
from ..functional.road import run
from ..functional.spec import NormSpec
from ..kernels.composed import cleared
from ..model.interrupts import UserBlock
from . import norms
from .follow import beside, follow, name_of, tensors_in
from .padding import Padding
from .track import LOST, Track


class _Local(threading.local):
    block: Padded | None = None  # the innermost one, unless one of its own calls is being made


_local = _Local()
_entered: list[Padded] = []  # of all threads
_lock = threading.RLock()  # a signal's handler may leave a block in the midst of this thread's


class Padded(UserBlock):
    """The block of :func:`lengths` and :func:`mask`."""

    def __init__(self, padding: Padding, zero_input: bool, zero_convolutions: bool) -> None:
        super().__init__()
        self.padding, self.zero_input, self.zero_convolutions = padding, zero_input, zero_convolutions
        self._inside = False

    def __enter__(self) -> Padded:
        if self._inside:
            raise RuntimeError("this block is already entered: make another with normkit.lengths")
        return super().__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        inside = self._inside
        ended = super().__exit__(*error)
        if inside and error[0] is None:
            self._report()
        return ended

    def begin(self) -> None:
        """Begin to follow this thread's calls."""
        refuse_compiled()
        self._tracks = WeakTensorKeyDictionary()
        self._sizes: dict[tuple[int, int], Tensor] = {}
        self._depth, self._arrived = 0, False
        self._taken, self._missed, self._lost_at = 0, 0, ""
        self._outer, self._modes = _local.block, count_function_modes()
        self._hooks: list[RemovableHandle] = []
        self._eager: AbstractContextManager[Any] | None = None
        self._quiet: Any = None
        self._inside = True
        with _lock:
            _entered.append(self)
            masks.follow, masks.find = _norm_of_ours, _find
        if is_dynamo_loaded():  # else nothing is compiled yet
            self._eager = run_compiled_eagerly()
            self._quiet = _without_warning()
        self._hooks.append(register_module_forward_pre_hook(self._before_module))
        self._hooks.append(register_module_forward_hook(self._after_module, always_call=True))
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
            self._eager = None
        if self._quiet in warnings.filters:
            warnings.filters.remove(self._quiet)  # type: ignore[attr-defined]  # a list
        with _lock:
            if self in _entered:
                _entered.remove(self)
            if not _entered:
                masks.follow = masks.find = None
        self._tracks.clear()
        self._inside = False

    def lengths_of(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """How many positions of each sample of a tensor are real along its axis `dim`, inside of the block: int64 (N,),
        as a loss over the outputs needs them.

        Raises ValueError where that is not known: the tensor has no such padded axis, or the block is over.
        """
        track = self._tracks.get(tensor, LOST) if self._inside else LOST
        span = track.spans.get(dim % max(1, tensor.dim()))
        if span is None:
            raise ValueError(f"nothing is known of padding along axis {dim} of a tensor of shape {tuple(tensor.shape)}")
        return span.real.clone()

    # -- what comes in ------------------------------------------------------------------------------------------------
    def _before_module(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if _local.block is not self:
            return None
        self._depth += 1
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise RuntimeError(
                "nn.DataParallel runs its replicas in threads of its own, which this block does not reach: use "
                "DistributedDataParallel, or enter the block inside of the module that is replicated"
            )
        if self._depth > 1:
            return None
        return self._arrive(module, args, keywords_of_call())

    def _after_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if _local.block is not self:
            return
        self._depth = max(0, self._depth - 1)
        made = [one for one in tensors_in((output,)) if one not in self._tracks]
        if made:  # by an autograd Function or a scripted module, whose calls are no functions of torch
            found = [(one, track) for one in tensors_in(args) if (track := self._tracks.get(one)) is not None]
            with _aside():
                for one in made if found else ():
                    self._note(one, beside(one, found, self._known))

    def _arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Know the inputs of an outermost module. kwargs: those of its call, which are changed in place."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(value in self._tracks for value in given):
            return None
        with _aside():
            tracks = self.padding.found(module, given, self._arrived)
            self._arrived |= bool(tracks)
            zeroed = {}
            for value, track in tracks:
                if self.zero_input and value.is_floating_point():
                    zeroed[id(value)] = cleared(value, track.mask(value))
                self._note(zeroed.get(id(value), value), track)
        kwargs.update({name: zeroed[id(value)] for name, value in kwargs.items() if id(value) in zeroed})
        return tuple(zeroed.get(id(value), value) for value in args) if zeroed else None

    # -- what is followed ---------------------------------------------------------------------------------------------
    def _call(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A function of torch."""
        refuse_compiled()
        if function in norms.NORMS:
            x: Any = args[0] if args else kwargs.get("input")
            track = self._tracks.get(x, LOST)
            y = norms.masked(function, args, kwargs, track)
            self._count(y is not None, x, "normalized_shape" in norms.NORMS[function][1])
            y = function(*args, **kwargs) if y is None else y
            if x in self._tracks:
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
        track = self._tracks.get(operands.input, LOST)
        mask = operands.mask if operands.mask is not None else norms.mask_for(norm, operands.input, track)
        self._count(mask is not None, operands.input, hasattr(norm, "normalized_shape"))
        y = run(norm, *operands[:4], mask, operands[5:] if is_modulated(operands) else None)
        if operands.input in self._tracks:
            self._note(y, track)
        return y

    def _note(self, tensor: Tensor, track: Track) -> None:
        self._tracks[tensor] = track
        for axis, span in track.spans.items():
            self._sizes.setdefault((span.origin, tensor.shape[axis]), span.real)

    def _known(self, origin: int, size: int) -> Tensor | None:
        """The lengths of the first tensor whose padded axis had this size."""
        return self._sizes.get((origin, size))

    def _count(self, masked: bool, x: Tensor, rows: bool) -> None:
        """Note whether a norm took a mask. rows: it normalizes each position for itself, and is right without; so is
        one without positions, and one over a single sample, such as of weights."""
        self._taken += masked
        self._missed += not masked and not rows and x.dim() > 2 and x.shape[0] > 1

    def _mask_of(self, x: Tensor) -> Tensor | None:
        track = self._tracks.get(x)
        mask = None if track is None else norms.of_channels(track, x)
        self._taken += mask is not None
        return mask

    def _report(self) -> None:
        where = f" (it was lost at torch's {self._lost_at})" if self._lost_at else ""
        if not self._taken:
            warnings.warn(
                f"normkit.lengths: no norm inside of the block took a mask{where}: was a model called, is dim="
                f"{self.padding.dims} its padded axis, are its norms modules or functions of torch.nn?",
                stacklevel=3,
            )
        elif self._missed:
            warnings.warn(
                f"normkit.lengths: {self._missed} calls of norms took no mask, since the padded axis of their input is "
                f"not known{where}; {self._taken} took one",
                stacklevel=3,
            )


def refuse_compiled() -> None:
    """RuntimeError inside of a program that is captured, or of what is left of it between graphs."""
    if torch.compiler.is_compiling() or callable(frame_compiler()):
        raise RuntimeError(
            "normkit.lengths follows a run in eager mode, and this is torch.compile or torch.export: enter the block "
            "around the call of a compiled model, which then runs eagerly, or give the norms their mask: "
            "norm(x, mask=mask)"
        )


def _without_warning() -> Any:
    """A filter that keeps torch from warning that compiled modules and global hooks, here ours, may not go together."""
    warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
    return warnings.filters[0]


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
    """`masks.follow`."""
    block = _local.block
    if block is None:
        return None
    with _aside():
        return block._norm(norm, operands)


def _find(x: Tensor) -> Tensor | None:
    """`masks.find`."""
    block = _local.block
    if block is None:
        return None
    with _aside():
        return block._mask_of(x)
