"""The doctor: what is wrong with a model's normalization, in numbers, and the call that mends it.

evidence (state, forward, training)   gathered once; watch, answers: how
rules, catalogue                      what is judged, a file each
diagnose, follow, text                findings, what follows from what, and how they are shown
heal, compare, checkpoint, sarif      mending; two states; files
"""

from .diagnose import Diagnosis, diagnose
from .finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
