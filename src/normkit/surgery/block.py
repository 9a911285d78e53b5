"""Rewriting one block: in a trace of its forward, norm (+ addition) (+ activation) is one call; the class stays."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from .._fx import is_proxy
from .._hooks import is_watched
from ..model.dataflow import Flow
from ..model.recorder import kind_of
from . import activations
from .fused_call import HEAD, fused_call, is_idle, is_sequential, leading, steps
from .instance_forward import InstanceForward
from .pattern import Pattern
from .settings import Settings
from .trace import positional, trace


class RewrittenForward(InstanceForward):
    """The new forward of one module: kept as source, so the module can be copied, saved and compiled.

    kinds: argument -> what was seen there when it was traced (`recorder.kind_of`). settings: what the module was then.
    idle: the modules that it leaves out, for they do nothing. Where a call, a setting or such a module differs, the
    class's own forward runs, on the same modules.
    """

    def __init__(
        self,
        owner: nn.Module,
        source: str,
        names: dict[str, Any],
        kinds: dict[str, Any],
        settings: Settings,
        idle: tuple[str, ...] = (),
    ) -> None:
        self.source, self.names, self.kinds, self.settings, self.idle = source, names, kinds, settings, idle
        super().__init__(owner)
        self._compile()

    def of(self, owner: nn.Module) -> RewrittenForward:
        return RewrittenForward(owner, self.source, self.names, self.kinds, self.settings, self.idle)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self._by_position, args, strict=False)), **kwargs}
        if len(given) != len(args) + len(kwargs) or is_watched() or not self._fits(given):
            return self.original(*args, **kwargs)
        return self._function(self.owner, **given)

    def _fits(self, given: dict[str, Any]) -> bool:
        same = len(given) == len(self.kinds) and all(
            name in self.kinds and not is_proxy(value) and kind_of(value) == self.kinds[name]
            for name, value in given.items()
        )
        return same and self.holds(self.owner)

    def holds(self, owner: nn.Module) -> bool:
        """Whether the module is still what was traced."""
        return self.settings.hold(owner) and all(is_idle(owner.get_submodule(name)) for name in self.idle)

    def __getstate__(self) -> dict[str, Any]:
        # a module (torch) is stored by its name; everything else in a trace's names can be pickled
        names = {name: _ModuleName(v.__name__) if inspect.ismodule(v) else v for name, v in self.names.items()}
        own = {"source": self.source, "names": names, "kinds": self.kinds, "settings": self.settings, "idle": self.idle}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import importlib

        names = state["names"].items()
        self.source, self.kinds, self.settings, self.idle = (state[n] for n in ("source", "kinds", "settings", "idle"))
        self.names = {n: importlib.import_module(v.name) if isinstance(v, _ModuleName) else v for n, v in names}
        super().__setstate__(state)
        self._compile()

    def _compile(self) -> None:
        self._function = compiled(self.source, self.names)
        self._by_position = positional(self.owner)


def compiled(source: str, names: dict[str, Any]) -> Any:
    """The function `forward` of this source."""
    names = dict(names)
    exec(compile(source, "<normkit: rewritten forward>", "exec"), names)
    return names["forward"]


@dataclass(frozen=True)
class _ModuleName:
    name: str


class _Global(str):
    """A name in the source of a forward."""

    def __repr__(self) -> str:
        return str(self)


class Block:
    """One block being rewritten. ValueError from the constructor says why it cannot be."""

    def __init__(self, module: nn.Module, name: str, flows: list[Flow]) -> None:
        self.module, self.name, self.flows = module, name, flows
        self.graph, self.kinds = trace(module, name, flows)
        self._activations: dict[str, nn.Module] = {}
        self._idle: list[str] = []

    def fuse(self, name: str, pattern: Pattern) -> str | nn.Module | None:
        """Rewrite the calls behind one norm; ValueError if they differ. Returns its activation (None: an addition)."""
        node = self._node(pattern.through)
        addition = self._user(node) if pattern.adds else None
        last = node if addition is None else addition
        activation: str | nn.Module | None = None
        if addition is not None:
            self._verify_addition(node, addition)
        if pattern.activation is not None:
            last = self._user(last)
            activation = activations.of_node(last, self.module)
            if activation is None:
                raise ValueError(f"the trace has {last.target} where the run has an activation")
        self._call(node, name, addition, last, activation)
        return activation

    def _verify_addition(self, node: fx.Node, addition: fx.Node) -> None:
        if addition.target is fused_call:
            raise ValueError("the addition is fused with another norm already")
        function = getattr(addition.target, "__name__", addition.target)
        plain = function in ("add", "iadd", "add_") and len(addition.args) == 2 and not addition.kwargs
        if not plain or len(addition.all_input_nodes) != 2:
            raise ValueError("the trace has another addition than the run")

    def _call(
        self, node: fx.Node, norm: str, addition: fx.Node | None, last: fx.Node, activation: str | nn.Module | None
    ) -> None:
        if len(node.args) != 1 or node.kwargs:
            raise ValueError(f"{node.target} is called with more than one argument")
        input, behind = node.args[0], str(node.target) != self._relative(norm)
        if behind:
            prepare(self.module.get_submodule(str(node.target)), self._full(str(node.target)), norm, self.flows)
        elif addition is not None and any(len(argument.users) != 1 for argument in node.all_input_nodes):
            raise ValueError("the norm's input has other readers, which could change it before the addition")
        residual = None if addition is None else next(a for a in addition.all_input_nodes if a is not node)
        with self.graph.inserting_before(node):
            module = self.graph.get_attr(str(node.target))
            if behind:
                input = self.graph.call_function(leading, (module, input))
        with self.graph.inserting_before(addition or node):
            given = {"residual": residual, "activation": self._argument(last, activation)}
            given = {name: value for name, value in given.items() if value is not None}
            fused = self.graph.call_function(fused_call, (module, input), given)
        last.replace_all_uses_with(fused)
        for gone in dict.fromkeys([last, *([addition] if addition is not None else []), node]):
            self.graph.erase_node(gone)

    def _argument(self, node: fx.Node, activation: str | nn.Module | None) -> Any:
        """An activation as an argument in the source: the model's own module, a name, or a module that is made here."""
        if activation is None:
            return None
        if node.op == "call_module":
            activations.mark(self.module.get_submodule(str(node.target)))
            return self.graph.get_attr(str(node.target))
        if isinstance(activation, str):
            return activation
        name = f"_activation_{len(self._activations)}"
        self._activations[name] = activation
        return _Global(name)

    def _user(self, node: fx.Node) -> fx.Node:
        """The one reader; what does nothing on the way is taken out."""
        users = list(node.users)
        if len(users) != 1:
            raise ValueError(f"the trace has {len(users)} readers of {node.name}")
        user = users[0]
        if user.op != "call_module" or not is_idle(self.module.get_submodule(str(user.target))):
            return user
        self._idle.append(str(user.target))
        user.replace_all_uses_with(node)
        self.graph.erase_node(user)
        return self._user(node)

    def _relative(self, name: str) -> str:
        return name[len(self.name) + 1 :] if self.name else name

    def _full(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name

    def _node(self, target: str) -> fx.Node:
        relative = self._relative(target)
        nodes = [node for node in self.graph.nodes if node.op == "call_module" and node.target == relative]
        if len(nodes) != 1:
            raise ValueError(f"the trace calls {relative} {len(nodes)} times")
        return nodes[0]

    def install(self) -> None:
        """Give the module its new forward."""
        self.graph.lint()
        code = self.graph.python_code("self")
        names = {**code.globals, **self._activations}
        RewrittenForward(self.module, code.src, names, self.kinds, Settings(self.module), tuple(self._idle)).install()


# -- a norm at the end of other modules ------------------------------------------------------------------------------
class Head:
    """The forward of a module that ends with a norm, up to that norm."""

    def __init__(self, forward: RewrittenForward, norm: str) -> None:
        self.forward, self._norm = forward, norm

    def norm(self, owner: nn.Module) -> nn.Module:
        return owner.get_submodule(self._norm)

    def holds(self, owner: nn.Module) -> bool:
        return "forward" not in owner.__dict__ and self.forward.holds(owner)

    def __call__(self, owner: nn.Module, input: Any) -> Any:
        return self.forward._function(owner, input)


def prepare(module: nn.Module, name: str, norm: str, flows: list[Flow]) -> None:
    """Give the modules between `module`, whose output is the norm's, and that norm what `leading` needs."""
    if name == norm:
        return
    if is_sequential(module):
        children = [(key, child) for key, child in module.named_children() if steps(child)]
        if not children:
            raise ValueError(f"nothing is in {name}")
        key, child = children[-1]
        return prepare(child, f"{name}.{key}", norm, flows)
    graph, kinds = trace(module, name, flows)
    if list(kinds.values()) != ["tensor"]:
        raise ValueError(f"{name}, which ends with the norm, takes other arguments than one tensor")
    (output,) = [node for node in graph.nodes if node.op == "output"]
    value, behind = output.args[0], []
    while isinstance(value, fx.Node) and value.op == "call_module" and is_idle(module.get_submodule(str(value.target))):
        behind.append(value)
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "call_module" or len(value.args) != 1 or value.kwargs:
        raise ValueError(f"the trace of {name} does not end with the norm")
    last = str(value.target)
    prepare(module.get_submodule(last), f"{name}.{last}", norm, flows)
    output.args = (value.args[0],)
    for node in (*behind, value):
        graph.erase_node(node)
    code, idle = graph.python_code("self"), tuple(str(node.target) for node in behind)
    forward = RewrittenForward(module, code.src, dict(code.globals), kinds, Settings(module), idle)
    module.__dict__[HEAD] = Head(forward, last)
