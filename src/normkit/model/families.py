"""Which normalization a layer is, and over how many spatial dimensions.

Rules: the family decides what a layer can become; the answer comes from the class (and its bases), never from the name
that the model gave it. "frozen" is told by structure: weight, bias and statistics are buffers, one value a channel,
that no training forward moves, whatever the class is called. So is the axis of somebody else's layer norm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._torch import METHODS, BatchNormBase, ConvBase, InstanceNormBase, NormBase
from ..nn.base import Norm
from .probe import centres_images, eps_of, moves_statistics

NORM_TYPES: tuple[type[nn.Module], ...] = (NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

# Families that normalize a channel with statistics over the batch, and so keep running statistics.
BATCH_FAMILIES = frozenset(("batch", "sync", "ghost", "renorm", "frozen"))

# What a probe has shown of a layer, and the layer's settings then: a flag may freeze it later.
_known_moves: WeakKeyDictionary[nn.Module, tuple[dict[str, Any], bool | None]] = WeakKeyDictionary()
_known_axes: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
SWITCHES = ("train", "eval")
_USUAL_NAME = re.compile("(Layer|RMS|Rms|Group|Batch|Instance)_?Norm(?!al)")
_QUANTIZED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")  # they compute on integers and never train
_BY_CLASS_NAME = (  # what torch.nn has no class for is told by the class name, most specific first
    ("GhostBatchNorm", "ghost"),
    ("BatchRenorm", "renorm"),
    ("SyncBatchNorm", "sync"),
    ("LayerNorm2d", "layer2d"),
)
_BY_TYPE: tuple[tuple[type[nn.Module], str], ...] = (
    (InstanceNormBase, "instance"),
    (BatchNormBase, "batch"),
    (nn.GroupNorm, "group"),
    (nn.LayerNorm, "layer"),
    (nn.RMSNorm, "rms"),
)


def is_ours(module: nn.Module) -> bool:
    """Whether it is a layer of normkit, or of a subclass."""
    return isinstance(module, Norm)


def author(kind: type) -> str:
    """Who wrote a class: "normkit", "torch" (torch.nn), or "" for anybody else, whatever it derives from."""
    where = kind.__module__
    return "normkit" if where.startswith("normkit.nn.") else "torch" if where.startswith("torch.nn.") else ""


def author_of_forward(module: nn.Module) -> str:
    """Who wrote the forward that the module's class has: "normkit", "torch", or "" for anybody else."""
    return author(next(base for base in type(module).__mro__ if "forward" in base.__dict__))


def own_method(module: nn.Module, names: Iterable[str] = METHODS) -> str | None:
    """The first of these methods that a layer does not have from torch.nn or normkit, but from its class or as an
    attribute; None where there is none."""
    own = [module.__dict__, *(vars(base) for base in type(module).__mro__ if not author(base) and base is not object)]
    return next((name for name in names if any(callable(held.get(name)) for held in own)), None)


def family(module: nn.Module) -> str | None:
    """ "batch", "sync", "ghost", "renorm", "frozen", "group", "layer", "layer2d", "instance", "rms", or None: no
    norm."""
    if is_frozen(module):
        return "frozen"
    if not isinstance(module, NORM_TYPES):
        return None
    if isinstance(module, nn.LayerNorm) and not author_of_forward(module):
        return "layer2d" if _centres_images(module) else "layer"
    names = [base.__name__ for base in type(module).__mro__]
    for prefix, found in _BY_CLASS_NAME:
        if any(name.startswith(prefix) for name in names):
            return found
    return next((found for kind, found in _BY_TYPE if isinstance(module, kind)), None)


def is_frozen(module: nn.Module) -> bool:
    """Whether a batch norm's statistics stand still for good, whatever `train()` says."""
    if isinstance(module, torch.jit.ScriptModule) or "running_mean" not in module._buffers:
        return False
    if type(module).__module__.startswith(_QUANTIZED):
        return True  # whatever its mode says
    fixed = all(_per_channel(module._buffers.get(name)) for name in ("running_mean", "running_var")) and all(
        name in module._buffers and (module._buffers[name] is None or _per_channel(module._buffers[name]))
        for name in ("weight", "bias")
    )
    keeps_mode = own_method(module, SWITCHES) is not None  # and stays in evaluation, it may be
    if author_of_forward(module) and not keeps_mode:
        # torch's and ours are known, and move whatever they hold; FrozenBatchNorm is no norm
        return fixed and not isinstance(module, NORM_TYPES)
    if fixed:
        return _moves(module) is not True
    tracks = isinstance(module, NormBase if keeps_mode else BatchNormBase) and _per_channel(
        module._buffers.get("running_mean")
    )
    return tracks and _moves(module) is False


def _per_channel(buffer: Tensor | None) -> bool:
    return buffer is not None and not is_lazy(buffer) and buffer.dim() == 1


def _moves(module: nn.Module) -> bool | None:
    plain = (bool, int, float, str, type(None))
    settings = {key: v for key, v in module.__dict__.items() if isinstance(v, plain) and key != "training"}
    if _known_moves.get(module, (None,))[0] != settings:
        _known_moves[module] = settings, moves_statistics(module, channels(module), rank(module))
    return _known_moves[module][1]


def _centres_images(module: nn.Module) -> bool:
    if module not in _known_axes:
        _known_axes[module] = centres_images(module, channels(module))
    return _known_axes[module]


def is_like_norm(module: nn.Module) -> bool:
    """Whether a layer of no known family looks like one: running statistics, or a "Norm" with one value a channel, or
    with tensors of one shape where it is called as a norm is (Cohere's have a weight for each head and channel)."""
    if author(type(module)) or isinstance(module, torch.jit.ScriptModule):
        return False
    if {"running_mean", "running_var"} <= set(module._buffers):
        return True
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    name = type(module).__name__
    if "Norm" not in name or not own or any(map(is_lazy, own)):
        return False
    if all(t.numel() == max(t.shape, default=1) for t in own):
        return True
    return bool(_USUAL_NAME.search(name)) and len({t.shape for t in own}) == 1 and not any(module.children())


def rank(module: nn.Module) -> int | None:
    """Spatial dimensions by the class: 1 for BatchNorm1d, 2 for LayerNorm2d; None where the class does not say."""
    for base in type(module).__mro__:
        found = re.search(r"([123])d(?![a-z])", base.__name__)  # LayerNorm2d, LayerNorm2dFp32
        if found:
            return int(found.group(1))
    return None


def channels(module: Any) -> int:
    """How many channels a normalization layer has, C; of a layer over several axes the last one's size."""
    for name in ("num_features", "num_channels"):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    if hasattr(module, "normalized_shape"):
        return int(module.normalized_shape[-1])
    return int(module.running_mean.numel())


def eps(module: Any) -> float:
    """What a layer adds to the variance; found out by a probe where it is no attribute. ValueError where that fails."""
    if hasattr(module, "eps"):
        return module.eps
    found = eps_of(module, channels(module), rank(module))
    if found is None:
        raise ValueError("its eps is no attribute, and a probe does not show it")
    return found


def has_convolution(model: nn.Module, spatial: int) -> bool:
    """Whether the model holds a convolution over this many spatial dimensions."""
    return any(isinstance(m, ConvBase) and rank(m) == spatial for m in model.modules())
