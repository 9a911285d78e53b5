"""What `nk.load_norm_state` did, layer by layer, and what is left on either side: data first, rendering last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ..model.table import Table, Tabular

_COLUMNS = ("layer", "from", "what", "eps", "momentum", "converted")


@dataclass(frozen=True)
class LoadedNorm:
    """One layer of the model: `origin` is the norm of the state, `what` its tensors that were written, `converted` what
    was changed on the way and where eps and momentum come from. momentum: PyTorch's; None where the layer has none."""

    name: str
    origin: str
    what: tuple[str, ...]
    eps: float | None
    momentum: float | None
    converted: tuple[str, ...]


@dataclass(frozen=True)
class LoadedState(Tabular):
    """missing: the model's norms that got nothing, with the reason; unused: the state's norms that went nowhere."""

    source: str
    layers: tuple[LoadedNorm, ...]
    missing: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LoadedNorm]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LoadedNorm:
        """A layer by its qualified name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LoadedState:
        """The inverse of `to_json`."""
        data = json.loads(text)
        layers = tuple(
            LoadedNorm(**{**layer, "what": tuple(layer["what"]), "converted": tuple(layer["converted"])})
            for layer in data["layers"]
        )
        missing = tuple((name, reason) for name, reason in data["missing"])
        return cls(data["source"], layers, missing, tuple(data["unused"]))

    def table(self) -> Table:
        """One row a norm of the model, then one for each norm of the state that went nowhere."""
        rows = [_row(layer) for layer in self.layers]
        rows += [(name or "(the model itself)", "", "left as it was", "", "", reason) for name, reason in self.missing]
        rows += [("", name, "not used", "", "", "") for name in self.unused]
        done = (True,) * len(self.layers) + (False,) * (len(self.missing) + len(self.unused))
        return Table(_COLUMNS, tuple(rows), done, (self.summary(),))

    def summary(self) -> str:
        return (
            f"{len(self.layers)} norms from {self.source}; left: {len(self.missing)} of the model, "
            f"{len(self.unused)} of the state"
        )


def _row(layer: LoadedNorm) -> tuple[str, ...]:
    numbers = ["" if value is None else f"{value:.4g}" for value in (layer.eps, layer.momentum)]
    name = layer.name or "(the model itself)"
    return (name, layer.origin, ", ".join(layer.what), *numbers, "; ".join(layer.converted))
