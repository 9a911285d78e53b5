"""Which normalization a layer is, and over how many spatial dimensions.

Rules: the family decides what a layer can become; the answer comes from the class (and its bases), never from the name
that the model gave it. Frozen batch norms, ours and foreign, hold four buffers and derive from no norm; they count as
"frozen".
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..nn._base import Norm

NORM_TYPES: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

# Families that normalize a channel with statistics over the batch, and so keep running statistics.
BATCH_FAMILIES = frozenset(("batch", "sync", "ghost", "renorm", "frozen"))

_BY_CLASS_NAME = (  # what torch.nn has no class for is told by the class name, most specific first
    ("FrozenBatchNorm", "frozen"),
    ("GhostBatchNorm", "ghost"),
    ("BatchRenorm", "renorm"),
    ("SyncBatchNorm", "sync"),
    ("LayerNorm2d", "layer2d"),
)
_BY_TYPE: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.instancenorm._InstanceNorm, "instance"),
    (nn.modules.batchnorm._BatchNorm, "batch"),
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
    return "normkit" if where.startswith("normkit.") else "torch" if where.startswith("torch.nn.") else ""


def author_of_forward(module: nn.Module) -> str:
    """Who wrote the forward that the module's class has: "normkit", "torch", or "" for anybody else."""
    return author(next(base for base in type(module).__mro__ if "forward" in base.__dict__))


def family(module: nn.Module) -> str | None:
    """ "batch", "sync", "ghost", "renorm", "frozen", "group", "layer", "layer2d", "instance", "rms", or None: no
    norm."""
    if not isinstance(module, NORM_TYPES) and not _is_frozen(module):
        return None
    names = [base.__name__ for base in type(module).__mro__]
    for prefix, found in _BY_CLASS_NAME:
        if any(name.startswith(prefix) for name in names):
            return found
    return next((found for kind, found in _BY_TYPE if isinstance(module, kind)), None)


def rank(module: nn.Module) -> int | None:
    """Spatial dimensions by the class: 1 for BatchNorm1d, 2 for LayerNorm2d; None where the class does not say."""
    for base in type(module).__mro__:
        found = re.search(r"([123])d$", base.__name__)
        if found:
            return int(found.group(1))
    return None


def channels(module: Any) -> int:
    """How many channels a normalization layer has, C; of a layer over several axes the last one's size."""
    for name in ("num_features", "num_channels"):
        if hasattr(module, name):
            return int(getattr(module, name))
    if hasattr(module, "normalized_shape"):
        return int(module.normalized_shape[-1])
    return int(module.running_mean.numel())


def model_rank(model: nn.Module) -> int | None:
    """The one rank that all convolutions of the model have, 1 where it has linears only, None where it is not one."""
    convolutions = {rank(m) for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    if convolutions:
        return convolutions.pop() if len(convolutions) == 1 else None
    return 1 if any(isinstance(m, nn.Linear) for m in model.modules()) else None


def has_convolution(model: nn.Module, spatial: int) -> bool:
    """Whether the model holds a convolution over this many spatial dimensions."""
    return any(isinstance(m, nn.modules.conv._ConvNd) and rank(m) == spatial for m in model.modules())


def _is_frozen(module: nn.Module) -> bool:
    expected = {"weight", "bias", "running_mean", "running_var"}
    return type(module).__name__.startswith("FrozenBatchNorm") and expected <= set(module._buffers)
