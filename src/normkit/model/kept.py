"""What modules are at one moment, to make them that again.

Everything comes back as the same objects with the same content: the class and the attributes of each module, what
lists, dicts and sets in them hold, in order (so children, hooks, parameters, buffers), and the tensors found there.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from .._torch import version_of
from .kept_tensor import KeptTensor

MODES = ("training",)
_CONTAINERS = (dict, list, set, deque)
_ABSENT = object()


class Kept:
    """What modules are at this moment. `give_back` makes them that again, as often as it is called.

    roots: modules, with everything below them. only: the names of the attributes that count; None, all, with all that
    they hold. values: the values of tensors too, and not only their identity, memory, requires_grad and .grad.
    """

    def __init__(self, *roots: nn.Module, only: Collection[str] | None = None, values: bool = False) -> None:
        self._modules: dict[nn.Module, _Module] = {}
        self._containers: dict[int, tuple[Any, list[Any]]] = {}
        self._tensors: dict[int, KeptTensor] = {}
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
                self._tensors.setdefault(id(tensor), KeptTensor(tensor, False)).keep_values()

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
                    self._tensors[id(value)] = kept = KeptTensor(value, values)
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
            return kept is None or kept.version == version_of(value)
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
