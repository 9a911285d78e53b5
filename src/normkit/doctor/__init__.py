"""The doctor: what is wrong with a model's normalization, in numbers, and the call that mends it.

evidence (state, forward, training)   gathered once; watch, answers: how
rules, catalogue                      what is judged, a file each
gap, switch, scale, shares, cause     how much of what evaluation loses is due to which layer
diagnose, follow, text                findings, what follows from what, and how they are shown
page, figures, html                   the page, one HTML file
heal, compare, checkpoint, sarif      mending; two states; files
"""

from .diagnose import Diagnosis, diagnose
from .finding import Finding
from .gap import attribute_gap
from .gap_report import Gap

__all__ = ["Diagnosis", "Finding", "Gap", "attribute_gap", "diagnose"]
