"""The planters of all rules, code -> Case -> Planted."""

from __future__ import annotations

from . import plant_layers, plant_statistics, plant_training
from .case import PLANTERS, Case, Planted

__all__ = ["PLANTERS", "Case", "Planted", "plant_layers", "plant_statistics", "plant_training"]
