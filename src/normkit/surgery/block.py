"""Rewriting one block: in a trace of its forward, norm (+ addition) (+ activation) is one call, and so is an addition
in front of a norm of rows; the class stays."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from ..model.dataflow import Flow
from . import activations
from .added_call import added_call
from .fused_call import fused_call, is_idle, leading
from .head import prepare
from .pattern import Pattern
from .rewritten import RewrittenForward
from .settings import Settings
from .trace import trace


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
        """Rewrite the calls after one norm; ValueError if they differ. Returns its activation (None: an addition)."""
        node = self._node(pattern.through)
        addition = self._user(node) if pattern.adds else None
        last = node if addition is None else addition
        activation: str | nn.Module | None = None
        if addition is not None:
            self._verify_addition(addition)
        if pattern.activation is not None:
            last = self._user(last)
            activation = activations.of_node(last, self.module)
            if activation is None:
                raise ValueError(f"the trace has {last.target} where the run has an activation")
        self._call(node, name, addition, last, activation)
        return activation

    def fuse_sum(self, name: str) -> None:
        """Rewrite the norm of this name and the addition in front of it; ValueError where the trace has no such."""
        node = self._node(name)
        if len(node.args) != 1 or node.kwargs:
            raise ValueError(f"{node.target} is called with more than one argument")
        addition = node.args[0]
        if not isinstance(addition, fx.Node):
            raise ValueError("the trace has another addition than the run")
        self._verify_addition(addition)
        with self.graph.inserting_before(addition):
            module = self.graph.get_attr(str(node.target))
            both = self.graph.call_function(added_call, (module, *addition.args))
            y, total = (self.graph.call_function(operator.getitem, (both, i)) for i in (0, 1))
        node.replace_all_uses_with(y)
        addition.replace_all_uses_with(total)
        for gone in (node, addition, *([] if total.users else [total])):
            self.graph.erase_node(gone)

    def _verify_addition(self, addition: fx.Node) -> None:
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
