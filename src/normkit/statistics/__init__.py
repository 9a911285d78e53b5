"""Statistics of a model made right: for test time, for a new domain, for accumulated gradients."""

from .adapt import Adaptation, adapt
from .deferred import deferred_statistics
from .distance import distance
from .merge import merge_statistics
from .recalibrate import recalibrate
from .report import LayerReport, Recalibration
from .sync_buffers import sync_buffers

__all__ = [
    "Adaptation",
    "LayerReport",
    "Recalibration",
    "adapt",
    "deferred_statistics",
    "distance",
    "merge_statistics",
    "recalibrate",
    "sync_buffers",
]
