"""Which norm folds into which neighbour, decided on the flow of one run, and what the neighbour will hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .._torch import ConvBase, hooked
from ..model.dataflow import Flow
from ..model.families import BATCH_FAMILIES, author, family
from ..model.recorder import RecordedCall
from ..model.select import Site
from ..model.swap import kind, parametrized, put
from ..model.transaction import Transaction
from .affine import Affine, Weights, affine_of, border, fold_after, fold_before
from .affine_probe import takes_affine
from .domains import owner
from .fold_flow import FoldedFlow
from .folded_rest import folded_rest
from .probe import Structure, structure

_LAYERS = (ConvBase, nn.Linear)


class FoldPlan:
    """Norms to fold (`add`), the folding (`fold_all`), the reasons of what stays; `write` changes the model."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.flow = FoldedFlow(flow, self.modules)
        self.owners = _owners(model)
        self.reasons: dict[str, str] = {}
        self._waiting: dict[str, tuple[Site, Structure]] = {}
        self._weights: dict[str, Weights] = {}  # of the layers that norms were folded into
        self._rests: list[tuple[Site, nn.Module]] = []

    def add(self, site: Site) -> None:
        """Take a norm in, or give the reason why it stays whatever its neighbours are."""
        reason = site.refused or self._of_domains(site.name) or self._norm_refusal(site.module)
        shape = structure(site.module, modes=(False,)) if reason is None else None
        if isinstance(shape, Structure):
            self._waiting[site.name] = (site, shape)
        else:
            self.reasons[site.name] = reason or str(shape)

    def _of_domains(self, name: str) -> str | None:
        if owner(self.modules, name) is None:
            return None
        return "it is one of several domains' norms in the same place; put layer.to_norm(domain) there first"

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

    def write(self, change: Transaction) -> None:
        """Give the layers their weights, and put the rests in the places of the norms."""
        for name, weights in self._weights.items():
            layer: Any = self.modules[name]
            change.keep_values(layer.weight, layer.bias)
            weights.write(layer)
        for site, rest in self._rests:
            put(self.model, site.names, rest)

    # -- one norm -------------------------------------------------------------------------------------------------
    def _fold(self, site: Site, shape: Structure) -> tuple[str, str] | None:
        calls = self.flow.calls(site.name)
        reason = _calls_refusal(calls) or self._escaping_parameters(site.name)
        if reason is None:
            affine = affine_of(site.module)
            reason = None if affine.finite else "its statistics or parameters are not finite"
        if reason is None:
            layers, front = self._layers_in_front(site, calls)
            if layers:
                return self._take(site, shape, calls, dict.fromkeys(layers, affine), fold_after, "in front")
            fitted, behind = self._layers_behind(site, shape, calls, affine)
            if fitted:
                return self._take(site, shape, calls, fitted, fold_before, "behind")
            reason = f"in front: {front}; behind: {behind}"
        self.reasons[site.name] = reason
        return None

    def _take(
        self,
        site: Site,
        shape: Structure,
        calls: list[RecordedCall],
        layers: dict[str, Affine],
        fold: Callable[[nn.Module, Weights, Affine], Weights],
        where: str,
    ) -> tuple[str, str]:
        for name, affine in layers.items():
            layer = self.modules[name]
            self._weights[name] = fold(layer, self._weights.get(name) or Weights.of(layer), affine)
        rest = folded_rest(shape.activation, residual=any(len(call.inputs) > 1 for call in calls))
        rest.train(site.module.training)
        self._rests.append((site, rest))
        if isinstance(rest, nn.Identity):
            for call in calls:
                self.flow.remove(call)
        return kind(rest), f"folded into {', '.join(layers)} {where}"

    # -- neighbours -----------------------------------------------------------------------------------------------
    def _layers_in_front(self, site: Site, calls: list[RecordedCall]) -> tuple[list[str], str]:
        found: dict[str, None] = {}
        for call in calls:
            path, producer = self.flow.path_back(call.inputs[0])
            reason = self._neighbour_refusal(producer, "it is fed by", path[-1])
            if producer is None or producer.module is None or reason is not None:
                return [], str(reason)
            reason = self._layer_refusal(producer.module) or self.flow.only_read_along(path, call)
            reason = reason or self._fits_after(producer, path)
            if reason is not None:
                return [], reason
            found[producer.module] = None
        fed = {self.flow.find(self.flow.path_back(call.inputs[0])[0][-1]) for call in calls}
        for name in found:
            if any(self.flow.find(call.outputs[0]) not in fed for call in self.flow.calls(name)):
                return [], f"{name} is shared: another of its outputs goes elsewhere"
        return list(found), ""

    def _fits_after(self, producer: RecordedCall, path: list[int]) -> str | None:
        name = str(producer.module)
        layer = self.modules[name]
        shapes = [self.flow.value(value).shape for value in path]
        if len(shapes) == 1:
            fits = len(shapes[0]) == _dimensions(layer)
        elif isinstance(layer, nn.Linear):
            fits = len(shapes[0]) == 2 and len({shape[-1] for shape in shapes}) == 1
        else:
            fits = len(shapes[-1]) == _dimensions(layer) and len({shape[:2] for shape in shapes}) == 1
        if not fits:
            return f"{name} has its channels on another axis than axis 1 of {shapes[0]}"
        return takes_affine(layer, self.flow.value(producer.inputs[0]).shape, shapes[0][1], after=True)

    def _layers_behind(
        self, site: Site, shape: Structure, calls: list[RecordedCall], affine: Affine
    ) -> tuple[dict[str, Affine], str]:
        if shape.activation is not None or any(len(call.inputs) > 1 for call in calls):
            return {}, "the norm has an activation or a residual of its own"
        found: dict[str, Affine] = {}
        for call in calls:
            value, reader, reason = self.flow.sole_reader(call.outputs[0])
            if reason is None and reader is not None and self.flow.reshapes(reader):
                value, reader, reason = self.flow.sole_reader(reader.outputs[0])
            reason = reason or self._neighbour_refusal(reader, "its output goes to", value)
            if reader is None or reader.module is None or reason is not None:
                return {}, str(reason)
            fitted = self._layer_refusal(reader.module) or self._fitted_before(
                reader.module, call.outputs[0], value, affine
            )
            if isinstance(fitted, str):
                return {}, fitted
            found[reader.module] = fitted
        ends = {self.flow.find(end) for call in calls for end in self.flow.ends(call.outputs[0])}
        for name in found:
            if any(self.flow.find(call.inputs[0]) not in ends for call in self.flow.calls(name)):
                return {}, f"{name} is shared with other inputs"
        return found, ""

    def _fitted_before(self, name: str, made: int, read: int, affine: Affine) -> Affine | str:
        """The affine map in terms of the channels that the layer reads, or why there is none."""
        layer, shape, seen = self.modules[name], self.flow.value(made).shape, self.flow.value(read).shape
        if len(seen) == _dimensions(layer) and shape[:2] == seen[:2]:
            fitted = affine
        elif isinstance(layer, nn.Linear) and len(shape) == 2 and shape[-1] == seen[-1]:
            fitted = affine  # (B * L, C) became (B, L, C)
        elif isinstance(layer, nn.Linear) and len(seen) == 2 and seen[0] == shape[0]:
            fitted = affine.repeated(seen[1] // shape[1])  # (N, C, *) became (N, C * positions)
        else:
            return f"{name} reads its channels on another axis than axis 1 of {shape}"
        at_border = border(layer) if bool(affine.shift.any()) else None
        reason = takes_affine(layer, seen, int(fitted.scale.numel()), after=False)
        return f"{name}: {at_border}" if at_border else reason or fitted

    def _neighbour_refusal(self, call: RecordedCall | None, how: str, value: int) -> str | None:
        if call is None:
            return f"{how} an input of the model"
        if call.module is None:
            return f"{how} {call.op}"
        module = self.modules[call.module]
        if not isinstance(module, _LAYERS):
            library = "" if author(type(module)) else f"{type(module).__module__.partition('.')[0]}."
            return f"{how} {call.module} ({library}{kind(module)})"
        ends = {self.flow.find(end) for end in (*call.inputs, *call.outputs)}
        if self.flow.find(value) not in ends:
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
        if layer.weight.is_inference():
            return f"{name} has a weight that was made in inference mode, and cannot be written"
        if not layer.weight.is_floating_point():
            return f"{name} has a weight of {layer.weight.dtype}"
        return self._escaping_parameters(name)

    # -- the norm itself ------------------------------------------------------------------------------------------
    def _norm_refusal(self, norm: Any) -> str | None:
        running = family(norm) in BATCH_FAMILIES or (family(norm) == "instance" and norm.track_running_stats)
        if not running:
            return f"{kind(norm)} takes its statistics from each input: there is nothing constant to fold"
        if norm.training and family(norm) != "frozen":
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
            reader = next((call for call in self.flow.flow.parameter_consumers(tensor) if call.module != name), None)
            if reader is not None:
                return f"a parameter of {name} is read outside of its forward, by {reader.module or reader.op}"
        return None


def _calls_refusal(calls: list[RecordedCall]) -> str | None:
    if not calls:
        return "the example inputs do not reach it"
    for call in calls:
        if len(call.outputs) != 1 or any(label == "mask" for label in call.labels[1:]):
            return "it is called with a mask, or gives something else than one tensor"
        if any(label in ("modulate", "4") for label in call.labels[1:]):  # by name, or as the argument of its place
            return "it is called with a modulation, which changes from call to call"
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
