"""Rewriting one block: its forward is traced, norm (+ addition) (+ activation) becomes one call, the class stays.

Rules (what torch.fx bakes into a trace must not be wrong):
- only the block's own forward is traced, its children are leaves; in training and evaluation, and both must agree;
- the calls in the trace must be the calls that a run has seen; optional and variable arguments are refused;
- an in-place operation is traced as one that makes a new tensor: allowed only on tensors that nobody else reads.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..dataflow import Call, Flow
from . import activations
from .pattern import Pattern


class RewrittenForward:
    """The new forward of one module: kept as source, so the module can be copied, saved and compiled."""

    def __init__(self, owner: nn.Module, source: str, names: dict[str, Any]) -> None:
        self.owner, self.source, self.names = owner, source, names
        self._compile()

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


@dataclass(frozen=True)
class _ModuleName:
    name: str


class Block:
    """One block being rewritten. ValueError from the constructor says why it cannot be."""

    def __init__(self, module: nn.Module, name: str, flows: list[Flow]) -> None:
        self.module, self.name = module, name
        _refuse(module)
        self.graph = _traced(module)
        for flow in flows:
            for call in flow.calls_of(name):
                _compare(flow, call, self.graph, name)
                _refuse_mutation(flow, call)

    def fuse(self, pattern: Pattern) -> str | nn.Module | None:
        """Rewrite the calls behind one norm. Returns its activation (None: an addition alone); ValueError if it
        differs."""
        node = self._node(pattern.through)
        addition = _only_user(node) if pattern.adds else None
        last = node if addition is None else addition
        activation: str | nn.Module | None = None
        if pattern.activation is not None:
            last = _only_user(last)
            activation = activations.of_node(last, self.module)
            if activation is None:
                raise ValueError(f"the trace has {last.target} where the run has an activation")
        if addition is None:
            last.replace_all_uses_with(node)
            self.graph.erase_node(last)
        else:
            self._add(node, addition, last)
        return activation

    def _add(self, node: fx.Node, addition: fx.Node, last: fx.Node) -> None:
        others = [argument for argument in addition.all_input_nodes if argument is not node]
        name = getattr(addition.target, "__name__", addition.target)
        if name not in ("add", "iadd", "add_") or len(addition.args) != 2 or addition.kwargs or len(others) != 1:
            raise ValueError("the trace has another addition than the run")
        if any(len(argument.users) != 1 for argument in node.all_input_nodes):
            raise ValueError("the norm's input has other readers, which could change it before the addition")
        with self.graph.inserting_before(addition):
            fused = self.graph.call_module(str(node.target), node.args, {**node.kwargs, "residual": others[0]})
        last.replace_all_uses_with(fused)
        for gone in [*([last] if last is not addition else []), addition, node]:
            self.graph.erase_node(gone)

    def _node(self, target: str) -> fx.Node:
        relative = target[len(self.name) + 1 :] if self.name else target
        nodes = [node for node in self.graph.nodes if node.op == "call_module" and node.target == relative]
        if len(nodes) != 1:
            raise ValueError(f"the trace calls {relative} {len(nodes)} times")
        return nodes[0]

    def install(self) -> None:
        """Give the module its new forward."""
        self.graph.lint()
        code = self.graph.python_code("self")
        self.module.__dict__["forward"] = RewrittenForward(self.module, code.src, dict(code.globals))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _refuse(module: nn.Module) -> None:
    if "forward" in module.__dict__:
        raise ValueError("its forward was replaced on the instance")
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            raise ValueError(f"its forward has the optional argument {parameter.name}, which a trace would fix")


def _traced(module: nn.Module) -> fx.Graph:
    """The graph of the forward, if it is the same in training and evaluation."""
    before = module.training
    graphs = []
    try:
        for mode in (True, False):
            module.training = mode
            try:
                graphs.append(_Tracer().trace(module))
            except Exception as error:
                raise ValueError(f"torch.fx cannot trace it ({type(error).__name__}: {error})") from error
    finally:
        module.training = before
    if str(graphs[0]) != str(graphs[1]):
        raise ValueError("its forward is another one in training than in evaluation")
    return graphs[1]


def _compare(flow: Flow, call: Call, graph: fx.Graph, name: str) -> None:
    """The module calls of the trace must be those of the run, in the same order."""
    inside = [c for c in flow.calls if c.enclosing and c.enclosing[-1] == call.index and c.module is not None]
    prefix = f"{name}." if name else ""
    seen = [str(c.module) for c in inside]
    traced = [f"{prefix}{node.target}" for node in graph.nodes if node.op == "call_module"]
    if len(seen) != len(traced) or any(a != b for a, b in zip(seen, traced, strict=True)):
        raise ValueError("the trace calls other modules than the run")


def _refuse_mutation(flow: Flow, call: Call) -> None:
    for inner in flow.calls:
        if inner.module is not None or not inner.enclosing or inner.enclosing[-1] != call.index:
            continue
        if inner.op.endswith("_") and not inner.op.endswith("__") and inner.inputs:
            target = inner.inputs[0]
            alone = [reader.index for reader in flow.consumers(target)] == [inner.index]
            if not alone or target in call.inputs or flow.escapes(target):
                raise ValueError(f"{inner.op} changes a tensor in place that is read elsewhere")


def _only_user(node: fx.Node) -> fx.Node:
    users = list(node.users)
    if len(users) != 1:
        raise ValueError(f"the trace has {len(users)} readers of {node.name}")
    return users[0]
