"""Tracing the forward of one block with torch.fx, and refusing it where the trace would not be the forward.

A trace holds what is done with tensors and nothing else. Rules:
- only the block's own forward is traced, its children are leaves; in training and evaluation, with gradients and
  without, and all must agree;
- the calls in the trace must be the calls that a run has seen, and it holds for arguments of the same kinds: flags have
  the run's values, arguments left out their defaults, **options the run's names, *arguments are empty;
- a function that is told of the mode (dropout with `training=self.training`) reads it at each call;
- an in-place operation is traced as one that makes a new tensor: allowed only on tensors that nobody else reads;
- what a trace loses is refused: contexts around a part (no gradients, autocast, a checkpoint), autograd functions,
  random numbers and tensors made outside of it, attributes that the forward sets, tensors that it hands to others.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from .._torch import TRACED_CONSTANT, has_own_forward, saved_tensors_hooks_top, why_own_forward
from ..model.ambient import autocasts, drawn_outside_torch, set_autocasts
from ..model.dataflow import Flow
from ..model.interrupts import Guard
from ..model.kept import Kept
from ..model.recorder import EagerDispatchMode, RecordedCall
from ..model.restore import Restored

# What may hand out the memory of its input.
_VIEWS = frozenset(
    """detach data view view_as reshape reshape_as flatten unflatten Flatten Unflatten ravel squeeze unsqueeze expand
    expand_as transpose permute movedim swapaxes t T mT H mH real imag narrow select diagonal unfold as_strided chunk
    split tensor_split unbind __getitem__ contiguous to type_as""".split()  # noqa: SIM905  # as words it stays readable
)


_one_at_a_time = threading.Lock()  # torch.fx patches classes while it traces
_RANDOM = "it draws random numbers outside of tensors that it is given, which a trace would fix"


def trace(module: nn.Module, name: str, flows: list[Flow]) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph of the module's forward, and argument -> the kind that it was traced for (`recorder.kind_of`).

    ValueError says why a trace cannot stand for it.
    """
    _refuse_signature(module)
    kinds = _kinds(module, [call for flow in flows for call in flow.calls_of(name)])
    with Restored(module) as restored, restored:
        graph = _traced_in_all_modes(module, kinds)
    for flow in flows:
        for call in flow.calls_of(name):
            _compare(flow, call, graph, name)
            _refuse_mutation(flow, call)
            _refuse_stash(flow, call)
    return graph, kinds


def _refuse_signature(module: nn.Module) -> None:
    if isinstance(module, fx.GraphModule):
        raise ValueError("copies of a GraphModule make their forward anew from the graph")
    if has_own_forward(module):
        raise ValueError(why_own_forward(module))
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"its forward takes {parameter.name} by position only, and a rewritten one takes names")


def _kinds(module: nn.Module, calls: list[RecordedCall]) -> dict[str, Any]:
    by_position, found = positional(module), []
    for call in calls:
        given, options = call.kinds
        found.append({**dict(zip(by_position, given, strict=False)), **options})
        if len(given) > len(by_position):
            raise ValueError("it is called with variable arguments, which a trace would fix")
    if not found or any(kinds != found[0] for kinds in found):
        raise ValueError("it is called with other kinds of arguments from one time to the next")
    return found[0]


def positional(module: nn.Module) -> tuple[str, ...]:
    """The arguments of its forward that may be given by position, without *args."""
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD)


