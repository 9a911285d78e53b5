"""Giving a model back as it was: one promise, kept here for everything that looks at a model or changes it.

What comes back, the same objects with the same content:

- the modules and their places, training modes, hooks, plain attributes, and what lists, dicts and sets in them hold;
- parameters, buffers and other tensors that attributes hold: memory, values, requires_grad, .grad;
- the random states of torch, Python and NumPy, gradient mode, autocast and the like.

Values are written back only where they differ. What objects of other classes hold is theirs; a lazy layer that got its
shape keeps it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from .ambient import RandomStates, Switches
from .interrupts import Guard

T = TypeVar("T")

MODES = ("training",)
_CONTAINERS = (dict, list, set, deque)
_ABSENT = object()
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Restored(Guard):
    """Inside, the model may be run and changed; afterwards it is what it was. Entered twice, as every `Guard`.

    No gradients are recorded inside, and compiled parts run as written: code that Dynamo wrote calls no module.
    evaluating: all modules are in evaluation mode inside; flags only, for `eval()` may be overridden and do more.
    Costs a copy of the model's tensors.
    """

    def __init__(self, model: nn.Module, *, evaluating: bool = False) -> None:
        self.model, self.evaluating = model, evaluating
        self.kept = Kept(model, values=True)
        self._random = RandomStates(self.kept.devices())
        self._switches = Switches()

    def begin(self) -> None:
        self._switches.run_eagerly()
        torch.set_grad_enabled(False)
        if self.evaluating:
            for module in self.model.modules():
                module.training = False

    def give_back(self) -> None:
        self._switches.give_back()
        self._random.give_back()
        self.kept.give_back()


def in_both_modes(model: nn.Module, run: Callable[[], T]) -> dict[bool, T]:
    """mode -> what `run` gave in it: in evaluation, and in training if the model can. Each gets the model as it is.

    Raises: what evaluation raises.
    """
    found: dict[bool, T] = {}
    for mode in (False, True):
        try:
            with Restored(model) as restored, restored:
                model.train(mode)  # on its own: some models' train() returns nothing
                found[mode] = run()
        except Exception:
            if not found:
                raise
    return found


class Kept:
    """What modules are at this moment. `give_back` makes them that again, as often as it is called.

    roots: modules, with everything below them. only: the names of the attributes that count; None, all, with all that
    they hold. values: the values of tensors too, and not only their identity, memory, requires_grad and .grad.
    """

    def __init__(self, *roots: nn.Module, only: Collection[str] | None = None, values: bool = False) -> None:
        self._modules: dict[nn.Module, _Module] = {}
        self._containers: dict[int, tuple[Any, list[Any]]] = {}
        self._tensors: dict[int, _Tensor] = {}
        for root in roots:
            for name, module in root.named_modules():
                if module not in self._modules:
                    self._modules[module] = _Module(name, module, only)
        if only is None:
            for kept in self._modules.values():
                self._keep_content(kept.held(), values)

    def keep_values(self, *tensors: Tensor | None) -> None:
        """Values too of these tensors, which are about to be written."""
        for tensor in tensors:
            if tensor is not None:
                self._tensors.setdefault(id(tensor), _Tensor(tensor, False)).keep_values()

    def give_back(self) -> None:
        errors: list[Exception] = []
        for container, content in self._containers.values():
            _refill(container, content)
        ways_back = [kept.give_back for kept in self._modules.values()]
        ways_back += [kept.give_back for kept in self._tensors.values()]
        for give_back in ways_back:
            try:
                give_back()
            except Exception as error:  # the others come back first
                errors.append(error)
        if errors:
            raise errors[0]

    def changed(self) -> list[str]:
        """The qualified names of the attributes that are not what they were, or hold something else."""
        return [name for kept in self._modules.values() for name in kept.changed(self._is_intact)]

    def devices(self) -> list[torch.device]:
        """Where the tensors are."""
        return sorted({kept.tensor.device for kept in self._tensors.values()}, key=str)

    def _keep_content(self, values_of: Collection[Any], values: bool) -> None:
        """Go through the containers that these values are or hold, and note those and the tensors."""
        waiting, seen = list(values_of), set()
        while waiting:
            value = waiting.pop()
            if isinstance(value, Tensor):
                if id(value) not in self._tensors and not is_lazy(value):
                    self._tensors[id(value)] = kept = _Tensor(value, values)
                    waiting.append(kept.grad)
            elif (
                isinstance(value, (*_CONTAINERS, tuple)) and id(value) not in self._containers and id(value) not in seen
            ):
                seen.add(id(value))
                content = _content(value)
                if not isinstance(value, tuple):
                    self._containers[id(value)] = (value, content)
                waiting += content

    def _is_intact(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            kept = self._tensors.get(id(value))
            return kept is None or kept.version == _version(value)
        if isinstance(value, _CONTAINERS) and id(value) in self._containers:
            before, now = self._containers[id(value)][1], _content(value)
            return len(before) == len(now) and all(map(_same, before, now))
        return True


class _Module:
    """A module, its class, and its own attributes."""

    def __init__(self, name: str, module: nn.Module, only: Collection[str] | None) -> None:
        self.name, self.module, self.kind, self.only = name, module, type(module), only
        self.training = module.training
        self.forward = vars(self.kind).get("forward")  # a GraphModule has a class of its own, and its code there
        own = module.__dict__
        self.attributes = dict(own) if only is None else {key: own[key] for key in only if key in own}
        # A lazy layer that gets its shape changes its class, its hooks and its arguments: all of it, or nothing.
        self.lazy = any(is_lazy(t) for t in _own_tensors(module))

    def held(self) -> list[Any]:
        """What the attributes hold; a scripted module's tensors are in no attribute."""
        scripted = isinstance(self.module, torch.jit.ScriptModule)
        return [] if self.lazy else [*self.attributes.values(), *(_own_tensors(self.module) if scripted else ())]

    def give_back(self) -> None:
        scripted = isinstance(self.module, torch.jit.ScriptModule)  # its mode is in no attribute
        if (scripted or self.lazy) and (self.only is None or "training" in self.only):
            self.module.training = self.training
        if self.lazy:
            return
        now = self.module.__dict__
        for name in [name for name in (now if self.only is None else self.only) if name not in self.attributes]:
            now.pop(name, None)
        for name, value in self.attributes.items():
            if name not in now or now[name] is not value:
                now[name] = value
        if self.only is None and type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        if issubclass(self.kind, fx.GraphModule) and vars(self.kind).get("forward") is not self.forward:
            self.kind.forward = self.forward  # type: ignore[assignment]  # where torch.fx has put it

    def changed(self, is_intact: Callable[[Any], bool]) -> Iterator[str]:
        now = self.module.__dict__
        for key in [*self.attributes, *(key for key in now if key not in self.attributes)]:
            old, new = self.attributes.get(key, _ABSENT), now.get(key, _ABSENT)
            if not _same(old, new) or not is_intact(old):
                yield f"{self.name}.{key}".lstrip(".")


