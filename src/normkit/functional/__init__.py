"""Norms as functions: check the arguments, choose a path, call a kernel."""

from ._choose import backend
from .batch_norm import batch_norm
from .group_norm import group_norm
from .normalize import normalize

__all__ = ["backend", "batch_norm", "group_norm", "normalize"]
