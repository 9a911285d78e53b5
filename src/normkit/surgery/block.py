"""Rewriting one block: in a trace of its forward, norm (+ addition) (+ activation) is one call; the class stays."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx, nn

from ..model.dataflow import Flow
from ..model.swap import hooked
from . import activations
from .norm_and_add import norm_and_add
from .pattern import Pattern
from .trace import trace


class RewrittenForward:
    """The new forward of one module: kept as source, so the module can be copied, saved and compiled.

    It looks like the bound method that it stands for to who asks for its signature or code.
    """

    def __init__(self, owner: nn.Module, source: str, names: dict[str, Any]) -> None:
        self.owner, self.source, self.names = owner, source, names
        self._compile()

    def install(self) -> None:
        """Give the owner this forward, and its replicas of nn.DataParallel, which copy attributes, one of their own."""
        self.owner.__dict__.update(forward=self, _replicate_for_data_parallel=self._replicate)

    def _replicate(self) -> nn.Module:
        replica = type(self.owner)._replicate_for_data_parallel(self.owner)
        RewrittenForward(replica, self.source, self.names).install()
        return replica

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self.owner, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # a module (torch) is stored by its name; everything else in a trace's names can be pickled
        names = {name: _ModuleName(v.__name__) if inspect.ismodule(v) else v for name, v in self.names.items()}
        return {"owner": self.owner, "source": self.source, "names": names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import importlib

        self.owner, self.source = state["owner"], state["source"]
        names = state["names"].items()
        self.names = {n: importlib.import_module(v.name) if isinstance(v, _ModuleName) else v for n, v in names}
        self._compile()

    def _compile(self) -> None:
        names = dict(self.names)
        exec(compile(self.source, "<normkit: rewritten forward>", "exec"), names)
        self._function = names["forward"]
        self.__code__, self.__name__ = self._function.__code__, "forward"
        self.__signature__ = inspect.signature(partial(type(self.owner).forward, self.owner))


@dataclass(frozen=True)
class _ModuleName:
    name: str


class Block:
    """One block being rewritten. ValueError from the constructor says why it cannot be."""

    def __init__(self, module: nn.Module, name: str, flows: list[Flow]) -> None:
        self.module, self.name = module, name
        self.graph = trace(module, name, flows)

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
        if addition is None:
            last.replace_all_uses_with(node)
            self.graph.erase_node(last)
        else:
            self._add(self._unrolled(node, name), addition, last)
        return activation

    def _verify_addition(self, node: fx.Node, addition: fx.Node) -> None:
        if addition.target is norm_and_add:
            raise ValueError("the addition is fused with another norm already")
        function = getattr(addition.target, "__name__", addition.target)
        plain = function in ("add", "iadd", "add_") and len(addition.args) == 2 and not addition.kwargs
        if not plain or len(addition.all_input_nodes) != 2:
            raise ValueError("the trace has another addition than the run")

    def _add(self, node: fx.Node, addition: fx.Node, last: fx.Node) -> None:
        others = [argument for argument in addition.all_input_nodes if argument is not node]
        if any(len(argument.users) != 1 for argument in node.all_input_nodes):
            raise ValueError("the norm's input has other readers, which could change it before the addition")
        with self.graph.inserting_before(addition):
            layer = self.graph.get_attr(str(node.target))
            fused = self.graph.call_function(norm_and_add, (layer, *node.all_input_nodes), {"residual": others[0]})
        last.replace_all_uses_with(fused)
        for gone in [*([last] if last is not addition else []), addition, node]:
            self.graph.erase_node(gone)

    def _unrolled(self, node: fx.Node, norm: str) -> fx.Node:
        """The call of the norm itself: the nn.Sequential that ends with it is called child by child."""
        wanted = self._relative(norm)
        chain: list[str] = []
        target = str(node.target)
        while target != wanted:
            container = self.module.get_submodule(target)
            plain = type(container).forward is nn.Sequential.forward and "forward" not in container.__dict__
            if not plain or hooked(container) or len(node.args) != 1 or node.kwargs:
                raise ValueError(f"the addition is behind {target}, which is no plain nn.Sequential")
            *before, (last, _) = [(key, child) for key, child in container.named_children() if not _idle(child)]
            chain += [f"{target}.{key}" for key, _ in before]
            target = f"{target}.{last}"
        value = node.args[0]
        with self.graph.inserting_before(node):
            for step in (*chain, *([target] if chain else [])):
                value = self.graph.call_module(step, (value,))
        if not chain:
            return node
        node.replace_all_uses_with(value)  # type: ignore[arg-type]  # the last call made above is a node
        self.graph.erase_node(node)
        return value  # type: ignore[return-value]  # as above

    def _user(self, node: fx.Node) -> fx.Node:
        """The one reader; an nn.Identity on the way is taken out."""
        users = list(node.users)
        if len(users) != 1:
            raise ValueError(f"the trace has {len(users)} readers of {node.name}")
        user = users[0]
        if user.op != "call_module" or not _idle(self.module.get_submodule(str(user.target))):
            return user
        user.replace_all_uses_with(node)
        self.graph.erase_node(user)
        return self._user(node)

    def _relative(self, name: str) -> str:
        return name[len(self.name) + 1 :] if self.name else name

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
        RewrittenForward(self.module, code.src, dict(code.globals)).install()


def _idle(module: nn.Module) -> bool:
    return type(module) is nn.Identity and not hooked(module)
