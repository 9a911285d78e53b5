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
from .._torch import make_norm
from ..model.families import BATCH_FAMILIES, is_ours
from ..model.swap import kind, take_over
from .layer_facts import LayerFacts

Built = tuple[nn.Module, str] | str

_AFRESH = "running statistics start afresh: train or recalibrate before evaluation"
_UNKNOWN_RANK = "whether it sees 1, 2 or 3 spatial dimensions is not known from its class: pass example_inputs"
_UNKNOWN_POSITIONS = "whether it sees (N, C) or (N, C, L) is not known from its class: pass example_inputs"
_OTHER_AXIS = "normalizes over the last axes, not per channel of axis 1"


def build(facts: LayerFacts, target: str, *, flat: bool | None, probably_flat: bool) -> Built:
    """flat: whether a layer of rank 1 sees (N, C), None where that is not known; probably_flat: a guess then."""
    return _BUILDERS[target](facts, probably_flat if target == "group" else flat)


def _batch_like(prefix: str) -> Callable[[LayerFacts, bool | None], Built]:
    def built(facts: LayerFacts, flat: bool | None) -> Built:
        refusal = _channel_refusal(facts)
        if refusal is not None:
            return refusal
        options: dict[str, Any] = {"momentum": facts.momentum, "track_running_stats": facts.tracks}
        if hasattr(facts.module, "small_batch"):
            options["small_batch"] = facts.module.small_batch
        if prefix == "BatchRenorm" and not facts.tracks:
            return "it keeps no running statistics, which batch renormalization corrects to"
        return _with_statistics(_make(facts, f"{prefix}{facts.spatial}d", **options), facts)

    return built


def _sync(facts: LayerFacts, flat: bool | None) -> Built:
    if not facts.in_channels_axis:
        return f"{kind(facts.module)} {_OTHER_AXIS}"
    options = {"momentum": facts.momentum, "track_running_stats": facts.tracks}
    new = _make(facts, "SyncBatchNorm", process_group=getattr(facts.module, "process_group", None), **options)
    if facts.spatial is not None:
        new.__dict__["_normkit_spatial"] = facts.spatial  # the way back to BatchNormNd
    return _with_statistics(new, facts)


def _frozen(facts: LayerFacts, flat: bool | None) -> Built:
    refusal = _channel_refusal(facts)
    if refusal is not None:
        return refusal
    old = facts.statistics
    if facts.family not in BATCH_FAMILIES or "running_var" not in old:
        return f"{kind(facts.module)} has no running statistics to freeze at"
    made = getattr(layers, f"FrozenBatchNorm{facts.spatial}d")
    new = made(facts.channels, facts.eps, device="meta", activation=facts.activation)
    for name, tensor, absent in (("weight", facts.weight, 1), ("bias", facts.bias, 0)):
        new._buffers[name] = torch.full_like(old["running_mean"], absent) if tensor is None else tensor.detach()
    new._buffers.update({name: old[name] for name in ("running_mean", "running_var")})
    new._widen_statistics()
    take_over(new, facts.module)
    return new, ""


def _group(facts: LayerFacts, flat: bool | None) -> Built:
    if not facts.in_channels_axis:
        return f"{kind(facts.module)} {_OTHER_AXIS}"
    count, remark = groups(facts.channels, flat=bool(flat) and facts.spatial == 1)
    if facts.family == "group":  # torch's own, or another library's: the groups stay
        count, remark = int(facts.module.num_groups), ""  # type: ignore[arg-type]  # a GroupNorm has it
    return _finished(_make(facts, "GroupNorm", count), facts, remark)


def _layer(facts: LayerFacts, flat: bool | None) -> Built:
    if facts.family == "rms":
        return f"{kind(facts.module)} subtracts no mean: layer norm is another function"
    if facts.family == "layer":
        shape = facts.module.normalized_shape
        return _finished(_make(facts, "LayerNorm", shape=shape), facts, "")
    if facts.spatial == 1 and flat:
        return _finished(_make(facts, "LayerNorm", shape=(facts.channels,)), facts, "")
    if facts.spatial is None or (facts.spatial == 1 and flat is None):
        return _UNKNOWN_RANK if facts.spatial is None else _UNKNOWN_POSITIONS
    if facts.spatial != 2:
        return "layer norm over channels is known for (N, C) and (N, C, H, W) only, and this is not seen to be either"
    return _finished(_make(facts, "LayerNorm2d"), facts, "")


