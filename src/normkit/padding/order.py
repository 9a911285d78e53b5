"""Calls that repeat, sort, choose or take apart positions: after most of them a sample's real values no longer come
first, and what is real is not known any more. Rules as those of `axes.py`.
"""

from __future__ import annotations

from torch import Tensor

from .axes import pieces
from .call import PaddedCall
from .track import LOST, Track


def repeated(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """repeat and tile: a padded axis that is repeated has padding between its real values."""
    after = tuple(results[0].shape)
    new = len(after) - len(shape)  # axes in front
    gone = [axis for axis in call.track.spans if after[axis + new] != shape[axis]]
    return [call.track.without(gone).shifted(new)] if after[call.track.batch + new] == shape[call.track.batch] else None


def rearranged(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """sort, topk, gather and their like: positions of one axis in another order, padding among them; along the axis of
    samples, values of several in one."""
    place, default = _AXIS.get(call.name, (1, -1))
    dim = call.argument(place, "dim", default)
    flat = dim is None or not isinstance(dim, int)  # over all values, or names
    if flat or dim % len(shape) == call.track.batch:
        return [LOST] * len(results)
    gone = {dim % len(shape)} & set(call.track.spans)
    return [call.track.without(gone)] * len(results) if gone else None


# name -> (place of the axis among the arguments, the axis where none is given); others: the second, the last
_AXIS = {"msort": (9, 0), "topk": (2, -1), "take_along_dim": (2, None), "rot90": (9, None)}


def unknown(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """Calls whose result has positions of its own, in an order that lengths do not tell."""
    return [LOST] * len(results)


def parts(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """chunk and tensor_split: into so many parts of equal size a sample alone would be cut elsewhere; into parts of
    given sizes as `pieces` has it."""
    cut = {axis for axis in call.track.spans if any(one.shape[axis] != shape[axis] for one in results)}
    given = call.kwargs.get("sections", call.kwargs.get("indices_or_sections"))
    by_count = isinstance(call.argument(1, "chunks", given), int)
    return [call.track.without(cut)] * len(results) if cut and by_count else pieces(call, shape, results)


def differences(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """diff(x, n, dim): n positions less of each sample, and as many more as are put in front of it."""
    n, dim = int(call.argument(1, "n", 1)), int(call.argument(2, "dim", -1)) % len(shape)
    front, behind = call.argument(3, "prepend"), call.argument(4, "append")
    if behind is not None and dim in call.track.spans:
        return [call.track.without([dim])]
    return _shortened(call, dim, n - (0 if front is None else front.shape[dim]))


def trapezoids(call: PaddedCall, shape: tuple[int, ...], results: list[Tensor]) -> list[Track] | None:
    """cumulative_trapezoid(y, dim=): a position less of each sample."""
    return _shortened(call, int(call.kwargs.get("dim", -1)) % len(shape), 1)


def _shortened(call: PaddedCall, dim: int, by: int) -> list[Track] | None:
    """So many positions less of each sample; None along an axis that is not padded."""
    span = call.track.spans.get(dim)
    return None if span is None else [call.track.with_spans({dim: span.of(span.real - by)})]
