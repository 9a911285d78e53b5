"""Outputs of norms that are computed again in the backward instead of kept: `with normkit.recompute_outputs()`.

A norm keeps its input for its own backward, and the convolution behind it keeps the norm's output: the same values
twice. Inside the context, what autograd keeps for such an output is its recipe (the input, which is kept anyway, the
statistics and the parameters), and the backward makes the output from it, bit for bit, by the saved statistics.

Rules:
- a norm's recipe exists once its statistics are kept through the context, so its input is kept too; it belongs to what
  autograd keeps and to nothing else, and is gone when that is;
- an output is known by its memory and its version: after a change in place it is kept like any other tensor;
- a residual is taken from its own recipe, or as it is if somebody keeps it anyway; else keeping it in place of the
  output would save nothing, and the output is kept;
- whatever is kept must not change until the backward: autograd does not look where there are hooks, so this does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Parameter

from .._operands import Operands
from .._torch import count_dispatch_modes, is_zerotensor, keep_object, version_of, without_dispatch_modes
from . import _autograd
from .spec import NormSpec

Keeper = Callable[[], Tensor]  # what autograd keeps: calling it gives the tensor

_MODIFIED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: "
    "[{} {}] is at version {}; expected version {} instead."
)


@contextmanager
def recompute_outputs(*, depth: int = 2) -> Iterator[None]:
    """Keep no norm's output for the backward inside the `with` block: compute it again from the norm's input.

    ``with nk.recompute_outputs(): loss = f(model(x))``; the backward may run inside or outside. Gradients are
    bit-identical, running statistics move once, and each output costs one more pass over memory. Served are the norms
    on fused kernels (``normkit info`` names the path), in training and evaluation, with their residual and fused
    activation; everything else is kept as always. No effect: under torch.no_grad, inside of torch.compile and of
    activation checkpoints, on outputs changed in place, or in other threads than this one. Changes through ``.data``
    between the norm and the layer behind it are not seen.

    Args:
        depth: how many norms in a row are computed again for one output, where the residual of a norm is itself a
            norm's output, and so on. The output that would exceed it is kept.

    Raises:
        ValueError: a depth below 1.
        RuntimeError: inside torch.func transforms, which allow no hooks on saved tensors; in the backward, where the
            norm's input or parameters have been modified in place (torch's text).
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, the output's own norm, got {depth}")
    if torch.compiler.is_compiling():
        yield
        return
    outer = _local.recorder
    recorder = _Recorder(depth, outer)
    with saved_tensors_hooks(recorder.pack, _unpack):
        _local.recorder = recorder
        _listen(1)
        try:
            yield
        finally:
            _listen(-1)
            _local.recorder = outer


class _Kept:
    """A tensor kept as it is."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output would keep its own graph
        self.version = version_of(tensor)

    def __call__(self) -> Tensor:
        tensor = self.tensor
        if version_of(tensor) != self.version:
            raise RuntimeError(_MODIFIED.format(tensor.type(), list(tensor.shape), version_of(tensor), self.version))
        return tensor


class _Recipe:
    """How one norm's output is made. sources: the operands, stats: bytes: as they are kept.

    An output that is made on the way to another, or for one of several layers behind it, stays until the last layer
    that waits for it has it: each is made once a backward, while the layers after it have given up what they kept.
    """

    __slots__ = ("__weakref__", "address", "depth", "made", "make", "output", "sources", "stats", "version", "waiting")

    def __init__(
        self,
        make: Callable[[Operands], Tensor],
        output: Tensor,
        stats: Tensor,
        sources: list[Keeper | None],
        depth: int,
    ) -> None:
        self.make, self.stats, self.sources, self.depth = make, stats.detach(), sources, depth
        self.output, self.version, self.address = ref(output), version_of(output), _address(output)
        self.waiting = 0  # what is kept of this output and was not asked for yet
        self.made: Tensor | None = None

    def living(self) -> Tensor | None:
        """The forward's output, if it is still there and as it was."""
        output = self.output()
        if output is None:
            return None
        keep_object(output)  # where only C++ held the tensor
        return output if version_of(output) == self.version and _address(output) == self.address else None

    def __call__(self) -> Tensor:
        output = self.living()
        if output is not None:
            return output.detach()
        output = self._make() if self.made is None or version_of(self.made) else self.made
        self.made = output if self.waiting > 0 else None
        return output

    def _make(self) -> Tensor:
        input, *others = (None if source is None else source() for source in self.sources)
        assert input is not None
        return self.make(Operands(input, *others))  # all detached: no graph is made

    def statistics(self) -> Tensor:
        """The statistics as autograd keeps them: their bytes."""
        return self.stats


