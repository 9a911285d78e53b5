"""Surgery: change the normalization of a model that somebody else wrote."""

from .accelerate import accelerate
from .changes import Change, Changes, changes
from .convert import convert
from .fold import fold
from .freeze import freeze, unfreeze
from .hub_kernels import hub_mapping
from .parameter_groups import parameter_groups

__all__ = [
    "Change",
    "Changes",
    "accelerate",
    "changes",
    "convert",
    "fold",
    "freeze",
    "hub_mapping",
    "parameter_groups",
    "unfreeze",
]
