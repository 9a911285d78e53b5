"""Which norm folds into which neighbour, decided on the flow of one run; the changes are written down so they can be
undone.

A folded norm disappears from the flow: its output becomes the same value as its input (`_find` follows such unions),
and its
neighbours become neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..dataflow import Call, Flow
from .affine import Affine, affine_of, border, fold_after, fold_before
from .families import BATCH_FAMILIES, family
from .probe import Structure, structure, takes_affine
from .remainder import remainder
from .select import Site
from .swap import hooked, kind, parametrized, put

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class Plan:
    """Norms to fold (`add`), the folding (`fold_all`), the reasons of what stays, and the way back (`undo`)."""

    def __init__(self, model: nn.Module, flow: Flow | None) -> None:
        self.model = model
        self.flow = flow
        self.modules = dict(model.named_modules())
        self.owners = _owners(model)
        self.reasons: dict[str, str] = {}
        self._waiting: dict[str, tuple[Site, Structure]] = {}
        self._union: dict[int, int] = {}
        self._undo: list[Callable[[], Any]] = []

    def add(self, site: Site) -> None:
        """Take a norm in, or give the reason why it stays whatever its neighbours are."""
        reason = site.refused or self._norm_refusal(site.module)
        shape = structure(site.module) if reason is None else None
        if isinstance(shape, Structure):
            self._waiting[site.name] = (site, shape)
        else:
            self.reasons[site.name] = reason or str(shape)

    def fold_all(self) -> dict[str, tuple[str, str]]:
        """Fold until nothing more folds. Returns name -> (class of what stands there now, what was done)."""
        done: dict[str, tuple[str, str]] = {}
        progress = True
        while progress:
            progress = False
            for name in list(self._waiting):
                folded = self._fold(*self._waiting[name])
                if folded is not None:
                    done[name] = folded
                    del self._waiting[name]
                    progress = True
        return done

    def undo(self) -> None:
        """Put every module and every value back."""
        for step in reversed(self._undo):
            step()

    # -- one norm -------------------------------------------------------------------------------------------------
    def _fold(self, site: Site, shape: Structure) -> tuple[str, str] | None:
        calls = self._calls(site.name)
        reason = _calls_refusal(calls) or self._escaping_parameters(site.name)
        if reason is None:
            affine = affine_of(site.module)
            layers, front = self._layers_in_front(site, calls)
            if layers:
                return self._commit(site, shape, calls, layers, lambda layer: fold_after(layer, affine), "in front")
            layers, behind = self._layers_behind(site, shape, calls, affine)
            if layers:
                return self._commit(site, shape, calls, layers, lambda layer: fold_before(layer, affine), "behind")
            reason = f"in front: {front}; behind: {behind}"
        self.reasons[site.name] = reason
        return None

    def _commit(
        self,
        site: Site,
        shape: Structure,
        calls: list[Call],
        layers: list[str],
        change: Callable[[nn.Module], None],
        where: str,
    ) -> tuple[str, str]:
        for name in layers:
            layer = self.modules[name]
            self._undo.append(_restorer(layer))
            change(layer)
        rest = remainder(shape.activation, residual=any(len(call.inputs) > 1 for call in calls))
        rest.train(site.module.training)
        put(self.model, site.names, rest)
        self._undo.append(lambda: put(self.model, site.names, site.module))
        if isinstance(rest, nn.Identity):
            for call in calls:
                self._union[self._find(call.outputs[0])] = self._find(call.inputs[0])
        return kind(rest), f"folded into {', '.join(layers)} {where}"

    # -- neighbours -----------------------------------------------------------------------------------------------
    def _layers_in_front(self, site: Site, calls: list[Call]) -> tuple[list[str], str]:
        found: dict[str, None] = {}
        for call in calls:
            value = call.inputs[0]
            producer = self._producer(value)
            reason = self._neighbour_refusal(producer, "it is fed by", value)
            if reason is None and producer is not None and producer.module is not None:
                reason = self._only_read_by(value, {site.name}) or self._fits_after(producer.module, site, value)
                found[producer.module] = None
            if reason is not None:
                return [], reason
        for name in found:
            reason = self._all_calls_go_to(name, site.name) or self._layer_refusal(name)
            if reason is not None:
                return [], reason
        return list(found), ""

    def _layers_behind(self, site: Site, shape: Structure, calls: list[Call], affine: Affine) -> tuple[list[str], str]:
        if shape.activation is not None or any(len(call.inputs) > 1 for call in calls):
            return [], "the norm has an activation or a residual of its own"
        found: dict[str, None] = {}
        for call in calls:
            value = call.outputs[0]
            readers = self._consumers(value)
            if len(readers) != 1:
                return [], f"its output has {len(readers)} readers"
            reason = self._escapes(value) or self._neighbour_refusal(readers[0], "its output goes to", value)
            if reason is not None or readers[0].module is None:
                return [], reason or ""
            reason = self._fits_before(readers[0].module, site, value, affine)
            if reason is not None:
                return [], reason
            found[readers[0].module] = None
        for name in found:
            fed = {self._find(call.inputs[0]) for call in self._calls(name)}
            reason = None if fed <= {self._find(c.outputs[0]) for c in calls} else f"{name} is shared with other inputs"
            reason = reason or self._layer_refusal(name)
            if reason is not None:
                return [], reason
        return list(found), ""

    def _neighbour_refusal(self, call: Call | None, how: str, value: int) -> str | None:
        if call is None:
            return f"{how} an input of the model"
        if call.module is None:
            return f"{how} {call.op}"
        module = self.modules[call.module]
        if not isinstance(module, _LAYERS):
            return f"{how} {call.module} ({kind(module)})"
        ends = {self._find(end) for end in (*call.inputs, *call.outputs)}
        if self._find(value) not in ends:
            return f"{how} something inside of {call.module}"
        return None if len(call.inputs) == len(call.outputs) == 1 else f"{call.module} takes or gives several tensors"

    def _layer_refusal(self, name: str) -> str | None:
        layer: Any = self.modules[name]
        if hooked(layer):
            return f"{name} has hooks, which see or change what passes"
        if parametrized(layer):
            return f"{name} has a parametrized weight"
        if not isinstance(getattr(layer, "weight", None), nn.Parameter):
            return f"{name} has no weight parameter of its own"
        if not layer.weight.is_floating_point():
            return f"{name} has a weight of {layer.weight.dtype}"
        return self._escaping_parameters(name)

    def _fits_after(self, name: str, site: Site, value: int) -> str | None:
        layer, shape = self.modules[name], self._flow.values[value].shape
        if len(shape) != _dimensions(layer):
            return f"{name} puts its channels on another axis than axis 1 of {shape}"
        source = self._calls(name)[0].inputs[0]
        return takes_affine(layer, self._flow.values[source].shape, shape[1], after=True)

    def _fits_before(self, name: str, site: Site, value: int, affine: Affine) -> str | None:
        layer, shape = self.modules[name], self._flow.values[value].shape
        if len(shape) != _dimensions(layer):
            return f"{name} reads its channels on another axis than axis 1 of {shape}"
        if bool(affine.shift.any()):
            at_border = border(layer)
            if at_border is not None:
                return f"{name}: {at_border}"
        return takes_affine(layer, shape, shape[1], after=False)

    def _only_read_by(self, value: int, names: set[str]) -> str | None:
        others = [call for call in self._consumers(value) if call.module not in names]
        if others:
            return f"its input is also read by {others[0].module or others[0].op}"
        return self._escapes(value)

    def _all_calls_go_to(self, layer: str, norm: str) -> str | None:
        for call in self._calls(layer):
            if any(reader.module != norm for reader in self._consumers(call.outputs[0])):
                return f"{layer} is shared: another of its outputs goes elsewhere"
        return None

    # -- the norm itself ------------------------------------------------------------------------------------------
    def _norm_refusal(self, norm: Any) -> str | None:
        running = family(norm) in BATCH_FAMILIES or (family(norm) == "instance" and norm.track_running_stats)
        if not running:
            return f"{kind(norm)} takes its statistics from each input: there is nothing constant to fold"
        if self.flow is None or (norm.training and family(norm) != "frozen"):
            return "in training mode it uses the statistics of the batch: call model.eval() first"
        if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
            return "it has no running statistics"
        if hooked(norm):
            return "it has hooks, which see or change what passes"
        return "it has a parametrized weight" if parametrized(norm) else None

    def _escaping_parameters(self, name: str) -> str | None:
        for tensor in (*self.modules[name].parameters(), *self.modules[name].buffers()):
            others = self.owners[id(tensor)] - {name}
            others -= {other for other in others if other.startswith(name + ".")}
            if others:
                return f"{name} shares a parameter with {min(others)}"
            reader = next((call for call in self._flow.parameter_consumers(tensor) if call.module != name), None)
            if reader is not None:
                return f"a parameter of {name} is read outside of its forward, by {reader.module or reader.op}"
        return None

    # -- the flow, with folded norms taken out --------------------------------------------------------------------
    @property
    def _flow(self) -> Flow:
        if self.flow is None:
            raise AssertionError("a model in training mode is refused before its flow is asked for")
        return self.flow

    def _find(self, value: int) -> int:
        while value in self._union:
            value = self._union[value]
        return value

    def _same(self, value: int) -> list[int]:
        root = self._find(value)
        return [root, *(other for other in self._union if self._find(other) == root)]

    def _producer(self, value: int) -> Call | None:
        return self._flow.producer(self._find(value))

    def _consumers(self, value: int) -> list[Call]:
        gone = {self._find(v) for v in (value,)}
        readers = [call for same in self._same(value) for call in self._flow.consumers(same)]
        return [call for call in readers if not (call.outputs and self._find(call.outputs[0]) in gone)]

    def _escapes(self, value: int) -> str | None:
        return next((why for same in self._same(value) if (why := self._flow.escapes(same))), None)

    def _calls(self, name: str) -> list[Call]:
        return self._flow.calls_of(name)


def _calls_refusal(calls: list[Call]) -> str | None:
    if not calls:
        return "the example inputs do not reach it"
    for call in calls:
        if len(call.outputs) != 1 or any(label == "mask" for label in call.labels[1:]):
            return "it is called with a mask, or gives something else than one tensor"
        if len(call.inputs) > 2:
            return f"it is called with {len(call.inputs)} tensors"
    return None


def _dimensions(layer: Any) -> int:
    """Dimensions of a batched input whose channels are on axis 1."""
    return 2 if isinstance(layer, nn.Linear) else 2 + len(layer.kernel_size)


def _owners(model: nn.Module) -> dict[int, set[str]]:
    """id(tensor) -> the (first) names of all modules that hold it."""
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners.setdefault(id(tensor), set()).add(name)
    return owners


def _restorer(layer: Any) -> Callable[[], Any]:
    weight: Tensor = layer.weight.detach().clone()
    bias = None if layer.bias is None else layer.bias.detach().clone()

    def restore() -> None:
        layer.weight.data.copy_(weight)
        if bias is None:
            layer.bias = None
        else:
            layer.bias.data.copy_(bias)

    return restore