def _instance(facts: LayerFacts, flat: bool | None) -> Built:
    refusal = _channel_refusal(facts)
    if refusal is not None:
        return refusal
    if facts.spatial == 1 and flat is not False and facts.family != "instance":
        return "instance norm has no positions to average over in (N, C)" if flat else _UNKNOWN_POSITIONS
    tracks = facts.family == "instance" and "running_mean" in facts.statistics
    name = f"InstanceNorm{facts.spatial}d"
    new = _make(facts, name, momentum=facts.momentum, track_running_stats=tracks)
    return _with_statistics(new, facts) if tracks else _finished(new, facts, "")


def _rms(facts: LayerFacts, flat: bool | None) -> Built:
    if facts.family != "rms":
        return f"{kind(facts.module)} subtracts the mean: RMS norm is another function"
    return _finished(_make(facts, "RMSNorm", shape=facts.module.normalized_shape), facts, "")


def _torch(facts: LayerFacts, flat: bool | None) -> Built:
    if facts.activation is not None:
        return "its activation is part of it, and torch's layer has none"
    if facts.family == "frozen" and not is_ours(facts.module):
        return "it is frozen, and torch.nn has no such layer"
    if facts.family in BATCH_FAMILIES:
        if facts.spatial is None:
            return _UNKNOWN_RANK
        options = {"momentum": facts.momentum, "track_running_stats": facts.tracks}
        new = _make(facts, f"BatchNorm{facts.spatial}d", library=nn, **options)
        remark = "" if facts.family in ("batch", "sync") else f"torch has no {kind(facts.module)}"
        return _with_statistics(new, facts, remark)
    if facts.family == "instance":
        tracks = "running_mean" in facts.statistics
        name = f"InstanceNorm{facts.spatial}d"
        new = _make(facts, name, library=nn, momentum=facts.momentum, track_running_stats=tracks)
        return _with_statistics(new, facts) if tracks else _finished(new, facts, "")
    if facts.family == "group":
        return _finished(_make(facts, "GroupNorm", int(facts.module.num_groups), library=nn), facts, "")  # type: ignore[arg-type]  # a GroupNorm has it
    if facts.family in ("layer", "rms"):
        name = "LayerNorm" if facts.family == "layer" else "RMSNorm"
        return _finished(_make(facts, name, library=nn, shape=facts.module.normalized_shape), facts, "")
    return f"torch.nn has no {kind(facts.module)}"


_BUILDERS: dict[str, Callable[[LayerFacts, bool | None], Built]] = {
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


def _channel_refusal(facts: LayerFacts) -> str | None:
    if not facts.in_channels_axis:
        return f"{kind(facts.module)} {_OTHER_AXIS}"
    return _UNKNOWN_RANK if facts.spatial is None else None


def _make(facts: LayerFacts, name: str, *first: int, library: Any = layers, shape: Any = None, **options: Any) -> Any:
    """The empty layer, on the meta device, by the name of its class."""
    if shape is None:
        first = (*first, facts.channels)
    options["eps"] = facts.eps
    affine = "elementwise_affine" if name in ("LayerNorm", "RMSNorm", "LayerNorm2d") else "affine"
    options[affine] = facts.weight is not None
    if library is layers and facts.activation is not None:
        options["activation"] = facts.activation
    norm, given = getattr(library, name), (first if shape is None else (shape,))
    if name == "RMSNorm":
        return norm(*given, device="meta", **options)
    return make_norm(norm, *given, device="meta", bias=facts.bias is not None, **options)


def _with_statistics(new: Any, facts: LayerFacts, remark: str = "") -> Built:
    old = facts.statistics
    for name, made in list(new._buffers.items()):
        if made is not None:
            new._buffers[name] = old[name] if name in old else _initial(name, made, facts)
    if hasattr(new, "_widen_statistics"):
        new._widen_statistics()
    if "running_mean" in new._buffers and new._buffers["running_mean"] is not None and "running_mean" not in old:
        remark = f"{remark}; {_AFRESH}" if remark else _AFRESH
    return _finished(new, facts, remark)


def _initial(name: str, made: Tensor, facts: LayerFacts) -> Tensor:
    device = next((t.device for t in (facts.weight, facts.bias, *facts.statistics.values()) if t is not None), None)
    value = 1 if name == "running_var" else 0
    return torch.full(made.shape, value, dtype=made.dtype, device=device)


def _finished(new: nn.Module, facts: LayerFacts, remark: str) -> Built:
    for name, tensor in (("weight", facts.weight), ("bias", facts.bias)):
        if tensor is not None:
            # a frozen layer holds buffers; what it turns into is trained again
            new._parameters[name] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
    take_over(new, facts.module)
    return new, remark
