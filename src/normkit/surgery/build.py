"""The successor of a layer in another family, with its parameters, statistics, mode and hooks.

Rules: a builder returns the new layer and a remark, or the reason why there is none. Layers are made on the meta
device (no initialisation, no random numbers) and then given the very Parameter objects of their predecessor; gamma and
beta are never dropped. Running statistics come along where both families keep them, and start afresh, which is said,
where only the new one does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as layers
from ..model.families import BATCH_FAMILIES
from ..model.swap import kind, take_over
from .source import Source

Built = tuple[nn.Module, str] | str

_AFRESH = "running statistics start afresh: train or recalibrate before evaluation"
_UNKNOWN_RANK = "whether it sees 1, 2 or 3 spatial dimensions is not known: neither its class nor the convolutions say"
_OTHER_AXIS = "normalizes over the last axes, not per channel of axis 1"


def build(source: Source, target: str, *, flat: bool) -> Built:
    """flat: one-dimensional layers of this model see (N, C), as far as its convolutions tell."""
    return _BUILDERS[target](source, flat)


def _batch_like(prefix: str) -> Callable[[Source, bool], Built]:
    def built(source: Source, flat: bool) -> Built:
        refusal = _channel_refusal(source)
        if refusal is not None:
            return refusal
        options: dict[str, Any] = {"momentum": source.momentum, "track_running_stats": source.tracks}
        if hasattr(source.module, "small_batch"):
            options["small_batch"] = source.module.small_batch
        if prefix == "BatchRenorm" and not source.tracks:
            return "it keeps no running statistics, which batch renormalization corrects to"
        return _with_statistics(_make(source, f"{prefix}{source.spatial}d", **options), source)

    return built


def _sync(source: Source, flat: bool) -> Built:
    if not source.in_channels_axis:
        return f"{kind(source.module)} {_OTHER_AXIS}"
    options = {"momentum": source.momentum, "track_running_stats": source.tracks}
    new = _make(source, "SyncBatchNorm", process_group=getattr(source.module, "process_group", None), **options)
    if source.spatial is not None:
        new.__dict__["_normkit_spatial"] = source.spatial  # the way back to BatchNormNd
    return _with_statistics(new, source)


def _frozen(source: Source, flat: bool) -> Built:
    refusal = _channel_refusal(source)
    if refusal is not None:
        return refusal
    old = source.statistics
    if source.family not in BATCH_FAMILIES or "running_var" not in old:
        return f"{kind(source.module)} has no running statistics to freeze at"
    made = getattr(layers, f"FrozenBatchNorm{source.spatial}d")
    new = made(source.channels, source.eps, device="meta", activation=source.activation)
    for name, tensor, absent in (("weight", source.weight, 1), ("bias", source.bias, 0)):
        new._buffers[name] = torch.full_like(old["running_mean"], absent) if tensor is None else tensor.detach()
    new._buffers.update({name: old[name] for name in ("running_mean", "running_var")})
    new._widen_statistics()
    take_over(new, source.module)
    return new, ""


def _group(source: Source, flat: bool) -> Built:
    if not source.in_channels_axis:
        return f"{kind(source.module)} {_OTHER_AXIS}"
    count, remark = groups(source.channels, flat=flat and source.spatial == 1)
    if source.family == "group":  # torch's own, or another library's: the groups stay
        count, remark = int(source.module.num_groups), ""  # type: ignore[arg-type]  # a GroupNorm has it
    return _finished(_make(source, "GroupNorm", count), source, remark)


def _layer(source: Source, flat: bool) -> Built:
    if source.family == "rms":
        return f"{kind(source.module)} subtracts no mean: layer norm is another function"
    if source.family == "layer":
        shape = source.module.normalized_shape
        return _finished(_make(source, "LayerNorm", shape=shape), source, "")
    if source.spatial == 1 and flat:
        return _finished(_make(source, "LayerNorm", shape=(source.channels,)), source, "")
    if source.spatial != 2:
        return "layer norm over channels is known for (N, C) and (N, C, H, W) only, and this is not seen to be either"
    return _finished(_make(source, "LayerNorm2d"), source, "")


def _instance(source: Source, flat: bool) -> Built:
    refusal = _channel_refusal(source)
    if refusal is not None:
        return refusal
    if source.spatial == 1 and flat and source.family != "instance":
        return "instance norm has no positions to average over in (N, C)"
    tracks = source.family == "instance" and "running_mean" in source.statistics
    name = f"InstanceNorm{source.spatial}d"
    new = _make(source, name, momentum=source.momentum, track_running_stats=tracks)
    return _with_statistics(new, source) if tracks else _finished(new, source, "")


def _rms(source: Source, flat: bool) -> Built:
    if source.family != "rms":
        return f"{kind(source.module)} subtracts the mean: RMS norm is another function"
    return _finished(_make(source, "RMSNorm", shape=source.module.normalized_shape), source, "")


def _torch(source: Source, flat: bool) -> Built:
    if source.activation is not None:
        return "its activation is part of it, and torch's layer has none"
    if source.family in BATCH_FAMILIES:
        if source.spatial is None:
            return _UNKNOWN_RANK
        options = {"momentum": source.momentum, "track_running_stats": source.tracks}
        new = _make(source, f"BatchNorm{source.spatial}d", library=nn, **options)
        remark = "" if source.family in ("batch", "sync") else f"torch has no {kind(source.module)}"
        return _with_statistics(new, source, remark)
    if source.family == "instance":
        tracks = "running_mean" in source.statistics
        name = f"InstanceNorm{source.spatial}d"
        new = _make(source, name, library=nn, momentum=source.momentum, track_running_stats=tracks)
        return _with_statistics(new, source) if tracks else _finished(new, source, "")
    if source.family == "group":
        return _finished(_make(source, "GroupNorm", int(source.module.num_groups), library=nn), source, "")  # type: ignore[arg-type]  # a GroupNorm has it
    if source.family in ("layer", "rms"):
        name = "LayerNorm" if source.family == "layer" else "RMSNorm"
        return _finished(_make(source, name, library=nn, shape=source.module.normalized_shape), source, "")
    return f"torch.nn has no {kind(source.module)}"


_BUILDERS: dict[str, Callable[[Source, bool], Built]] = {
    "batch": _batch_like("BatchNorm"),
    "sync": _sync,
    "group": _group,
    "layer": _layer,
    "instance": _instance,
    "ghost": _batch_like("GhostBatchNorm"),
    "renorm": _batch_like("BatchRenorm"),
    "frozen": _frozen,
    "torch": _torch,
    "rms": _rms,
}
TARGETS = tuple(target for target in _BUILDERS if target != "rms")  # nothing but RMS norm becomes RMS norm


def groups(channels: int, *, flat: bool) -> tuple[int, str]:
    """How many groups, and a remark where it is not the 32 of Wu & He (2018).

    The largest divisor of the channels up to 32 that leaves two channels a group (eight where there are no positions:
    two values normalized by themselves are always -1 and 1).
    """
    least = 8 if flat else 2
    count = max((g for g in range(1, 33) if channels % g == 0 and channels // g >= least), default=1)
    return count, "" if count == 32 else f"{count} groups of {channels // count}: {channels} channels do not make 32"


def _channel_refusal(source: Source) -> str | None:
    if not source.in_channels_axis:
        return f"{kind(source.module)} {_OTHER_AXIS}"
    return _UNKNOWN_RANK if source.spatial is None else None


def _make(source: Source, name: str, *first: int, library: Any = layers, shape: Any = None, **options: Any) -> Any:
    """The empty layer, on the meta device, by the name of its class."""
    if shape is None:
        first = (*first, source.channels)
    options["eps"] = source.eps
    affine = "elementwise_affine" if name in ("LayerNorm", "RMSNorm", "LayerNorm2d") else "affine"
    options[affine] = source.weight is not None
    if name != "RMSNorm":
        options["bias"] = source.bias is not None
    if library is layers and source.activation is not None:
        options["activation"] = source.activation
    return getattr(library, name)(*(first if shape is None else (shape,)), device="meta", **options)


def _with_statistics(new: Any, source: Source, remark: str = "") -> Built:
    old = source.statistics
    for name, made in list(new._buffers.items()):
        if made is not None:
            new._buffers[name] = old[name] if name in old else _initial(name, made, source)
    if hasattr(new, "_widen_statistics"):
        new._widen_statistics()
    if "running_mean" in new._buffers and new._buffers["running_mean"] is not None and "running_mean" not in old:
        remark = f"{remark}; {_AFRESH}" if remark else _AFRESH
    return _finished(new, source, remark)


def _initial(name: str, made: Tensor, source: Source) -> Tensor:
    device = next((t.device for t in (source.weight, source.bias, *source.statistics.values()) if t is not None), None)
    value = 1 if name == "running_var" else 0
    return torch.full(made.shape, value, dtype=made.dtype, device=device)


def _finished(new: nn.Module, source: Source, remark: str) -> Built:
    for name, tensor in (("weight", source.weight), ("bias", source.bias)):
        if tensor is not None:
            # a frozen layer holds buffers; what it turns into is trained again
            new._parameters[name] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
    take_over(new, source.module)
    return new, remark
