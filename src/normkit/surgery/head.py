"""A norm at the end of other modules: what comes before it, so that the norm is called with what follows the module.

`self.relu(self.body(x) + x)`, and body ends with a norm: body runs up to that norm, and the norm's call adds and
activates. The modules on the way keep their forwards; what leads to the norm is kept beside them, as a `Head`.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from .._torch import has_own_forward
from ..model.dataflow import Flow
from .fused_call import HEAD, is_idle, is_sequential, steps
from .rewritten import RewrittenForward
from .settings import Settings
from .trace import trace


class Head:
    """The forward of a module that ends with a norm, up to that norm."""

    def __init__(self, forward: RewrittenForward, norm: str) -> None:
        self.forward, self._norm = forward, norm

    def norm(self, owner: nn.Module) -> nn.Module:
        return owner.get_submodule(self._norm)

    def holds(self, owner: nn.Module) -> bool:
        return not has_own_forward(owner) and self.forward.holds(owner)

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
