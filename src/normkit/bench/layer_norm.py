"""Layer norm and RMS norm over the last axis, training: the norms of transformers.

Parameters have the input's dtype here: torch's RMS norm falls back to slow composed operations for mixed ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference

from .batch_norm import EPS
from .op import Op, Truth, Unfused, prepared
from .problem import DTYPES, Problem


def layer_truth(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Truth:
    """x: (*, D) float64."""
    shape = (x.shape[-1],)
    y, _, variance = reference.layer_norm(x, shape, weight, bias, EPS)
    return Truth(
        y=y,
        xhat=reference.layer_norm(x, shape, None, None, EPS)[0],
        rstd=(variance + EPS).rsqrt().unsqueeze(-1),
        gradients=lambda dz: reference.layer_norm_backward(dz, x, shape, weight, EPS),
        mean=lambda t: t.mean(-1, keepdim=True),
        parameter_axes=tuple(range(x.dim() - 1)),
    )


def rms_truth(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Truth:
    """x: (*, D) float64."""
    shape, double = (x.shape[-1],), problem.case.dtype == "float64"
    eps = torch.finfo(torch.float64 if double else torch.float32).eps  # torch's default, for half dtypes too
    y, mean_square = reference.rms_norm(x, shape, weight, eps)
    return Truth(
        y=y,
        xhat=reference.rms_norm(x, shape, None, eps)[0],
        rstd=(mean_square + eps).rsqrt().unsqueeze(-1),
        gradients=lambda dz: (*reference.rms_norm_backward(dz, x, shape, weight, eps), None),
        mean=lambda t: t.mean(-1, keepdim=True),
        parameter_axes=tuple(range(x.dim() - 1)),
    )


def _layer(problem: Problem, name: str, library: object) -> nn.Module:
    layer = getattr(library, name)(problem.case.shape[-1], dtype=DTYPES[problem.case.dtype])
    return prepared(layer, problem, True)


OPS = (
    Op(
        "layer_norm",
        "layer_norm",
        lambda problem: _layer(problem, "LayerNorm", nk),
        lambda problem: Unfused(_layer(problem, "LayerNorm", nn), None),
        layer_truth,
        block=lambda case: 0,
    ),
    Op(
        "rms_norm",
        "layer_norm",
        lambda problem: _layer(problem, "RMSNorm", nk),
        lambda problem: Unfused(_layer(problem, "RMSNorm", nn), None),
        rms_truth,
        block=lambda case: 0,
    ),
)
