"""The flow of a run while norms are folded out of it.

A folded norm disappears: its output becomes the same value as its input (`find` follows such unions), and its
neighbours become neighbours. A reshape between a layer and a norm is looked through.
"""

from __future__ import annotations

from torch import nn

from ..model.dataflow import Flow
from ..model.recorder import RecordedCall, Value

_RESHAPES = frozenset(("flatten", "reshape", "view", "unflatten", "reshape_as", "view_as"))


class FoldedFlow:
    """A `Flow` in which values can be merged. modules: qualified name -> module."""

    def __init__(self, flow: Flow, modules: dict[str, nn.Module]) -> None:
        self.flow, self.modules = flow, modules
        self._union: dict[int, int] = {}  # value after a folded norm -> value in front of it
        self._merged: dict[int, list[int]] = {}  # value -> all values that are the same now

    def remove(self, call: RecordedCall) -> None:
        """Take a call out: what it made is what it read."""
        front, back = self.find(call.inputs[0]), self.find(call.outputs[0])
        self._merged[front] = [*self._same(front), *self._same(back)]
        self._union[back] = front

    def find(self, value: int) -> int:
        """One name for all values that are the same by now."""
        while value in self._union:
            value = self._union[value]
        return value

    def _same(self, value: int) -> list[int]:
        root = self.find(value)
        return self._merged.get(root, [root])

    def value(self, index: int) -> Value:
        return self.flow.values[index]

    def calls(self, module: str) -> list[RecordedCall]:
        return self.flow.calls_of(module)

    def producer(self, value: int) -> RecordedCall | None:
        return self.flow.producer(self.find(value))

    def consumers(self, value: int) -> list[RecordedCall]:
        """Readers of the value, without norms that are folded away: their output is the value itself."""
        root = self.find(value)
        readers = [call for same in self._same(root) for call in self.flow.consumers(same)]
        return [call for call in readers if not (call.outputs and self.find(call.outputs[0]) == root)]

    def escapes(self, value: int) -> str | None:
        return next((why for same in self._same(value) if (why := self.flow.escapes(same))), None)

    def path_back(self, value: int) -> tuple[list[int], RecordedCall | None]:
        """From the norm's input back to what made it, through reshapes; the path begins at the norm."""
        path, producer = [value], self.producer(value)
        while producer is not None and self.reshapes(producer):
            path.append(producer.inputs[0])
            producer = self.producer(producer.inputs[0])
        return path, producer

    def reshapes(self, call: RecordedCall) -> bool:
        if call.module is not None:
            return isinstance(self.modules[call.module], (nn.Flatten, nn.Unflatten))
        return call.op in _RESHAPES and len(call.outputs) == 1

    def only_read_along(self, path: list[int], last: RecordedCall) -> str | None:
        """Why something else than the path, which ends with the call `last`, sees a value of it."""
        for value in path:
            others = [call for call in self.consumers(value) if call.index != last.index]
            if others:
                return f"its input is also read by {others[0].module or others[0].op}"
            if self.escapes(value):
                return f"its input is seen elsewhere: {self.escapes(value)}"
            last = self.producer(value) or last
        return None

    def ends(self, value: int) -> list[int]:
        """The value and what one reshape makes of it."""
        return [value, *(call.outputs[0] for call in self.consumers(value) if self.reshapes(call))]

    def sole_reader(self, value: int) -> tuple[int, RecordedCall | None, str | None]:
        readers = self.consumers(value)
        if len(readers) != 1:
            return value, None, f"its output has {len(readers)} readers"
        escapes = self.escapes(value)
        return value, readers[0], f"its output is seen elsewhere: {escapes}" if escapes else None
