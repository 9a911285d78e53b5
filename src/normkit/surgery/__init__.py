"""Surgery: change the normalization of a model that somebody else wrote."""

from .changes import Change, Changes, changes
from .fold import fold
from .parameter_groups import parameter_groups

__all__ = ["Change", "Changes", "changes", "fold", "parameter_groups"]
