"""Norms as functions: check the arguments, choose a path, call a kernel."""

from typing import NoReturn

from .._names import raise_unknown
from .batch_norm import batch_norm
from .batch_renorm import batch_renorm
from .choose import backend
from .filter_response_norm import filter_response_norm
from .ghost_batch_norm import ghost_batch_norm
from .global_response_norm import global_response_norm
from .group_norm import group_norm
from .instance_norm import instance_norm
from .layer_norm import add_layer_norm, layer_norm
from .mask import mask_from_lengths
from .normalize import normalize
from .recompute import recompute_outputs
from .rms_norm import add_rms_norm, rms_norm

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "backend",
    "batch_norm",
    "batch_renorm",
    "filter_response_norm",
    "ghost_batch_norm",
    "global_response_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "mask_from_lengths",
    "normalize",
    "recompute_outputs",
    "rms_norm",
]


def __getattr__(name: str) -> NoReturn:
    raise_unknown(__name__, name, __all__)
