"""The native core's functions of tensors, without autograd or modules; it reads them and makes the outputs.

    input     (N, C, *) contiguous or channels last, or (N, C); any other strides are made dense first
    stats     float64 (3, C): mean, biased variance, rstd
    bits      uint8, one bit an element: where a piecewise linear activation has slope 1; each memory row of the input
              starts a new byte

Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._activation import CODES, LEAKY_RELU, RELU, RELU6
from .core import core as _core
from .core import problem as _problem

FUSED_ACTIVATIONS: frozenset[int] = frozenset(CODES)
FUSES_RESIDUAL = True
_PIECEWISE_LINEAR = frozenset({RELU, LEAKY_RELU, RELU6})
_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def available() -> bool:
    """Whether the native core was built and loads."""
    return _core is not None


def why_not() -> str | None:
    """Why the native core is not available, or None."""
    return _problem


def isa() -> str:
    """The instruction set in use: "baseline", "avx2" or "avx512"; "none" without the native core."""
    return "none" if _core is None else _core.isa()


def keep_memory(limit: int) -> None:
    """Let freed large outputs keep at most `limit` bytes for the next ones; 0 keeps none, and torch allocates."""
    assert _core is not None
    _core.keep_memory(limit)


def kept_memory() -> int:
    """How many bytes of freed large outputs wait for the next ones."""
    return 0 if _core is None else _core.kept_memory()


def supports_dtype(dtype: torch.dtype) -> bool:
    """Whether inputs of this dtype have native kernels."""
    return _core is not None and dtype in _DTYPES


def _absent(*arguments: Any) -> Any:
    raise RuntimeError(_problem)


def _not_ready(*arguments: Any) -> int:
    return 0


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and not torch._C._functorch.is_legacy_batchedtensor(tensor)


# The steps of the common eager call, each one call of the core, as they are: a Python frame in front of each would cost
# as much as a small kernel does.
#
# ready(input, residual, weight, bias, mean, var): how many values each channel has, where all tensors are as kernels
#     take them; else 0. They are plain tensors on the CPU: input (N, C, *) not empty, residual of its sizes and dtype,
#     the others (C,) of fitting dtypes, or None.
# rows_ready(input, width, weight, bias): the same for rows of `width` elements, input (*, width): how many rows.
# plain_gradient(grad_output): whether it is a plain tensor with memory and no torch-dispatch mode is active; any other
#     takes torch's operations.
# fused_forward, fused_backward: the halves of a torch.autograd.Function (native/autograd.h).
ready: Callable[..., int] = getattr(_core, "channel_ready", _not_ready)
rows_ready: Callable[..., int] = getattr(_core, "rows_ready", _not_ready)
plain_gradient: Callable[..., bool] = getattr(_core, "plain_gradient", _is_plain)
fused_forward: Callable[..., Tensor] = getattr(_core, "fused_forward", _absent)
fused_backward: Callable[..., tuple[Tensor | None, ...]] = getattr(_core, "fused_backward", _absent)


def batch_norm_forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    param: float,
    eps: float,
    *,
    save_for_backward: bool,
    sizes: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor | None]:
    """activation(batch_norm(input) + residual) by the batch's statistics: (output, stats, bits).

    sizes: how many samples each slice has, where slices have statistics of their own: stats is (3 * slices, C) then.
    """
    assert _core is not None
    return _core.channel_forward(
        input, residual, weight, bias, None, None, 0, eps, activation, param, save_for_backward, sizes
    )


def batch_norm_statistics(input: Tensor) -> Tensor:
    """stats of the batch alone, without an output; their third row is 1 / sqrt(var)."""
    assert _core is not None
    return _core.channel_statistics(input)


def batch_norm_inference(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    param: float,
    eps: float,
    *,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """activation(batch_norm(input) + residual) by given statistics: (output, stats, bits)."""
    assert _core is not None
    return _core.channel_forward(
        input, residual, weight, bias, running_mean, running_var, 0, eps, activation, param, save_for_backward, ()
    )


def batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    stats: Tensor,
    activation: int,
    param: float,
    *,
    training: bool,
    needs: tuple[bool, bool, bool, bool],
    count: int = 0,
    sizes: Sequence[int] = (),
) -> Gradients:
    """Gradients of input, weight, bias and residual; training=False: the statistics are constants.

    count: how many values are behind the statistics, where not all are (the others come with grad_output = 0).
    sizes: as in the forward.
    """
    assert _core is not None
    return _core.channel_backward(
        grad_output, input, residual, bits, weight, bias, stats, 0, training, activation, param, *needs, sizes, count
    )


def group_norm_forward(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    param: float,
    eps: float,
    *,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """activation(group_norm(input) + residual): (output, stats (3, N * num_groups), bits). Instance norm: C groups."""
    assert _core is not None
    return _core.channel_forward(
        input, residual, weight, bias, None, None, num_groups, eps, activation, param, save_for_backward, ()
    )


def group_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    stats: Tensor,
    activation: int,
    param: float,
    *,
    needs: tuple[bool, bool, bool, bool],
) -> Gradients:
    """Gradients of input, weight, bias and residual."""
    assert _core is not None
    return _core.channel_backward(
        grad_output, input, residual, bits, weight, bias, stats, num_groups, True, activation, param, *needs, (), 0
    )


def layer_norm_forward(
    input: Tensor,
    normalized_size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    save_for_backward: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Layer norm over rows of `normalized_size` elements: (output, stats (3, rows))."""
    assert _core is not None
    return _core.layer_forward(input, normalized_size, False, weight, bias, eps, save_for_backward)


