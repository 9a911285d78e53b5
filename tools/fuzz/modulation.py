"""The shapes of `modulate=(scale, shift)`, by what they tell apart."""

from __future__ import annotations

from collections.abc import Callable

from .case import Case
from .norms import NORMS, is_unbatched

Shape = tuple[int, ...]


def is_modulated(case: Case) -> bool:
    """Whether a scale or a shift is given."""
    return "scale" in case.tensors or "shift" in case.tensors


def axes_of(case: Case) -> int:
    """How many last axes the norm covers; 0: channels are at axis 1; -1: at axis 0."""
    return case.part if not NORMS[case.norm].channels else -1 if is_unbatched(case) else 0


def shape_of_form(case: Case, form: str) -> Shape:
    """The shape of scale or shift."""
    return FORMS[form](case.shape, axes_of(case))


def _short(shape: Shape, axes: int) -> Shape:
    """(N, C), or (N, D) for rows."""
    if axes <= 0:
        return shape[: 2 + axes]
    return (*shape[:1], *shape[-axes:]) if axes < len(shape) else shape


def _sample(shape: Shape, axes: int) -> Shape:
    return (1 if axes < 0 else shape[0], *[1] * (len(shape) - 1)) if axes < len(shape) else shape


def _plane(shape: Shape, axes: int) -> Shape:
    """The short form, of the input's rank."""
    if axes <= 0:
        return (*shape[: 2 + axes], *[1] * (len(shape) - 2 - axes))
    return (*shape[:1], *[1] * (len(shape) - axes - 1), *shape[-axes:]) if axes < len(shape) else shape


def _channel(shape: Shape, axes: int) -> Shape:
    """The same for all samples."""
    if axes > 0:
        return (*[1] * (len(shape) - axes), *shape[-axes:])
    at = 1 + axes
    return (*[1] * at, shape[at], *[1] * (len(shape) - at - 1))


def _position(shape: Shape, axes: int) -> Shape:
    """The same for all that a position has."""
    if axes > 0:
        return (*shape[:-axes], *[1] * axes)
    at = 1 + axes
    return (*shape[:at], 1, *shape[at + 1 :])


FORMS: dict[str, Callable[[Shape, int], Shape]] = {
    "": _short,
    "sample": _sample,
    "plane": _plane,
    "channel": _channel,
    "position": _position,
    "element": lambda shape, axes: shape,
    "number": lambda shape, axes: (),
    "vector": lambda shape, axes: shape[-axes:] if axes > 0 else (1,) * len(shape),  # of rows
}
