"""An addition and the norm of its sum, in training and inference: layer norm and RMS norm in transformer blocks.

The sum is rounded to the case's dtype before it is normalized. It is a result of ours, as pre-norm blocks need it; what
is differentiated is the norm alone, as post-norm blocks do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

import normkit as nk

from .layer_norm import layer, layer_truth, rms_truth
from .op import Op
from .problem import Problem


class Together(nn.Module):
    """normkit's function of both."""

    def __init__(self, norm: nn.Module, run: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.norm, self._run = norm, run
        self._given = (norm.normalized_shape, *norm.parameters())  # walked through once: a call is a few microseconds

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x, residual: (*, D)."""
        return self._run(x, residual, *self._given, eps=self.norm.eps)[0]


class Apart(nn.Module):
    """torch's addition, then torch's norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x, residual: (*, D)."""
        y: Tensor = self.norm(x + residual)
        return y


def _together(name: str, training: bool, run: Callable[..., tuple[Tensor, Tensor]], problem: Problem) -> nn.Module:
    return Together(layer(name, training, nk, problem), run)


def _apart(name: str, training: bool, problem: Problem) -> nn.Module:
    return Apart(layer(name, training, nn, problem))


OPS = tuple(
    Op(
        f"add+{name}" if training else f"add+{name}_inference",
        "layer_norm",
        partial(_together, class_name, training, run),
        partial(_apart, class_name, training),
        truth,
        residual=True,
        added_first=True,
        training=training,
        block=lambda case: 0,
    )
    for training in (True, False)
    for name, class_name, run, truth in (
        ("layer_norm", "LayerNorm", nk.functional.add_layer_norm, layer_truth),
        ("rms_norm", "RMSNorm", nk.functional.add_rms_norm, rms_truth),
    )
)
