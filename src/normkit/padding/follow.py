"""What each call of torch inside of the block leaves of the padded axes.

A call is known by its function's name, which torch's functions, methods and properties share. Who is not in the tables
below is taken for what most are: elementwise, or of one position each. Its result is laid beside its operands, and
where no padded operand fits it, the axis at the same place has the lengths of the other tensors of its size, or the
same share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._torch import PAD_PACKED
from . import alone, axes, order, reshape, windows
from .call import PaddedCall
from .track import LOST, Lengths, Track, agreed

Tracks = Callable[[Tensor], "Track | None"]

_RUN: dict[str, Callable[[PaddedCall], tuple[Any, Track] | None]] = {  # calls that are made otherwise
    **{f"conv{rank}d": windows.convolve for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": windows.convolve for rank in (1, 2, 3)},
    **{f"max_pool{rank}d{end}": windows.max_pool for rank in (1, 2, 3) for end in ("", "_with_indices")},
    **{f"avg_pool{rank}d": windows.avg_pool for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": alone.adaptive_pool for rank in (1, 2, 3)},
    **{f"adaptive_max_pool{rank}d{end}": alone.adaptive_pool for rank in (1, 2, 3) for end in ("", "_with_indices")},
    **dict.fromkeys(("interpolate", "upsample"), alone.interpolate),
    **dict.fromkeys(("pad", "constant_pad_nd"), alone.pad),
    **dict.fromkeys(("flip", "fliplr", "flipud", "roll"), alone.turned),
    **{f"lp_pool{rank}d": alone.lp_pool for rank in (1, 2, 3)},
    **{f"max_unpool{rank}d": windows.max_unpool for rank in (1, 2, 3)},
}
_MOVED = "transpose swapaxes swapdims permute movedim moveaxis t adjoint unsqueeze select unbind T mT H mH"
_REDUCED = (
    "mean sum nanmean nansum amax amin max min prod std var std_mean var_mean median argmax argmin any all logsumexp "
    "count_nonzero"
)
_RESHAPED = "reshape view flatten unflatten ravel view_as reshape_as"
_CUT = "split split_with_sizes unsafe_split"
_CUT_BY_COUNT = "chunk tensor_split hsplit vsplit dsplit unsafe_chunk"
_REARRANGED = "sort msort argsort topk gather take_along_dim rot90"
_RULES: dict[str, axes.Rule] = {  # calls that are made as they are
    **dict.fromkeys(_MOVED.split(), axes.moved),
    **dict.fromkeys(_REDUCED.split(), axes.reduced),
    **dict.fromkeys(_RESHAPED.split(), reshape.reshaped),
    **dict.fromkeys(_CUT.split(), axes.pieces),
    **dict.fromkeys(_CUT_BY_COUNT.split(), order.parts),
    **dict.fromkeys(_REARRANGED.split(), order.rearranged),
    **dict.fromkeys(("repeat", "tile"), order.repeated),
    **dict.fromkeys(("fold", "grid_sample", "conv_tbc"), order.unknown),
    "diff": order.differences,
    "cumulative_trapezoid": order.trapezoids,
    "squeeze": axes.squeezed,
    "__getitem__": axes.indexed,
    "narrow": axes.narrowed,
    "unfold": axes.unfolded,
    "index_select": axes.selected,
    **dict.fromkeys(("linear", "matmul", "__matmul__", "bmm", "mv"), axes.contracted),
}
_MIXING = frozenset(("linear", "matmul", "__matmul__", "bmm", "baddbmm", "einsum", "tensordot", "bilinear"))
_JOINING = {**dict.fromkeys(("cat", "concat", "concatenate"), axes.joined), "stack": axes.stacked}
_ALONG = {"vstack": 0, "row_stack": 0, "hstack": 1, "column_stack": 1, "dstack": 2}  # cat, of tensors with that axis


def name_of(function: Any) -> str:
    """The name that torch's function, method and property of one meaning share."""
    name = getattr(function, "__name__", "")
    if name == "__get__":  # of a property, as x.T
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    return name if name.startswith("__") else name.rstrip("_")


