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
from .swap import hooked

# What may hand out the memory of its input.
_VIEWS = frozenset(
    """detach data view view_as reshape reshape_as flatten unflatten Flatten Unflatten ravel squeeze unsqueeze expand
    expand_as transpose permute movedim swapaxes t T mT H mH real imag narrow select diagonal unfold as_strided chunk
    split tensor_split unbind __getitem__ contiguous to type_as""".split()  # noqa: SIM905  # as words it stays readable
)


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

    def fuse(self, name: str, pattern: Pattern) -> str | nn.Module | None:
        """Rewrite the calls behind one norm; ValueError if they differ. Returns its activation (None: an addition)."""
        node = self._node(pattern.through)
        addition = self._user(node) if pattern.adds else None
        last = node if addition is None else addition
        activation: str | nn.Module | None = None
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

    def _add(self, node: fx.Node, addition: fx.Node, last: fx.Node) -> None:
        others = [argument for argument in addition.all_input_nodes if argument is not node]
        function = getattr(addition.target, "__name__", addition.target)
        if function not in ("add", "iadd", "add_") or len(addition.args) != 2 or addition.kwargs or len(others) != 1:
            raise ValueError("the trace has another addition than the run")
        if any(len(argument.users) != 1 for argument in node.all_input_nodes):
            raise ValueError("the norm's input has other readers, which could change it before the addition")
        with self.graph.inserting_before(addition):
            fused = self.graph.call_module(str(node.target), node.args, {**node.kwargs, "residual": others[0]})
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
            maker = flow.producer(target)
            view = maker is None or maker.op in _VIEWS
            if not alone or view or target in call.inputs or flow.escapes(target):
                raise ValueError(f"{inner.op} changes a tensor in place that is read elsewhere")


def _idle(module: nn.Module) -> bool:
    return type(module) is nn.Identity and not hooked(module)
