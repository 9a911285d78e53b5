"""Norms that were trained in other frameworks: their states, put into a model's layers."""

from .load import load_norm_state

__all__ = ["load_norm_state"]
