"""Norms inside of the block: torch's functions run on normkit's, and each gets the mask that fits its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional as nkf
from ..functional.spec import NormSpec
from .track import Track

_BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_INSTANCE = (*_BATCH[:5], "use_input_stats", *_BATCH[6:])
_GROUP = ("input", "num_groups", "weight", "bias", "eps")
_LAYER = ("input", "normalized_shape", "weight", "bias", "eps")
_RMS = ("input", "normalized_shape", "weight", "eps")
# each function of torch -> (ours, the names of its arguments); those in C++ have an order of their own, and a last flag
NORMS: dict[Any, tuple[Callable[..., Tensor], Sequence[str]]] = {
    F.batch_norm: (nkf.batch_norm, _BATCH),
    F.instance_norm: (nkf.instance_norm, _INSTANCE),
    F.group_norm: (nkf.group_norm, _GROUP),
    F.layer_norm: (nkf.layer_norm, _LAYER),
    F.rms_norm: (nkf.rms_norm, _RMS),
    torch.batch_norm: (nkf.batch_norm, ("input", "weight", "bias", "running_mean", "running_var", *_BATCH[5:])),
    torch.instance_norm: (
        nkf.instance_norm,
        ("input", "weight", "bias", "running_mean", "running_var", *_INSTANCE[5:]),
    ),
    torch.group_norm: (nkf.group_norm, _GROUP),
    torch.layer_norm: (nkf.layer_norm, _LAYER),
    torch.rms_norm: (nkf.rms_norm, _RMS),
}
_FLAGS = ("cudnn_enabled", "cudnn_enable")


def masked(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], track: Track) -> Tensor | None:
    """A norm of torch under the mask of its input; None where none fits."""
    ours, names = NORMS[function]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for flag in _FLAGS:
        given.pop(flag, None)
    x = given["input"]
    mask = of_rows(track, x, len(given["normalized_shape"])) if "normalized_shape" in names else of_channels(track, x)
    return None if mask is None else ours(**given, mask=mask)


def mask_for(norm: NormSpec, x: Tensor, track: Track) -> Tensor | None:
    """The mask of a norm of normkit."""
    shape = getattr(norm, "normalized_shape", None)
    return of_channels(track, x) if shape is None else of_rows(track, x, len(shape))


def of_channels(track: Track, x: Tensor) -> Tensor | None:
    """Of an input (N, C, *): bool (N, 1, *); None where samples or positions lie on other axes."""
    if track.lost or track.batch != 0 or any(axis < 2 for axis in track.spans) or not track.fits(x.shape):
        return None
    return track.mask(x)


def of_rows(track: Track, x: Tensor, axes: int) -> Tensor | None:
    """Of an input whose last `axes` axes are normalized: bool, with 1 on those; None where one of them is padded."""
    if not track.fits(x.shape) or any(axis >= x.dim() - axes for axis in track.axes):
        return None
    return track.mask(x)
