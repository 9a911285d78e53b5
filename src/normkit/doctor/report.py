"""What a diagnosis says, as data: findings and the numbers around them, with a JSON form that schema.json describes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..info import version
from .finding import Finding, at_least
from .gap_report import Gap

SCHEMA = "normkit.diagnosis/1"


@dataclass(frozen=True)
class Layer:
    """What batches showed of one norm whose statistics were measured, in units of sqrt(running_var + eps).

    distance: of the running statistics from the exact ones, root mean square over the channels, without sampling noise.
    margin: how far that may be off. batch: the distance of single batches' statistics. change: of the answer, in its
    standard deviations, by this layer alone; None where no pass was spent on it.
    """

    name: str
    type: str
    distance: float | None
    margin: float | None
    batch: float | None
    change: float | None


@dataclass(frozen=True, eq=False)
class Report:
    """What was found. findings: the worst first, then in the model's order. model: its class. norms: how many it has.
    batches, images: how many were looked at, 0 for a state alone. change, noise: of the answer by the running
    statistics, and by single batches' (see `Forward`). gap: the train/eval gap with each layer's share, or
    None. layers: the norms whose statistics were measured, in the model's order. narrowed: not all rules were asked."""

    findings: tuple[Finding, ...]
    model: str
    norms: int
    batches: int = 0
    images: int = 0
    change: float | None = None
    noise: float | None = None
    gap: Gap | None = None
    layers: tuple[Layer, ...] = ()
    narrowed: bool = False

    @property
    def healthy(self) -> bool:
        """Whether nothing is above a note."""
        return not any(at_least(finding.severity, "warning") for finding in self.findings)

    def at_least(self, severity: Any) -> tuple[Finding, ...]:
        """The findings of this severity ("note", "warning", "error") or worse."""
        return tuple(finding for finding in self.findings if at_least(finding.severity, severity))

    def distance(self, layer: str) -> float | None:
        """How far a layer's statistics are from the data's; None where that was not measured, or is no number."""
        return next((found.distance for found in self.layers if found.name == layer), None)

    def to_json(self) -> str:
        """The form of schema.json: the same input gives the same text."""
        document = {
            "schema": SCHEMA, "normkit": version(), "model": self.model, "norms": self.norms, "batches": self.batches,
            "images": self.images, "change": self.change, "noise": self.noise, "healthy": self.healthy,
            "gap": None if self.gap is None else self.gap.to_document(),
            "layers": [asdict(layer) for layer in self.layers],
            "findings": [finding.to_json() for finding in self.findings],
        }  # fmt: skip
        return json.dumps(document, allow_nan=False, indent=1)
