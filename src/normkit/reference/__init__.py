"""The truth: formulas of the papers in plain torch, with backward passes derived by hand.

Slow and plain on purpose, for any float dtype, used in float64. Imports only torch. Tests and studies compare with it;
it is never a fallback for users. Inputs are (N, C, *), channels at axis 1, unless a function says otherwise.
"""

from normkit.reference.batch_norm import (
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_collapsed,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from normkit.reference.group_norm import group_norm, group_norm_backward, group_norm_backward_collapsed

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_collapsed",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "group_norm",
    "group_norm_backward",
    "group_norm_backward_collapsed",
]
