"""What follows a norm in the runs of a model: an addition, an activation, both, or nothing that could be fused.

Rules: every call of the norm, in every run (evaluation and training), must be followed by the same; each value on the
way must have one reader and be seen by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .._torch import hooked
from ..model.additions import ADDITIONS, scope_of_addition
from ..model.dataflow import Flow
from ..model.recorder import RecordedCall
from . import activations
from .fused_call import is_idle


@dataclass(frozen=True)
class Pattern:
    """`scope`: the module whose forward makes the last of the calls. `through`: the module directly in that scope whose
    output the norm's output is (the norm itself, or a container that ends with it). `activation`: the name of the
    activation's
    module, "" for a function, None for none. `sums`: it is the addition in front of the norm that is fused, and nothing
    after it."""

    scope: str
    through: str
    adds: bool
    activation: str | None
    sums: bool = False


def pattern_of(name: str, modules: dict[str, nn.Module], flows: list[Flow], *, adds: bool) -> Pattern | str:
    """The pattern after the norm of this name, or why there is none. adds: the layer could take a residual."""
    found: set[Pattern | str] = {_of_call(flow, call, modules, adds) for flow in flows for call in flow.calls_of(name)}
    if not found:
        return "the example inputs do not reach it"
    return found.pop() if len(found) == 1 else "its calls are followed by different things"


def sum_before(name: str, flows: list[Flow]) -> Pattern | str:
    """The addition in front of the norm of this name, or why there is none."""
    scope, reason = scope_of_addition(name, flows)
    return reason if scope is None else Pattern(scope, name, adds=False, activation=None, sums=True)


def _of_call(flow: Flow, call: RecordedCall, modules: dict[str, nn.Module], adds: bool) -> Pattern | str:
    reader = _reader(flow, call, modules)
    if isinstance(reader, str):
        return reader
    addition = reader if adds and _is_addition(flow, call, reader) else None
    if addition is not None:
        reader = _reader(flow, addition, modules)
    activation = None if isinstance(reader, str) else _activation(reader, modules)
    if addition is not None and activation is not None and not isinstance(reader, str):
        smooth = activations.reads_residual(reader.op if activation == "" else modules[activation])
        if smooth and _changed_later(flow, call, addition):
            return "what is added to it is changed in place later, and the fused activation's backward reads it"
    last = addition if activation is None or isinstance(reader, str) else reader
    if last is None:
        return f"it is followed by {reader if isinstance(reader, str) else reader.module or reader.op}"
    scope = last.enclosing[-1]
    through = _through(flow, call, scope)
    if through is None:
        return "what follows is in a forward that does not call it"
    return Pattern(str(flow.calls[scope].module), through, addition is not None, activation)


def _reader(flow: Flow, call: RecordedCall, modules: dict[str, nn.Module]) -> RecordedCall | str:
    """The one call that reads the output of `call`."""
    if len(call.outputs) != 1:
        return "it gives something else than one tensor"
    readers = flow.consumers(call.outputs[0])
    escapes = flow.escapes(call.outputs[0])
    if escapes or len(readers) != 1:
        return escapes or f"{len(readers)} readers"
    reader = readers[0]
    if reader.module is not None and is_idle(modules[reader.module]) and reader.outputs != call.outputs:
        return _reader(flow, reader, modules)  # a dropout of nothing makes a tensor of its own in training
    return _hands_on(flow, call.outputs[0], modules) or reader


def _hands_on(flow: Flow, value: int, modules: dict[str, nn.Module]) -> str | None:
    """What gave the value out as it was given, and might not another time: dropout, a path dropped at random."""
    for call in flow.handing_on.get(value, ()):
        atom = flow.atom_of(call)
        if atom.module is not None and is_idle(modules[atom.module]):
            continue
        if call.atom or (call.module is None and "drop" in call.op):
            return f"it is followed by {call.module or call.op}"
    return None


def _is_addition(flow: Flow, call: RecordedCall, reader: RecordedCall) -> bool:
    """Whether `reader` adds a tensor of the same shape to the norm's output and changes none but that output in
    place."""
    if reader.module is not None or reader.op not in ADDITIONS or len(reader.inputs) != 2 or len(call.inputs) != 1:
        return False
    left, right = (flow.values[value] for value in reader.inputs)
    mutates_other = reader.op == "add_" and reader.inputs[0] != call.outputs[0]
    return left.index != right.index and (left.shape, left.dtype) == (right.shape, right.dtype) and not mutates_other


def _changed_later(flow: Flow, call: RecordedCall, addition: RecordedCall) -> bool:
    residual = next(value for value in addition.inputs if value != call.outputs[0])
    return any(residual in reader.changed for reader in flow.readers[residual])


def _activation(reader: RecordedCall, modules: dict[str, nn.Module]) -> str | None:
    if reader.module is None:
        return "" if activations.is_function(reader.op) and len(reader.inputs) == 1 else None
    module = modules[reader.module]
    return reader.module if activations.of_module(module) is not None and not hooked(module) else None


def _through(flow: Flow, call: RecordedCall, scope: int) -> str | None:
    """The call directly inside of `scope` that hands out the norm's output."""
    if scope not in call.enclosing:
        return None
    inner = [*call.enclosing[call.enclosing.index(scope) + 1 :], call.index]
    first = flow.calls[inner[0]]
    return first.module if first.outputs == call.outputs else None
