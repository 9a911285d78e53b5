"""Watches one run of a model and writes down its calls and values; `dataflow` reads them.

Rules:
- Module calls are seen through hooks, functions and tensor methods through a torch function mode, and what both miss
  (scripted functions, C++ code) through a dispatch mode. What runs inside a recorded function belongs to it.
- No tensor is held alive: a tensor's present value is looked up by identity and version, weakly.
- Reading a shape, a dtype or a device consumes nothing; everything else does, views included. A function that hands its
  input on untouched (dropout in evaluation, `.contiguous()` of a dense tensor) makes no value and consumes none.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .._torch import (
    AttributeKey,
    ConvBase,
    MappingKey,
    SequenceKey,
    TorchDispatchMode,
    tree_node_type,
    tree_nodes,
    tree_path,
    version_of,
)
from .families import NORM_TYPES, is_frozen

_ATOM_TYPES: tuple[type[nn.Module], ...] = (*NORM_TYPES, ConvBase, nn.Linear)

# Methods that read facts about a tensor and none of its values.
_FACTS = frozenset(
    """size dim ndimension stride is_contiguous numel nelement element_size is_floating_point is_complex get_device
    storage_offset type is_tensor is_conj is_neg is_signed is_inference is_shared is_pinned is_set_to is_same_size
    has_names requires_grad_ retain_grad register_hook __len__ __repr__ __hash__ __format__ result_type""".split()  # noqa: SIM905  # as words it stays readable
)
_TENSOR_ATTRIBUTES = frozenset(("T", "mT", "H", "mH", "data", "real", "imag", "grad"))  # any other attribute is a fact

_SHAPE_OF_THE_SECOND = frozenset(("reshape_as", "view_as", "expand_as", "type_as"))


@dataclass(frozen=True)
class Value:
    """A tensor at one moment of the run; an in-place operation makes a new value of the same tensor.

    `producer` is the index of the function call that made it, None for what came from outside of the run.
    """

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    producer: int | None


@dataclass
class RecordedCall:
    """One call of a module (`module` is its qualified name) or of a function (`module` is None).

    `enclosing`: the module calls around it, outermost first. `inputs`, `outputs`: values. `labels`: the argument names
    of the inputs ("0", "1", ... for positional ones). `atom`: a module that is looked at as one step. `changed`: those
    of the inputs that a function has changed in place. kinds: of a module's positional and keyword arguments, what they
    are (`kind_of`).
    """

    index: int
    op: str
    module: str | None
    enclosing: tuple[int, ...]
    inputs: tuple[int, ...]
    labels: tuple[str, ...]
    outputs: tuple[int, ...] = ()
    atom: bool = False
    changed: tuple[int, ...] = ()
    kinds: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


def kind_of(argument: Any) -> Any:
    """What of an argument a forward may decide by: whether it is a tensor, a flag's value, and else its type."""
    if isinstance(argument, Tensor):
        return "tensor"
    return ("value", argument) if isinstance(argument, (bool, str, type(None))) else type(argument)


def is_atom(module: nn.Module) -> bool:
    """Whether the module is one step of the flow: no children, or a convolution, linear or normalization layer."""
    plain = isinstance(module, _ATOM_TYPES) or next(module.children(), None) is None
    return plain or is_frozen(module)  # which derives from no norm, in any library


