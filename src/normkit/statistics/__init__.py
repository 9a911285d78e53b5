"""Statistics of a model made right: for test time, for accumulated gradients."""

from .deferred import deferred_statistics

__all__ = ["deferred_statistics"]