class _Tensor:
    """A tensor: where its memory is, how often it was written, and what gradient it has; its values if asked for."""

    def __init__(self, tensor: Tensor, values: bool) -> None:
        self.tensor, self.memory, self.version = tensor, tensor.detach(), _version(tensor)
        self.nbytes = tensor.untyped_storage().nbytes() if _is_plain(tensor) else 0
        self.requires_grad, self.grad = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
        self.values: Tensor | None = None
        if values:
            self.keep_values()

    def keep_values(self) -> None:
        if self.values is None and not _is_freed(self.tensor):
            self.values = self.memory.clone()

    def give_back(self) -> None:
        tensor = self.tensor
        if self.values is not None and _is_freed(self.memory):
            self.memory.untyped_storage().resize_(self.nbytes)
        if _place(tensor) != _place(self.memory) and not tensor.is_inference():
            tensor.data = self.memory
        if self.values is not None and self._is_written(self.values):
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                # .data: graphs that have saved the tensor see what they have saved
                (tensor if tensor.is_inference() else tensor.data).copy_(self.values)
        if tensor.is_leaf and tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad

    def _is_written(self, values: Tensor) -> bool:
        """By the values where they can be read: torch's batch norm moves no version when it moves a buffer."""
        if _is_plain(self.tensor):
            return not _same_bits(self.tensor.detach(), values)
        return self.version < 0 or self.version != _version(self.tensor)


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [t for held in (module._parameters, module._buffers) for _, t in held.items() if t is not None]


def _content(container: Any) -> list[Any]:
    """What is in a container, in order; of a dict the keys and values by turns."""
    if isinstance(container, dict):
        kind = OrderedDict if isinstance(container, OrderedDict) else dict
        return [part for item in kind.items(container) for part in item]
    return list(container)


def _refill(container: Any, content: list[Any]) -> None:
    now = _content(container)
    if len(now) == len(content) and all(a is b for a, b in zip(now, content, strict=True)):
        return
    if isinstance(container, dict):
        kind: Any = OrderedDict if isinstance(container, OrderedDict) else dict  # past what a subclass overrides
        kind.clear(container)
        for key, value in zip(content[::2], content[1::2], strict=True):
            kind.__setitem__(container, key, value)
    elif isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        (container.extend if isinstance(container, deque) else container.update)(content)


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (int, float, str)) and a == b)


def _version(tensor: Tensor) -> int:
    """How often the tensor was written; -1 where that is not counted."""
    return -1 if tensor.is_inference() else tensor._version


def _is_plain(tensor: Tensor) -> bool:
    strided = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
    return strided and not tensor.is_meta and not tensor.is_quantized


def _is_freed(tensor: Tensor) -> bool:
    """Whether its memory is elsewhere for the moment, as a sharded model's may be."""
    return _is_plain(tensor) and tensor.numel() > 0 and tensor.untyped_storage().size() == 0


def _place(tensor: Tensor) -> tuple[Any, ...]:
    plain = _is_plain(tensor) and not _is_freed(tensor)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device) if plain else ()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal, NaN and the sign of zero included."""
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    bits = _BITS[a.dtype.itemsize]
    return torch.equal(a.resolve_neg().view(bits), b.resolve_neg().view(bits))