class _Output:
    """A norm's output, or a view of it, kept as the recipe. waits: the output is wanted once more than so far."""

    __slots__ = ("recipe", "view", "waits")

    def __init__(self, recipe: _Recipe, tensor: Tensor, waits: bool) -> None:
        self.recipe, self.waits = recipe, waits
        recipe.waiting += waits
        place, output = _place(tensor), recipe.output()
        self.view = None if output is not None and place == _place(output) else place

    def __call__(self) -> Tensor:
        self.recipe.waiting -= self.waits
        self.waits = False
        output = self.recipe()
        return output if self.view is None else output.as_strided(*self.view)


class _Recorder:
    """The hooks of one context: knows, without keeping them alive, the norms' outputs and what is kept."""

    def __init__(self, depth: int, outer: _Recorder | None) -> None:
        self.depth = depth
        self.newest: ref[_Recipe] | None = None
        # by the address of the memory
        self.recipes: WeakValueDictionary[int, _Recipe] = outer.recipes if outer else WeakValueDictionary()
        self.kept: WeakValueDictionary[int, _Kept] = outer.kept if outer else WeakValueDictionary()

    def record(self, norm: NormSpec, kernel: ModuleType, output: Tensor, stats: Tensor, operands: Operands) -> None:
        """Make the recipe of a norm's output, unless it would save nothing. stats: their bytes, as they are kept."""
        again = norm.for_recompute(kernel, operands, stats.view(torch.float64))
        if again is None:
            return
        input, residual = operands.input, operands.residual
        of_input = self._recipe_of(input)
        of_residual = None if residual is None else self._recipe_of(residual)
        if residual is not None and of_residual is None and not self._is_kept(residual):
            return
        depth = 1 + max(0 if found is None else found.depth for found in (of_input, of_residual))
        if depth > self.depth or not _address(output):
            return
        recipes = (of_input, None, None, of_residual, None)  # of the operands
        sources = [_source(tensor, recipe) for tensor, recipe in zip(operands[:5], recipes, strict=True)]
        recipe = _Recipe(lambda given: again.forward(kernel, given, False)[0], output, stats, sources, depth)
        # the statistics own it until they are kept; nobody does if that never happens
        stats.__dict__["recipe"], self.newest = recipe, ref(recipe)

    def pack(self, tensor: Tensor) -> Keeper:
        """What autograd keeps for `tensor`."""
        if tensor.is_leaf:  # parameters, statistics, bits
            newest = None if self.newest is None else self.newest()
            if newest is None or _address(tensor) != _address(newest.stats):
                return _Kept(tensor)
            self.newest, self.recipes[newest.address] = None, newest
            return newest.statistics
        recipe = self._recipe_of(tensor)
        if recipe is not None:
            return _Output(recipe, tensor, waits=True)
        kept = self.kept[_address(tensor)] = _Kept(tensor)
        return kept

    def _recipe_of(self, tensor: Tensor) -> _Recipe | None:
        recipe = None if tensor.is_leaf else self.recipes.get(_address(tensor))
        if recipe is None or version_of(tensor) != recipe.version:
            return None
        output = recipe.living()
        return recipe if output is not None and output.dtype == tensor.dtype else None

    def _is_kept(self, tensor: Tensor) -> bool:
        kept = self.kept.get(_address(tensor) or -1)
        return kept is not None and kept.version == version_of(kept.tensor) == version_of(tensor)


def _source(tensor: Tensor | None, recipe: _Recipe | None) -> Keeper | None:
    """How a recipe holds one of its tensors."""
    if tensor is None or recipe is None:
        return None if tensor is None else _Kept(tensor)
    return _Output(recipe, tensor, waits=False)


def _address(tensor: Tensor) -> int:
    """Where the memory is that the tensor shares with its views; 0: nowhere that could tell tensors apart."""
    if (type(tensor) is not Tensor and type(tensor) is not Parameter) or tensor.layout is not torch.strided:
        return 0
    if is_zerotensor(tensor):
        return 0
    return tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    """What as_strided takes."""
    return tensor.size(), tensor.stride(), int(tensor.storage_offset())


def _unpack(held: Keeper) -> Tensor:
    if not count_dispatch_modes():
        return held()
    with without_dispatch_modes():  # what was kept is memory, whatever a mode of the backward makes of operations
        return held()


class _Local(threading.local):
    """Hooks on saved tensors hold for their thread."""

    recorder: _Recorder | None = None


_local = _Local()
_lock = threading.Lock()
_listeners = 0


def _listen(more: int) -> None:
    """Have the fused kernels tell of their outputs while any thread is in a context."""
    global _listeners
    with _lock:
        _listeners += more
        _autograd.output_listener = _record if _listeners else None


def _record(*arguments: Any) -> None:
    if _local.recorder is not None:
        _local.recorder.record(*arguments)
