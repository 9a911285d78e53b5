"""normkit: normalization for PyTorch, whole."""

from . import functional, nn
from .functional import backend, mask_from_lengths
from .moments import Moments
from .nn import *  # noqa: F403  # nn.__all__ is the list of layers
from .nn import __all__ as _layers
from .statistics import adapt, deferred_statistics, recalibrate

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "adapt",
    "backend",
    "deferred_statistics",
    "functional",
    "mask_from_lengths",
    "nn",
    "recalibrate",
    *_layers,
]
