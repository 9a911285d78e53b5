"""The eps that a norm should have: that of its architecture's reference, where it is known, or of the other layers."""

from __future__ import annotations

from statistics import mode
from typing import NamedTuple

from ..model.families import BATCH_FAMILIES
from .state import NormState, State

# (package, beginning of the class name) -> eps of all its batch norms; the same name in another library has another one
REFERENCES = {
    ("torchvision", "MobileNetV3"): 1e-3,
    ("torchvision", "Inception3"): 1e-3,
    ("torchvision", "GoogLeNet"): 1e-3,
    ("ultralytics", "DetectionModel"): 1e-3,
}


class Wanted(NamedTuple):
    """eps: what the norm should have. known: by the reference; else by the model's other layers of its kind."""

    norm: NormState
    eps: float
    known: bool


def other_eps(state: State) -> list[Wanted]:
    """Every norm whose eps is not the one that it should have."""
    reference = _reference(state)
    found = []
    for (kind, *_), norms in _by_family(state).items():
        usual = mode([norm.eps for norm in norms])
        wanted = reference if reference is not None and kind == "batch" else usual
        if wanted is not None:
            found += [Wanted(norm, wanted, wanted == reference) for norm in norms if norm.eps != wanted]
    return found


def _by_family(state: State) -> dict[tuple[str, str], list[NormState]]:
    found: dict[tuple[str, str], list[NormState]] = {}
    for norm in state.norms:
        if norm.eps is not None:
            family = "batch" if norm.family in BATCH_FAMILIES else str(norm.family)
            found.setdefault((family, norm.copy), []).append(norm)
    return found


def _reference(state: State) -> float | None:
    known = (
        eps for (library, name), eps in REFERENCES.items() if state.library == library and state.kind.startswith(name)
    )
    return next(known, None)
