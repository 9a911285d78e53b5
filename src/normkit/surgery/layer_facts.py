"""What a normalization layer holds, whatever its family: the facts that its successor takes over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..model.families import BATCH_FAMILIES, channels, eps, family
from .probe import Structure


@dataclass(frozen=True)
class LayerFacts:
    """channels: C. spatial: dimensions after (N, C), None where neither class nor model says. weight, bias: (C,) or
    None."""

    module: nn.Module
    family: str
    channels: int
    spatial: int | None
    eps: float
    momentum: float | None
    weight: Tensor | None
    bias: Tensor | None
    activation: str | nn.Module | None

    @property
    def statistics(self) -> dict[str, Tensor]:
        """running_mean, running_var (C,) and num_batches_tracked (), as far as the layer has them."""
        names = ("running_mean", "running_var", "num_batches_tracked")
        found = {name: self.module._buffers.get(name) for name in names}
        return {name: buffer for name, buffer in found.items() if buffer is not None}

    @property
    def tracks(self) -> bool:
        """Whether the successor should keep running statistics: a batch norm that went without keeps going without."""
        if self.family in BATCH_FAMILIES:
            return "running_mean" in self.statistics
        return True

    @property
    def in_channels_axis(self) -> bool:
        """Layer norm and RMS norm work on the last axes; every other family has its channels on axis 1."""
        return self.family not in ("layer", "rms")


def facts_of(module: Any, structure: Structure, spatial: int | None) -> LayerFacts:
    """Read the layer. spatial: see `Positions`."""
    kind = structure.family or str(family(module))
    return LayerFacts(
        module=module,
        family=kind,
        channels=channels(module),
        spatial=2 if kind == "layer2d" else spatial,
        eps=eps(module),
        momentum=module.momentum if kind in (BATCH_FAMILIES - {"frozen"}) | {"instance"} else 0.1,
        weight=module.weight,
        bias=getattr(module, "bias", None),
        activation=structure.activation,
    )
