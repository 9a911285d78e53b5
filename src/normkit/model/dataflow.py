"""Which tensor feeds which layer and who consumes what it makes, as seen in one real run of the model.

Rules:
- Nothing is guessed from the source: a branch that the run did not take is not in the flow.
- Questions are answered in atoms (modules without children, convolutions, linears, normalization layers) and in the
  functions outside of them; containers are looked through.
- The model is given back as it was (see `restore`), also when the run raises.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._torch import tree_map
from .recorder import RecordedCall, Recorder, Value
from .restore import Restored


@dataclass(frozen=True)
class Flow:
    """The calls of one run in order, the values between them, and the questions about both.

    `inputs`, `outputs`: the model's own values; `output_names`: where in its result each output lies ("output[0]");
    `held`: values that something still held after the run, a feature map stashed in an attribute for instance;
    `readers`: value -> functions that read it; `tensors`: id(parameter or buffer) -> its value.
    """

    calls: tuple[RecordedCall, ...]
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_names: tuple[str, ...]
    held: frozenset[int]
    readers: Mapping[int, list[RecordedCall]]
    tensors: Mapping[int, int]

    def atom_of(self, call: RecordedCall) -> RecordedCall:
        """The outermost atom around `call`, or `call` itself."""
        return next((self.calls[index] for index in call.enclosing if self.calls[index].atom), call)

    def calls_in(self, call: RecordedCall) -> list[RecordedCall]:
        """The calls that the forward of a module call makes itself, in order."""
        return [inner for inner in self.calls if inner.enclosing and inner.enclosing[-1] == call.index]

    def calls_of(self, module: str) -> list[RecordedCall]:
        """Every call of the module whose first qualified name this is, in order."""
        return self._by_module.get(module, [])

    @cached_property
    def _by_module(self) -> dict[str, list[RecordedCall]]:
        found: dict[str, list[RecordedCall]] = {}
        for call in self.calls:
            if call.module is not None:
                found.setdefault(call.module, []).append(call)
        return found

    @cached_property
    def handing_on(self) -> dict[int, list[RecordedCall]]:
        """Value -> the calls that gave it out as it was given."""
        found: dict[int, list[RecordedCall]] = {}
        for call in self.calls:
            for value in set(call.inputs) & set(call.outputs):
                found.setdefault(value, []).append(call)
        return found

    def producer(self, value: int) -> RecordedCall | None:
        """The atom or function that made `value`; None for an input of the model, a parameter or a constant."""
        producer = self.values[value].producer
        return None if producer is None else self.atom_of(self.calls[producer])

    def consumers(self, value: int) -> list[RecordedCall]:
        """The atoms and functions that read `value`, each once, in order."""
        atoms = (self.atom_of(call) for call in self.readers.get(value, ()))
        return list({atom.index: atom for atom in atoms}.values())

    def parameter_consumers(self, parameter: Tensor) -> list[RecordedCall]:
        """The atoms and functions that read a parameter or buffer of the model."""
        value = self.tensors.get(id(parameter))
        return [] if value is None else self.consumers(value)

    def escapes(self, value: int) -> str | None:
        """Why `value` is seen outside of the run, or None."""
        if value in self.outputs:
            return "it is an output of the model"
        return "something still holds it after the forward" if value in self.held else None

    def scope(self, call: RecordedCall) -> str | None:
        """The qualified name of the module whose forward made the call ("" for the root); None for the root itself."""
        return self.calls[call.enclosing[-1]].module if call.enclosing else None


def observe(model: nn.Module, example_inputs: Any) -> Flow:
    """Run `model` once on `example_inputs`, in its present modes and without gradients, and return what flowed where.

    `example_inputs`: a tensor, a tuple of positional or a dict of keyword arguments; they are cloned first.
    """
    refuse_lazy(model)
    with Restored(model) as restored, restored:
        return flow_of(model, example_inputs)


def flow_of(model: nn.Module, example_inputs: Any) -> Flow:
    """`observe` without giving the model back: the hooks of the recorder stay on it."""
    recorder = Recorder(model)
    _recorded_run(recorder, example_inputs)
    held = recorder.held_after_the_run()
    return Flow(
        calls=tuple(recorder.calls),
        values=tuple(recorder.values),
        inputs=recorder.inputs,
        outputs=recorder.outputs,
        output_names=recorder.output_names,
        held=held,
        readers=recorder.readers,
        tensors=recorder.tensors,
    )


def _recorded_run(recorder: Recorder, example_inputs: Any) -> None:
    """Its own function, so that inputs and outputs are gone when it returns."""
    args, kwargs = arguments(example_inputs)
    recorder.run(args, kwargs)


def call_with(model: nn.Module, example_inputs: Any) -> Any:
    """The model's result on a clone of the example inputs (a forward may work in place on what it is given)."""
    args, kwargs = arguments(example_inputs)
    return model(*args, **kwargs)


def refuse_lazy(model: nn.Module) -> None:
    """Raise RuntimeError where layers have no shape yet: a run would give them one for good."""
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise RuntimeError("the model has lazy layers without a shape yet: run it once on an example first")


def refuse_meta(model: nn.Module) -> None:
    """Raise RuntimeError where tensors have no values; what Hugging Face's accelerate has offloaded gets its own."""
    if any("_hf_hook" in module.__dict__ for module in model.modules()):
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise RuntimeError(
                f"{name} is on the meta device and has no values: load the weights first, as by "
                "model.load_state_dict(state, assign=True)"
            )


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A clone of the example inputs as positional and keyword arguments."""
    inputs = cloned(example_inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def cloned(tree: Any) -> Any:
    """The same containers and values, every tensor a clone."""
    return tree_map(_cloned, tree)


def _cloned(leaf: Any) -> Any:
    if is_dataclass(leaf) and not isinstance(leaf, type):
        twin = copy.copy(leaf)
        for field in fields(leaf):
            object.__setattr__(twin, field.name, cloned(getattr(leaf, field.name)))
        return twin
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
