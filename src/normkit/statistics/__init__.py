"""Statistics of a model made right: for test time, for a new domain, for accumulated gradients."""

from .deferred import deferred_statistics
from .distance import distance
from .recalibrate import recalibrate
from .report import LayerReport, Recalibration

__all__ = ["LayerReport", "Recalibration", "deferred_statistics", "distance", "recalibrate"]
