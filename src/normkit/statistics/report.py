"""What recalibrate did, layer by layer: data first, with a JSON round trip; rendering last and pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..model.table import Table, Tabular

_COLUMNS = ("layer", "type", "values", "calls", "distance", "largest", "what")


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    values: how many values of each channel were merged (instance norm: samples). calls: forward calls, skipped ones
    (NaN or Inf) included. distance: how far the old statistics were from the new, root mean square over the channels;
    largest: the worst `channel`'s; both in standard deviations of the new statistics (see
    :func:`normkit.statistics.distance`), None where nothing was written or the old ones were not finite.
    """

    name: str
    type: str
    action: Literal["recalibrated", "left alone"]
    reason: str
    values: int = 0
    calls: int = 0
    skipped: int = 0
    distance: float | None = None
    largest: float | None = None
    channel: int | None = None


@dataclass(frozen=True)
class Recalibration(Tabular):
    """The result of :func:`normkit.recalibrate`: `batches` counts those of all ranks, `layers` are in model order."""

    estimator: str
    sequential: bool
    batches: int
    layers: tuple[LayerReport, ...]

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerReport:
        """A layer by its qualified name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def recalibrated(self) -> tuple[LayerReport, ...]:
        return tuple(layer for layer in self.layers if layer.action == "recalibrated")

    @property
    def left_alone(self) -> tuple[LayerReport, ...]:
        return tuple(layer for layer in self.layers if layer.action == "left alone")

    @property
    def unreached(self) -> tuple[str, ...]:
        """The names of the layers that should have been recalibrated and that no batch reached."""
        return tuple(layer.name for layer in self.left_alone if layer.reason.startswith("not reached"))

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recalibration:
        """The inverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        return cls(**{**data, "layers": tuple(LayerReport(**layer) for layer in data["layers"])})

    def summary(self) -> str:
        """One sentence."""
        how = "layer by layer" if self.sequential else "in one pass"
        text = (
            f"{len(self.recalibrated)} recalibrated {how} from {self.batches} batches ({self.estimator}), "
            f"{len(self.left_alone)} left alone"
        )
        return f"{text}, of which {len(self.unreached)} not reached" if self.unreached else text

    def table(self) -> Table:
        """One row a layer."""
        done = tuple(layer.action == "recalibrated" for layer in self.layers)
        return Table(_COLUMNS, tuple(map(_row, self.layers)), done, (self.summary(),))


def _row(layer: LayerReport) -> tuple[str, ...]:
    skipped = f" ({layer.skipped} skipped)" if layer.skipped else ""
    what = f"{layer.action}: {layer.reason}" if layer.reason else layer.action
    largest = f"{_number(layer.largest)} (channel {layer.channel})" if layer.channel is not None else ""
    distance = _number(layer.distance) if layer.channel is not None else ""
    name = layer.name or "(the model itself)"
    return name, layer.type, f"{layer.values:,}", f"{layer.calls}{skipped}", distance, largest, what


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