def layer_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    *,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias."""
    assert _core is not None
    return _core.layer_backward(grad_output, input, normalized_size, False, weight, bias, stats, *needs)


def rms_norm_forward(
    input: Tensor, normalized_size: int, weight: Tensor | None, eps: float, *, save_for_backward: bool = True
) -> tuple[Tensor, Tensor | None]:
    """RMS norm over rows of `normalized_size` elements: (output, stats (3, rows): 0, mean square, rstd)."""
    assert _core is not None
    return _core.layer_forward(input, normalized_size, True, weight, None, eps, save_for_backward)


def rms_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_size: int,
    weight: Tensor | None,
    stats: Tensor,
    *,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of input and weight."""
    assert _core is not None
    return _core.layer_backward(grad_output, input, normalized_size, True, weight, None, stats, *needs, False)[:2]


def move_running(
    stats: Tensor,
    count: int,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,
    momentum: float | None,
) -> bool | None:
    """running = (1 - factor) * running + factor * new, var unbiased; batches grows by one.

    stats: (3, C). running_mean, running_var: (C,). batches: 0-dim int64, or None. momentum: the factor, or None for the
    cumulative average (1 / batches). Returns False, and nothing is written, where a new value is not finite; None, and
    nothing is written, for buffers that are not contiguous float32 or float64 on the CPU.
    """
    assert _core is not None
    return _core.move_running(stats, count, running_mean, running_var, batches, momentum)


def unpack_bits(bits: Tensor, like: Tensor) -> Tensor:
    """The bits of a forward as a bool tensor of the input's shape."""
    n, c, s, last = _layout(like)
    rows, row = (n * s, c) if last else (n * c, s)
    flat = (bits.view(rows, -1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    flat = flat.view(rows, -1)[:, :row].bool()
    if not last:
        return flat.reshape(like.shape)
    return flat.view(n, *like.shape[2:], c).movedim(-1, 1)


def keeps_bits(activation: int) -> bool:
    """Whether a forward with a residual keeps the activation's sign as bits."""
    return activation in _PIECEWISE_LINEAR


def count_bit_bytes(input: Tensor) -> int:
    """How many bytes those bits take: each memory row of the input starts a new byte."""
    n, c, s, last = _layout(input)
    return n * s * ((c + 7) // 8) if last else n * c * ((s + 7) // 8)


def _layout(input: Tensor) -> tuple[int, int, int, bool]:
    """(N, C, S, whether channels are innermost in memory) of the input once it is dense."""
    n, c = input.shape[:2]
    s = input.numel() // (n * c) if n and c else 0
    if input.is_contiguous() or input.dim() < 3:
        return n, c, s, s == 1
    return n, c, s, s == 1 or input.movedim(1, -1).is_contiguous()