# -- the trace --------------------------------------------------------------------------------------------------------
class _Tracer(fx.Tracer):
    """Children are leaves and buffers are looked up at each call; `lost` says what of the forward the trace lacks."""

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, kinds: dict[str, Any]) -> None:
        super().__init__()
        self.kinds = kinds
        self.own, self.contexts, self.lost = set(module.modules()), _contexts(), ""

    def create_args_for_root(self, root_fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Proxies, and values where the run had flags; what the run left out has its default."""
        given = {name: self._given(name, kind) for name, kind in self.kinds.items()}
        return functools.wraps(root_fn)(functools.partial(root_fn, **given)), [self.root]

    def _given(self, name: str, kind: Any) -> Any:
        proxy = self.create_proxy("placeholder", name, (), {})
        return kind[1] if isinstance(kind, tuple) else proxy

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """torch.fx gets the calls of all modules meanwhile: those made on the spot, and those of other threads."""
        return super().call_module(m, forward, args, kwargs) if m in self.own else forward(*args, **kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self.contexts:
            self.lost = "a part of it runs in a context of its own (no gradients, autocast, a checkpoint)"
        return super().create_node(*args, **kwargs)


def _traced_in_all_modes(module: nn.Module, kinds: dict[str, Any]) -> fx.Graph:
    graphs = []
    for training in (True, False):
        for child in module.modules():
            child.training = training
        for surrounded in (True, False):
            torch.set_grad_enabled(surrounded)
            set_autocasts(surrounded)  # a part that turns it off shows only where it is on
            graphs.append(_by_mode(_traced(module, kinds), training))
    if any(str(graph) != str(graphs[-1]) for graph in graphs):
        raise ValueError("its forward is another one in training than in evaluation, or by gradient mode or autocast")
    return graphs[-1]


def _by_mode(graph: fx.Graph, training: bool) -> fx.Graph:
    """The graph, with `self.training` where a function is told of the mode that it was traced in."""
    for node in graph.nodes:
        if node.op == "call_function" and node.kwargs.get("training") is training:
            with graph.inserting_before(node):
                mode = graph.get_attr("training")
            node.kwargs = {**node.kwargs, "training": mode}
    return graph


def _traced(module: nn.Module, kinds: dict[str, Any]) -> fx.Graph:
    tracer, before, random = _Tracer(module, kinds), Kept(module), drawn_outside_torch()
    functions = _AutogradFunctions(tracer)
    try:
        with _one_at_a_time, functions, functions, _Draws(tracer):
            graph = tracer.trace(module)
    except Exception as error:
        raise ValueError(tracer.lost or f"torch.fx cannot trace it ({type(error).__name__}: {error})") from error
    finally:
        changed = before.changed()
        before.give_back()
    if random != drawn_outside_torch():
        tracer.lost = _RANDOM
    if tracer.lost:
        raise ValueError(tracer.lost)
    if any(TRACED_CONSTANT in name for name in changed):
        raise ValueError("it makes a tensor of its own, which a trace would fix")
    if changed:
        raise ValueError(f"it changes the attribute {changed[0]}, which a trace would not")
    return graph


class _Draws(EagerDispatchMode):
    """Sees random numbers that are drawn during the trace, instead of at each call."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.tracer.lost = _RANDOM
        return func(*args, **(kwargs or {}))


def _contexts() -> tuple[Any, ...]:
    """What surrounds an operation and is no part of a trace."""
    hooks = saved_tensors_hooks_top()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocasts(), hooks


class _AutogradFunctions(Guard):
    """An autograd function runs its forward on what stands for tensors without a word: its backward would be lost."""

    def __init__(self, tracer: _Tracer) -> None:
        self.tracer = tracer
        self.function: Any = torch.autograd.Function
        self.original = self.function.__dict__["apply"]

    def begin(self) -> None:
        tracer, original = self.tracer, self.original

        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            if any(isinstance(argument, fx.Proxy) and argument.tracer is tracer for argument in given):
                tracer.lost = f"it calls the autograd function {cls.__name__}, whose backward a trace does not hold"
            return original.__get__(None, cls)(*args, **kwargs)

        self.function.apply = classmethod(apply)

    def give_back(self) -> None:
        self.function.apply = self.original


# -- the trace and the runs -------------------------------------------------------------------------------------------
def _compare(flow: Flow, call: RecordedCall, graph: fx.Graph, name: str) -> None:
    """The module calls of the trace must be those of the run, in the same order."""
    seen = [str(c.module) for c in flow.calls_in(call) if c.module is not None]
    prefix = f"{name}." if name else ""
    traced = [f"{prefix}{node.target}" for node in graph.nodes if node.op == "call_module"]
    if len(seen) != len(traced) or any(a != b for a, b in zip(seen, traced, strict=True)):
        raise ValueError("the trace calls other modules than the run")


def _refuse_mutation(flow: Flow, call: RecordedCall) -> None:
    for inner in flow.calls_in(call):
        if inner.module is None and inner.op.endswith("_") and not inner.op.endswith("__") and inner.inputs:
            target = inner.inputs[0]
            alone = [reader.index for reader in flow.consumers(target)] == [inner.index]
            maker = flow.producer(target)
            view = maker is None or maker.op in _VIEWS
            if not alone or view or target in call.inputs or flow.escapes(target):
                raise ValueError(f"{inner.op} changes a tensor in place that is read elsewhere")


def _refuse_stash(flow: Flow, call: RecordedCall) -> None:
    """A tensor that the forward puts into an attribute, a list, a closure: the trace would not."""
    if any(value in flow.held for inner in flow.calls_in(call) for value in inner.outputs):
        raise ValueError("something still holds a tensor that it makes")