def follow(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tracks: Tracks, exact: bool, known: Lengths
) -> tuple[Any, list[tuple[Tensor, Track]]]:
    """Make a call: (its result, the track of each tensor in it). No operand is padded: no track."""
    operands = list(tensors_in((*args, *kwargs.values())))
    found = [(one, track) for one in operands if (track := tracks(one)) is not None]
    if not found:
        return function(*args, **kwargs), []
    name = name_of(function)
    x = args[0] if args else kwargs.get("input", kwargs.get("query"))
    track = tracks(x) if isinstance(x, Tensor) else None
    shapes = [tuple(one.shape) for one, _ in found]
    call = None
    if isinstance(x, Tensor) and track is not None and not track.lost and track.fits(x.shape):
        call = PaddedCall(name, function, args, kwargs, x, track, exact, known)
        if name in _RUN and (made := _RUN[name](call)) is not None:
            result, common = made
            return result, [(one, common) for one in tensors_in((result,))]
    before = tuple(x.shape) if isinstance(x, Tensor) else ()
    result = function(*args, **kwargs)
    results = list(tensors_in((result,)))
    if not results:
        return result, []
    after: list[Track] | None = None
    in_place = any(one is x for one in results) and tuple(results[0].shape) == before
    if name == PAD_PACKED:
        after = axes.padded_again(results, args)
    elif call is not None and name in _RULES and not in_place:
        after = _RULES[name](call, before, results)
    elif name in _JOINING and isinstance(x, (list, tuple)):
        dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        after = [_JOINING[name](x, [tracks(part) or LOST for part in x], dim, known)]
    elif name in _ALONG and isinstance(x, (list, tuple)):
        own = [tracks(part) or LOST for part in x]
        after = [axes.joined(x, own, _ALONG[name], known) if x[0].dim() > _ALONG[name] else LOST]
    if after is None:
        own = [one_track for _, one_track in found]
        scales = name not in _MIXING  # an axis of another size is another axis there
        after = [_beside(tuple(one.shape), shapes, own, known, scales) for one in results]
    checked = [t if t.fits(one.shape) else LOST for one, t in zip(results, after, strict=True)]
    return result, list(zip(results, checked, strict=True))


def beside(made: Tensor, operands: Sequence[tuple[Tensor, Track]], known: Lengths) -> Track:
    """The track of what an unknown call has made of these operands."""
    own = [track for _, track in operands]
    found = _beside(tuple(made.shape), [tuple(one.shape) for one, _ in operands], own, known, True)
    return found if found.fits(made.shape) else LOST


def _beside(
    shape: tuple[int, ...], shapes: list[tuple[int, ...]], tracks: list[Track], known: Lengths, scales: bool
) -> Track:
    """The track of a result of this shape, from operands of these shapes: those that fit it from the right, as
    broadcasting lays them, or from the left, as an embedding adds axes. scales: whether an axis may change its size."""
    padded = [(own, track) for own, track in zip(shapes, tracks, strict=True) if not track.lost]
    fitting = []
    for own, track in padded:
        for shift in dict.fromkeys((len(shape) - len(own), 0)):
            here = shape[shift:] if shift >= 0 else ()
            if all(axis < len(here) and own[axis] == here[axis] for axis in track.axes):
                fitting.append(track.shifted(shift))
                break
    if fitting:
        return agreed(fitting, shape, known)
    for own, track in padded if scales else ():
        if len(own) == len(shape) and own[track.batch] == shape[track.batch] and track.rows is None:
            return _scaled(shape, own, track, known)
    return LOST


def _scaled(shape: tuple[int, ...], own: tuple[int, ...], track: Track, known: Lengths) -> Track:
    """Axes that have changed their size in a way that is not known."""
    spans, gone = {}, []
    for axis, span in track.spans.items():
        old, new = own[axis], shape[axis]
        if old == new:
            continue
        lengths = known(span.origin, new)
        if lengths is not None and len(lengths) == len(span.real):
            spans[axis] = span.of(lengths)
        elif new == 1:
            gone.append(axis)
        else:
            spans[axis] = span.of(-(-span.real * new).div(old, rounding_mode="floor"))
    return track.with_spans(spans).without(gone)


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among some values, and in lists, tuples and mappings of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(list(value.values()))
    return found
