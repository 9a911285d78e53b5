"""Triton's kernels, behind the same functions as the native ones: for CUDA, and for the CPU by interpretation.

    operands  input (N, C, *) contiguous or channels last, or (N, C); other strides are made dense first
    mask      (N, 1, *); what it hides enters nothing, and outputs and gradients are zero there
    saved     stats float32 (5, sets): mean, biased variance, rstd, the rest of the mean, and how many values
              (`moments.doubles` reads them); bits as the native kernels write them, and none of group norm, which reads
              the residual again

Statistics and arithmetic are float32, none is float64: a mean is two floats. Partial results merge in a fixed order, so
two runs give the same bits. Triton is an extra, `normkit[triton]`: this module imports it with the first kernel.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import math
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..._activation import CODES, Activation
from ..._operands import Gradients, Needs, Operands, Saved
from ..._torch import asked_while_traced, triton_op
from ..native import keeps_bits, unpack_bits

__all__ = ["keeps_bits", "unpack_bits"]

FUSED_ACTIVATIONS: frozenset[int] = frozenset(CODES)
FUSES_RESIDUAL = True
MOVES_RUNNING = True
STATISTICS = torch.float32
DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})

# An input of fewer bytes is left to PyTorch's kernels where they have the norm: there the launches cost more than the
# bytes. 0 leaves nothing, since nobody has measured where that begins; `python -m tools.gpu_check` prints it.
SMALL = 0

# Found, not imported: `import normkit` stays as fast as it is without Triton.
INSTALLED = importlib.util.find_spec("triton") is not None
# Triton asks when a kernel is defined, which is with the first call.
INTERPRETS = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def why_not(device: str) -> str | None:
    """Why there are no Triton kernels for tensors on this kind of device, or None."""
    if not INSTALLED:
        return "Triton is not installed: pip install 'normkit[triton]'"
    if triton_op is None:
        return f"Triton's kernels need torch 2.6 or newer, this is {torch.__version__}"
    if device == "cpu" and INTERPRETS:
        return None
    if device == "cuda":
        return _why_no_cache()
    if device == "cpu":
        return (
            "Triton's kernels run on CUDA devices, and on the CPU where TRITON_INTERPRET=1 is set (slowly, for tests)"
        )
    return f"Triton's kernels have not been tried on {device}"


@asked_while_traced
def _why_no_cache() -> str | None:
    """Triton compiles into a folder, and where that cannot be written its launches raise."""
    if os.environ.get("TRITON_CACHE_MANAGER"):  # somebody's own, which may have no folder
        return None
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~/")
    return _why_not_written(os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache"))


@cache
def _why_not_written(folder: str) -> str | None:
    """Looks, and makes nothing: Triton makes the folder, in the nearest one above that is there."""
    there = os.path.abspath(folder)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
        return None
    reason = "no permission" if os.path.isdir(there) else os.strerror(errno.ENOTDIR)
    return (
        f"Triton compiles into {folder}, which cannot be written ({reason}): set TRITON_CACHE_DIR to a folder that can"
    )


def exceeds(input: Tensor) -> bool:
    """Whether a channel has more values, or a sample more channels, than the kernels count in 32 bits."""
    n, c, *positions = input.shape
    return n * math.prod(positions) > (1 << 31) - (1 << 14) or c > 1 << 20


def is_small(input: Tensor) -> bool:
    """Whether PyTorch's kernels are faster on so few bytes."""
    return SMALL > 0 and input.numel() * input.element_size() < SMALL


def batch_norm_forward(
    operands: Operands, activation: Activation, eps: float, *, save: bool, running: Any = None,
    sizes: Sequence[int] = (),
) -> tuple[Tensor, Saved]:  # fmt: skip
    """activation(batch_norm(input) + residual) by the batch's statistics, zero under the mask.

    running: (mean, var, batches or None, momentum or None) to be moved by the kernels; None: nothing moves. sizes: how
    many samples each slice has, where slices have statistics of their own: stats is (5, slices * C) then.
    """
    return _kernels("batch_norm").forward(operands, activation, eps, save, running, sizes)


def batch_norm_inference(
    operands: Operands, mean: Tensor, var: Tensor, activation: Activation, eps: float, *, save: bool
) -> tuple[Tensor, Saved | None]:
    """activation(batch_norm(input) + residual) by given statistics (C,), zero under the mask."""
    return _kernels("batch_norm").inference(operands, mean, var, activation, eps, save)


def batch_norm_backward(
    dy: Tensor, operands: Operands, saved: Saved, activation: Activation, needs: Needs, *, training: bool,
    sizes: Sequence[int] = (),
) -> Gradients:  # fmt: skip
    """training=False: the statistics are constants. sizes: as in the forward."""
    return _kernels("batch_norm_gradients").backward(dy, operands, saved, activation, needs, training, sizes)


def batch_norm_statistics(operands: Operands, eps: float) -> Tensor:
    """stats (5, C) of the batch alone, without an output."""
    return _kernels("batch_norm").statistics(operands, eps)


def batch_norm_by_statistics(
    operands: Operands, stats: Tensor, activation: Activation, *, save: bool, running: Any = None
) -> tuple[Tensor, Saved | None]:
    """activation(batch_norm(input) + residual) by statistics as these kernels save them; running: moved by them."""
    return _kernels("batch_norm").by_statistics(operands, stats, activation, save, running)


def batch_norm_sums(dy: Tensor, operands: Operands, saved: Saved, activation: Activation) -> Tensor:
    """float32 (2, C): the gradients of bias and weight."""
    return _kernels("batch_norm_gradients").sums(dy, operands, saved, activation)


def batch_norm_by_shares(
    dy: Tensor, operands: Operands, saved: Saved, shares: Tensor, activation: Activation, needs: Needs
) -> Gradients:
    """The gradients of input and residual where it is known, float32 (2, C), what statistics take off:
    dx = rstd * weight * g - shares[0] - xhat * shares[1], g the gradient of what the activation was applied to."""
    return _kernels("batch_norm_gradients").by_shares(dy, operands, saved, shares, activation, needs)


def group_norm_forward(
    operands: Operands, num_groups: int, activation: Activation, eps: float, *, save: bool
) -> tuple[Tensor, Saved | None]:
    """activation(group_norm(input) + residual), zero under the mask; stats (5, N * num_groups).

    Instance norm: C groups.
    """
    return _kernels("group_norm").forward(operands, num_groups, activation, eps, save)


def group_norm_backward(
    dy: Tensor, operands: Operands, saved: Saved, num_groups: int, activation: Activation, needs: Needs
) -> Gradients:
    """The first derivative of group norm."""
    return _kernels("group_norm").backward(dy, operands, saved, num_groups, activation, needs)


def operators(norm: str) -> ModuleType:
    """A norm as operators of a compiled graph, which the compiler sees the kernels of: `forward`, `backward`, and
    KEEPS_BITS, whether they keep an activation's; batch norm's have their passes one by one beside."""
    return _kernels(f"{norm}_operator")


def _kernels(norm: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{norm}")
