"""What a trace has fixed of its module besides tensors: its flags, and which children there are.

A forward decides by plain attributes (`if self.downsample is not None`, `x * self.scale`) and loops over its children;
a trace holds the outcome. Where they are not what they were, the trace is not the forward any more. What other objects
hold, as a config, is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType

from torch import nn

_PLAIN = (bool, int, float, str, type(None), FunctionType, BuiltinFunctionType, type)
_OF_TORCH = frozenset((*nn.Module().__dict__, "forward"))  # `training` too: a trace is the same in both modes
_ABSENT = object()


class Settings:
    """The plain attributes of a module that its methods name, and the names of its children and of those in its lists
    and dicts."""

    def __init__(self, module: nn.Module) -> None:
        named = {name for code in _codes(type(module)) for name in _named(code)}
        held = {name: value for name, value in module.__dict__.items() if name not in _OF_TORCH}
        for tensors_or_modules in (module._modules, module._parameters, module._buffers):
            held.update({name: value for name, value in tensors_or_modules.items() if value is None})
        self.attributes = {name: v for name, v in held.items() if name in named and type(v) in _PLAIN}
        self.children = {name: list(module.get_submodule(name)._modules) for name in _lists(module, "")}

    def hold(self, module: nn.Module) -> bool:
        """Whether they are what they were."""
        for name, value in self.attributes.items():
            now = getattr(module, name, _ABSENT)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        return all(list(module.get_submodule(name)._modules) == names for name, names in self.children.items())


def _lists(module: nn.Module, name: str) -> Iterator[str]:
    """The qualified names of a module and of the lists and dicts of modules in it."""
    yield name
    for key, child in module._modules.items():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _lists(child, f"{name}.{key}" if name else key)


def _codes(kind: type) -> Iterator[CodeType]:
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for name, member in vars(base).items():
            if name == "__init__":  # which names all that it sets
                continue
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            while hasattr(function, "__wrapped__"):
                function = function.__wrapped__
            if isinstance(function, FunctionType):
                yield function.__code__


def _named(code: CodeType) -> Iterator[str]:
    """The attributes that a code names, be it for getattr."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _named(constant)
