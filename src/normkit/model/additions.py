"""Whether what a norm is given is a sum made just in front of it: `h = h + f(x); x = norm(h)`, as seen in a run.

Rules: the addition and the norm's call lie in the same forward, the addition is of two tensors of one shape and dtype,
and the norm gets the sum as it came. Who else reads the sum does not matter: it stays what it is.
"""

from __future__ import annotations

from .dataflow import Flow
from .recorder import RecordedCall

ADDITIONS = frozenset(("add", "add_", "__add__", "__radd__", "__iadd__"))  # as a run records them


def scope_of_addition(name: str, flows: list[Flow]) -> tuple[str | None, str]:
    """(the module whose forward adds in front of every call of the norm of this name, or None; why not)."""
    found = {_before(flow, call) for flow in flows for call in flow.calls_of(name)}
    if not found:
        return None, "the example inputs do not reach it"
    return found.pop() if len(found) == 1 else (None, "its calls are given different things")


def _before(flow: Flow, call: RecordedCall) -> tuple[str | None, str]:
    if len(call.inputs) != 1 or not call.enclosing:
        return None, "it is given something else than one tensor"
    producer = flow.values[call.inputs[0]].producer
    if producer is None:
        return None, "it is given an input of the model"
    maker = flow.calls[producer]
    atom = flow.atom_of(maker)
    if atom.module is not None or maker.op not in ADDITIONS:
        return None, f"in front of it is {atom.module or maker.op}, and no addition"
    if maker.enclosing != call.enclosing:
        return None, "the addition in front of it is in the forward of another module"
    if len(maker.inputs) != 2 or len({(v.shape, v.dtype) for v in (flow.values[i] for i in maker.inputs)}) != 1:
        return None, "in front of it is an addition of other things than two tensors of one shape and dtype"
    return str(flow.calls[call.enclosing[-1]].module), ""
