"""The truth: formulas of the papers in plain torch, with backward passes derived by hand.

Slow and plain on purpose, for any float dtype, used in float64. Imports only torch. Tests and studies compare with it;
it is never a fallback for users. Inputs are (N, C, *), channels at axis 1, unless a function says otherwise.
"""

from normkit.reference.adapt import adapt, adapt_merged, entropy, source_share, tent
from normkit.reference.add_norm import (
    add_layer_norm,
    add_layer_norm_backward,
    add_rms_norm,
    add_rms_norm_backward,
)
from normkit.reference.batch_norm import (
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_collapsed,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from normkit.reference.batch_renorm import batch_renorm, batch_renorm_backward, correction, limits
from normkit.reference.chain import chain, chain_gradient, chain_step_terms
from normkit.reference.domain_batch_norm import domain_batch_norm, domain_batch_norm_backward
from normkit.reference.filter_response_norm import filter_response_norm, filter_response_norm_backward
from normkit.reference.ghost_batch_norm import ghost_batch_norm, ghost_batch_norm_backward, slice_sizes
from normkit.reference.global_response_norm import global_response_norm, global_response_norm_backward
from normkit.reference.group_norm import group_norm, group_norm_backward, group_norm_backward_collapsed
from normkit.reference.instance_norm import instance_norm, instance_norm_backward, running_instance_statistics
from normkit.reference.layer_norm import layer_norm, layer_norm_2d, layer_norm_2d_backward, layer_norm_backward
from normkit.reference.modulate import modulate, modulate_backward
from normkit.reference.population import batch_average, population
from normkit.reference.rms_norm import rms_norm, rms_norm_backward
from normkit.reference.running import cumulative, exponential, exponential_closed_form, unbiased, update

__all__ = [
    "adapt",
    "adapt_merged",
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "batch_average",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_collapsed",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "batch_renorm",
    "batch_renorm_backward",
    "chain",
    "chain_gradient",
    "chain_step_terms",
    "correction",
    "cumulative",
    "domain_batch_norm",
    "domain_batch_norm_backward",
    "entropy",
    "exponential",
    "exponential_closed_form",
    "filter_response_norm",
    "filter_response_norm_backward",
    "ghost_batch_norm",
    "ghost_batch_norm_backward",
    "global_response_norm",
    "global_response_norm_backward",
    "group_norm",
    "group_norm_backward",
    "group_norm_backward_collapsed",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_2d",
    "layer_norm_2d_backward",
    "layer_norm_backward",
    "limits",
    "modulate",
    "modulate_backward",
    "population",
    "rms_norm",
    "rms_norm_backward",
    "running_instance_statistics",
    "slice_sizes",
    "source_share",
    "tent",
    "unbiased",
    "update",
]