class Recorder:
    """Turns tensors into values and calls into `RecordedCall`s while the model runs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names: dict[int, str] = {}  # id(module) -> its first qualified name
        for name, module in model.named_modules():
            self.names[id(module)] = name
        self.calls: list[RecordedCall] = []
        self.values: list[Value] = []
        self.readers: dict[int, list[RecordedCall]] = {}  # value -> the functions that read it
        self.tensors: dict[int, int] = {}  # id(parameter or buffer) -> its value when the run began
        self.inputs: tuple[int, ...] = ()
        self.outputs: tuple[int, ...] = ()
        self.output_names: tuple[str, ...] = ()
        self._opaque: list[Any] = []  # outputs that are no tensors
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor -> (version, value)
        self._stack: list[int] = []
        self._inside_function = False

    # -- values ---------------------------------------------------------------------------------------------------
    def value_of(self, tensor: Tensor, producer: int | None = None) -> int:
        """The present value of `tensor`; a tensor never seen, or changed since, gets a new one made by `producer`."""
        known, version = self._known.get(tensor), version_of(tensor)
        if known is not None and known[0] == version:
            return int(known[1])
        self.values.append(Value(len(self.values), tuple(tensor.shape), tensor.dtype, producer))
        self._known[tensor] = (version, self.values[-1].index)
        return self.values[-1].index

    def held_after_the_run(self) -> frozenset[int]:
        """Values that something outside still holds once the outputs are gone: a stashed feature map.

        An output that is no tensor may hold some: it is not gone yet.
        """
        if self._held():
            gc.collect()  # a reference cycle in a forward is no stash
        return self._held()

    def _held(self) -> frozenset[int]:
        own = {*self.outputs, *self.inputs}  # the model's own tensors are known by identity: a run may change them
        found = (int(value) for tensor, (_, value) in self._known.items() if id(tensor) not in self.tensors)
        return frozenset(found) - own

    # -- calls ----------------------------------------------------------------------------------------------------
    def record(self, op: str, run: Callable[[], Any], arguments: Any) -> Any:
        """Run a function as one call."""
        if self._inside_function:
            return run()
        call, tensors = self._begin(op, None, arguments), _tensors(arguments)
        self._inside_function = True
        try:
            output = run()
        finally:
            self._inside_function = False
        after = [self.value_of(tensor, call.index) for tensor in tensors]
        call.changed = tuple(value for value, now in zip(call.inputs, after, strict=True) if value != now)
        self._end(call, output)
        read = call.inputs[:1] if op in _SHAPE_OF_THE_SECOND else call.inputs
        for value in set(read) - set(call.outputs):
            self.readers.setdefault(value, []).append(call)
        return output

    def _begin(self, op: str, module: nn.Module | None, arguments: Any) -> RecordedCall:
        labels, inputs = [], []
        for path, leaf in named_leaves(arguments):
            if isinstance(leaf, Tensor):
                labels.append(str(getattr(path[1], "key", getattr(path[1], "idx", path[1]))))
                inputs.append(self.value_of(leaf))
        name = None if module is None else self._name(module)
        atom = module is not None and module is not self.model and is_atom(module)
        call = RecordedCall(len(self.calls), op, name, tuple(self._stack), tuple(inputs), tuple(labels), atom=atom)
        self.calls.append(call)
        return call

    def _end(self, call: RecordedCall, output: Any) -> None:
        call.outputs = tuple(self.value_of(tensor, call.index) for tensor in _tensors(output))

    # -- the run --------------------------------------------------------------------------------------------------
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the model once under hooks on every module, and both modes. Who calls this takes the hooks off again."""
        for module in self.model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks; its operations are seen
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave, with_kwargs=True)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            self.tensors[id(tensor)] = self.value_of(tensor)
        with _Dispatches(self), _Functions(self):
            self.inputs = tuple(self.value_of(tensor) for tensor in _tensors((args, kwargs)))
            self._note_outputs(self.model(*args, **kwargs))

    def _note_outputs(self, output: Any) -> None:
        leaves = named_leaves(output)
        named = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]
        self._opaque = [leaf for _, leaf in leaves if not isinstance(leaf, Tensor)]
        self.outputs = tuple(self.value_of(leaf) for _, leaf in named)
        self.output_names = tuple(output_name(path) for path, _ in named)

    def _name(self, module: nn.Module) -> str:
        return self.names.get(id(module), type(module).__name__)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._inside_function:
            call = self._begin(type(module).__name__, module, (args, kwargs))
            call.kinds = tuple(map(kind_of, args)), {name: kind_of(value) for name, value in kwargs.items()}
            self._stack.append(call.index)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self._stack and not self._inside_function:  # more than one where the model caught an exception on the way
            call = self.calls[self._stack.pop()]
            if call.module == self._name(module):
                return self._end(call, output)


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = func.__self__.__name__
            if name not in _TENSOR_ATTRIBUTES:
                return func(*args, **kwargs)
        if name in _FACTS:
            return func(*args, **kwargs)
        return self.recorder.record(name, lambda: func(*args, **kwargs), (args, kwargs))


class EagerDispatchMode(TorchDispatchMode):
    """A dispatch mode of eager runs. torch would import its compiler, for more than a second, to keep it out."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Dispatches(EagerDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self.recorder.record(str(func), lambda: func(*args, **kwargs), (args, kwargs))


def output_name(path: tuple[Any, ...]) -> str:
    """`output`, `output[0]`, `output['out']`: where in the model's result a tensor lies."""
    return "output" + tree_path(path)


def named_leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of a tree of containers, dataclasses among them, and their places."""
    children = _children(tree)
    if children is None:
        return [((), tree)]
    return [((key, *path), leaf) for key, child in children for path, leaf in named_leaves(child)]


def _children(tree: Any) -> list[tuple[Any, Any]] | None:
    """(key, child) of a container; None for a leaf."""
    handler = tree_nodes.get(tree_node_type(tree))
    if handler is not None and handler.flatten_with_keys_fn is not None:
        return list(handler.flatten_with_keys_fn(tree)[0])
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(AttributeKey(field.name), getattr(tree, field.name)) for field in fields(tree)]
    if handler is None:
        return None
    parts = handler.flatten_fn(tree)[0]  # registered without keys: a mapping has its own
    keys = [MappingKey(key) for key in tree] if isinstance(tree, Mapping) else map(SequenceKey, range(len(parts)))
    return list(zip(keys, parts, strict=True))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for _, leaf in named_leaves(tree) if isinstance(leaf, Tensor)]
