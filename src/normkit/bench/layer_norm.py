"""Layer norm and RMS norm over the last axis, in training and inference: the norms of transformers.

Parameters have the input's dtype here: torch's RMS norm falls back to slow composed operations for mixed ones.
"""

from __future__ import annotations

from functools import partial

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


def layer(name: str, training: bool, library: object, problem: Problem) -> nn.Module:
    """The layer of that name out of normkit or torch.nn."""
    made = getattr(library, name)(problem.case.shape[-1], dtype=DTYPES[problem.case.dtype])
    return prepared(made, problem, training)


def _plain(name: str, training: bool, problem: Problem) -> nn.Module:
    return Unfused(layer(name, training, nn, problem), None)


OPS = tuple(
    Op(
        name if training else f"{name}_inference",
        "layer_norm",
        partial(layer, class_name, training, nk),
        partial(_plain, class_name, training),
        truth,
        training=training,
        block=lambda case: 0,
    )
    for training in (True, False)
    for name, class_name, truth in (("layer_norm", "LayerNorm", layer_truth), ("rms_norm", "RMSNorm", rms_truth))
)
