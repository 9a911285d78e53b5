"""How the fault of each rule is planted in a healthy net: PLANTERS, code -> Case -> Planted.

A planter changes the case's model, or gives another one in its place; `where` is the layer that the doctor must name.
What changes the structure settles the statistics anew, so that the fault planted is the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .made import Batches, Net, settle
from .parts import put


@dataclass
class Case:
    """A healthy model that may be changed, and the batches that the doctor gets; layer: where to plant."""

    net: Net
    model: Any
    batches: Batches
    layer: str = ""
    feeder: str = ""  # the convolution or linear layer before it

    @property
    def norm(self) -> Any:
        return self.model.get_submodule(self.layer)

    @property
    def channels(self) -> int:
        return int(self.norm.num_features)

    def settle(self) -> None:
        settle(self.model.eval(), self.net.settling())

    def put(self, module: nn.Module) -> None:
        put(self.model, self.layer, module)


@dataclass(frozen=True)
class Planted:
    """What the doctor is given, and the layer that it must name."""

    model: Any
    batches: Any
    where: str
    options: dict[str, Any] = field(default_factory=dict)


Planter = Callable[[Case], Planted]
PLANTERS: dict[str, Planter] = {}


def plants(code: str) -> Callable[[Planter], Planter]:
    def keep(planter: Planter) -> Planter:
        PLANTERS[code] = planter
        return planter

    return keep


def here(case: Case, below: str = "", **options: Any) -> Planted:
    return Planted(case.model, case.batches, f"{case.layer}{below}", options)


def after(case: Case, *modules: nn.Module) -> None:
    """Put modules behind the layer; it is called `.0` then."""
    case.put(nn.Sequential(case.norm, *modules))
