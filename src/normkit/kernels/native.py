"""The native core's functions of tensors, without autograd or modules; it reads them and makes the outputs.

    operands  input (N, C, *) contiguous or channels last, or (N, C), or rows (*, D); other strides are made dense first
    saved     stats float64 (3, C): mean, biased variance, rstd; bits uint8, each memory row of the input starts a byte

Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._activation import CODES, IDENTITY, LEAKY_RELU, RELU, RELU6, Activation
from .._operands import Gradients, Needs, Operands, Saved
from .._torch import exchange_table, is_legacy_batched
from . import native_masked, native_means
from .core import core as _core
from .core import parallel_loop
from .core import problem as _problem

FUSED_ACTIVATIONS: frozenset[int] = frozenset(CODES)
FUSES_RESIDUAL = True
MOVES_RUNNING = False
STATISTICS = torch.float64
_PIECEWISE_LINEAR = frozenset({RELU, LEAKY_RELU, RELU6})
_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def available() -> bool:
    """Whether the native core was built and loads."""
    return _core is not None


def why_not() -> str | None:
    """Why the native core is not available, or None."""
    return _problem


def isa() -> str:
    """The instruction set in use: "baseline", "avx2" or "avx512"; "none" without the native core."""
    return "none" if _core is None else _core.isa()


def edge() -> str:
    """How the native core reads tensors: "exchange table" (torch 2.10 and newer), "C shim" (2.4 to 2.9), or ""."""
    if _core is None:
        return ""
    return "C shim" if exchange_table is None else "exchange table"


def has_threads() -> bool:
    """Whether the native core computes on torch's threads; else on the caller's alone."""
    return _core is not None and parallel_loop(_core) != 0


def keep_memory(limit: int) -> None:
    """Let freed large outputs keep at most `limit` bytes for the next ones; 0 keeps none, and torch allocates."""
    _core.keep_memory(limit)


def kept_memory() -> int:
    """How many bytes of freed large outputs wait for the next ones."""
    return 0 if _core is None else _core.kept_memory()


def supports_dtype(dtype: torch.dtype) -> bool:
    """Whether inputs of this dtype have native kernels."""
    return _core is not None and dtype in _DTYPES


def _absent(*arguments: Any) -> Any:
    raise RuntimeError(_problem)


def _not_ready(*arguments: Any) -> Any:
    return None


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and not is_legacy_batched(tensor)


# The steps of the common eager call, each one call of the core, as they are: a Python frame in front of each would cost
# as much as a small kernel does.
#
# ready: whether `fused_forward` takes a call's tensors as they are. Any other call is looked at closely.
# fused_inference: both in one call where no gradient is wanted; None where the tensors are not ready.
# plain_gradient(dy): whether it is a plain tensor with memory and no torch-dispatch mode is active; any other takes
#     torch's operations.
# fused_forward, fused_backward: the halves of a torch.autograd.Function (native/autograd.h), for what is ready.
# added_backward: the second half where rows have a residual, and the sum a gradient of its own.
ready: Callable[..., bool] = getattr(_core, "ready", _not_ready)
fused_inference: Callable[..., Any] = getattr(_core, "fused_inference", _not_ready)
plain_gradient: Callable[..., bool] = getattr(_core, "plain_gradient", _is_plain)
fused_forward: Callable[..., Any] = getattr(_core, "fused_forward", _absent)
fused_backward: Callable[..., tuple[Tensor | None, ...]] = getattr(_core, "fused_backward", _absent)
added_backward: Callable[..., tuple[Tensor | None, ...]] = getattr(_core, "added_backward", _absent)
_channel_forward: Callable[..., Any] = getattr(_core, "channel_forward", _absent)
_channel_backward: Callable[..., Any] = getattr(_core, "channel_backward", _absent)
_channel_statistics: Callable[..., Tensor] = getattr(_core, "channel_statistics", _absent)
_layer_forward: Callable[..., Any] = getattr(_core, "layer_forward", _absent)
_layer_backward: Callable[..., Any] = getattr(_core, "layer_backward", _absent)
_element_forward: Callable[..., Any] = getattr(_core, "element_forward", _absent)
_element_backward: Callable[..., tuple[Tensor | None, ...]] = getattr(_core, "element_backward", _absent)
_move_running: Callable[..., bool | None] = getattr(_core, "move_running", _absent)


def batch_norm_forward(
    operands: Operands, activation: Activation, eps: float, *, save: bool, sizes: Sequence[int] = ()
) -> tuple[Tensor, Saved]:
    """activation(batch_norm(input) + residual) by the batch's statistics, zero under the mask.

    sizes: how many samples each slice has, where slices have statistics of their own: stats is (3 * slices, C) then.
    """
    input, weight, bias, residual, mask = operands[:5]
    if mask is not None and input.numel():
        filled, value = native_masked.fill(operands, training=True)
        count = int(native_masked.count_values(operands))
        mean, var = native_masked.statistics(batch_norm_statistics, operands, filled.input, value, count)
        y, saved = batch_norm_inference(filled, mean, var, activation, eps, save=save)
        return y.masked_fill_(~mask, 0), saved or Saved(torch.stack([mean, var]))
    y, stats, bits = _channel_forward(
        input, residual, weight, bias, None, None, 0, eps, activation.code, activation.param, save, sizes
    )
    return y, Saved(stats, bits)


def batch_norm_statistics(input: Tensor) -> Tensor:
    """stats of the batch alone, without an output; their third row is 1 / sqrt(var)."""
    return _channel_statistics(input)


def batch_norm_inference(
    operands: Operands, mean: Tensor, var: Tensor, activation: Activation, eps: float, *, save: bool
) -> tuple[Tensor, Saved | None]:
    """activation(batch_norm(input) + residual) by given statistics (C,), zero under the mask."""
    mask = operands.mask
    if mask is not None:
        operands, _ = native_masked.fill(operands, training=False)
    input, weight, bias, residual = operands[:4]
    y, stats, bits = _channel_forward(
        input, residual, weight, bias, mean, var, 0, eps, activation.code, activation.param, save, ()
    )
    return y if mask is None else y.masked_fill_(~mask, 0), Saved(stats, bits) if save else None


def batch_norm_backward(
    dy: Tensor, operands: Operands, saved: Saved, activation: Activation, needs: Needs, *, training: bool,
    sizes: Sequence[int] = (),
) -> Gradients:  # fmt: skip
    """training=False: the statistics are constants. sizes: as in the forward."""
    mask, count = operands.mask, 0  # 0: all values are behind the statistics
    if mask is not None and operands.input.numel():
        count = int(native_masked.count_values(operands)) if training else 0
        operands, _ = native_masked.fill(operands, training)
        dy = native_masked.zeroed(dy, mask)
    input, weight, bias, residual = operands[:4]
    found = _channel_backward(
        dy, input, residual, saved.bits, weight, bias, saved.stats, 0, training, activation.code, activation.param,
        *needs, sizes, count,
    )  # fmt: skip
    return Gradients(*found) if mask is None else native_masked.clear(found, mask, activation.code, training)


def group_norm_forward(
    operands: Operands, num_groups: int, activation: Activation, eps: float, *, save: bool
) -> tuple[Tensor, Saved | None]:
    """activation(group_norm(input) + residual), zero under the mask; stats (3, N * num_groups), with a mask (3, N * C).
    Instance norm: C groups."""
    if operands.mask is not None:
        from . import native_masked_groups

        kernels = _channel_statistics, _channel_forward
        return native_masked_groups.forward(*kernels, operands, num_groups, activation, eps, save)
    input, weight, bias, residual = operands[:4]
    y, stats, bits = _channel_forward(
        input, residual, weight, bias, None, None, num_groups, eps, activation.code, activation.param, save, ()
    )
    return y, Saved(stats, bits) if save else None


def group_norm_backward(
    dy: Tensor, operands: Operands, saved: Saved, num_groups: int, activation: Activation, needs: Needs
) -> Gradients:
    """The first derivative of group norm."""
    if operands.mask is not None:
        from . import native_masked_groups

        kernels = _channel_backward, _channel_forward
        return native_masked_groups.backward(*kernels, dy, operands, saved, num_groups, activation, needs)
    input, weight, bias, residual = operands[:4]
    found = _channel_backward(
        dy, input, residual, saved.bits, weight, bias, saved.stats, num_groups, True, activation.code, activation.param,
        *needs, (), 0,
    )  # fmt: skip
    return Gradients(*found)


def layer_norm_forward(operands: Operands, size: int, eps: float, *, save: bool) -> tuple[Tensor, Saved | None]:
    """Layer norm over rows of `size` elements; stats (3, rows). Rows under the mask are zero.

    weight, bias: `size` elements, or (blocks, ..., size): one for each of as many blocks of consecutive rows; stats
    holds one block's (3, rows) after the other then.
    """
    return _rows_forward(operands, size, False, eps, save)


def layer_norm_backward(dy: Tensor, operands: Operands, saved: Saved, size: int, needs: Needs) -> Gradients:
    """The first derivative of layer norm."""
    return _rows_backward(dy, operands, saved, size, False, needs)


def rms_norm_forward(operands: Operands, size: int, eps: float, *, save: bool) -> tuple[Tensor, Saved | None]:
    """RMS norm over rows of `size` elements; stats (3, rows): 0, mean square, rstd. Rows under the mask are zero.

    bias: a modulation's; weight and bias as in `layer_norm_forward`.
    """
    return _rows_forward(operands, size, True, eps, save)


def rms_norm_backward(dy: Tensor, operands: Operands, saved: Saved, size: int, needs: Needs) -> Gradients:
    """The first derivative of RMS norm."""
    return _rows_backward(dy, operands, saved, size, True, needs)


def _rows_forward(operands: Operands, size: int, rms: bool, eps: float, save: bool) -> tuple[Tensor, Saved | None]:
    input, weight, bias, _, mask = operands[:5]
    input = input if mask is None else native_masked.zeroed(input, mask)
    y, stats, _ = _layer_forward(input, None, size, rms, weight, bias, eps, save)
    return y if mask is None else y.masked_fill_(~mask, 0), Saved(stats) if save else None


def _rows_backward(dy: Tensor, operands: Operands, saved: Saved, size: int, rms: bool, needs: Needs) -> Gradients:
    input, weight, bias, _, mask = operands[:5]
    if mask is not None:
        input, dy = (native_masked.zeroed(tensor, mask) for tensor in (input, dy))
    found = Gradients(*_layer_backward(dy, None, input, size, rms, weight, bias, saved.stats, *needs[:3]))
    return found if mask is None else native_masked.clear(found, mask, IDENTITY)


def added_forward(operands: Operands, size: int, rms: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(norm(input + residual), stats (3, rows), the sum): layer or RMS norm over rows of `size` elements."""
    input, weight, bias, residual = operands[:4]
    y, stats, total = _layer_forward(input, residual, size, rms, weight, bias, eps, True)
    return y, stats, total


def added_gradients(
    dy: Tensor, dsum: Tensor, operands: Operands, stats: Tensor, size: int, rms: bool, needs: Needs
) -> Gradients:
    """The first derivative by either addend, weight and bias. operands.input: the sum; dsum: its own gradient."""
    total, weight, bias, *_ = operands
    return Gradients(*_layer_backward(dy, dsum, total, size, rms, weight, bias, stats, *needs[:3]))


def element_forward(
    operands: Operands, given: tuple[Tensor, Tensor] | None, kind: int, size: int, eps: float, *, save: bool
) -> tuple[Tensor, Tensor | None]:
    """(scale * norm(input) + shift, stats float64 (3, sets)), row-major; scale, shift: the input's sizes and dtype.

    kind, size: as `fused_forward` takes them; kind 0: by `given` mean and variance (C,), each plane a set.
    """
    input, weight, bias, _, _, scale, shift = operands
    mean, var = (None, None) if given is None else given
    return _element_forward(input, weight, bias, scale, shift, mean, var, kind, size, eps, save)


def element_backward(
    dz: Tensor, operands: Operands, stats: Tensor, kind: int, size: int, needs: Sequence[bool], *, training: bool
) -> tuple[Tensor | None, ...]:
    """The first derivative by input, weight, bias and scale. training=False: the statistics are constants."""
    input, weight, bias, _, _, scale, _ = operands
    return _element_backward(dz, input, weight, bias, scale, kind, size, stats, training, *needs)


def add_means(
    dx: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:  # fmt: skip
    """dx + rstd * (weight * xhat + bias): what the values of a channel want of its mean and variance; all (C,)."""
    return native_means.add_means(_channel_forward, dx, x, weight, bias, mean, var, eps)


def move_running(
    stats: Tensor, count: int, mean: Tensor, var: Tensor, batches: Tensor | None, momentum: float | None
) -> bool | None:
    """running = (1 - factor) * running + factor * new, var unbiased; batches grows by one.

    stats: (3, C). mean, var: the buffers, (C,). batches: 0-dim int64, or None. momentum: the factor, or None for the
    cumulative average (1 / batches). Returns False, and nothing is written, where a new value is not finite; None, and
    nothing is written, for buffers that are not contiguous float32 or float64 on the CPU.
    """
    return _move_running(stats, count, mean, var, batches, momentum)


def unpack_bits(bits: Tensor, like: Tensor) -> Tensor:
    """The bits of a forward as a bool tensor of the input's shape."""
    n, c, s, last = _layout(like)
    rows, row = (n * s, c) if last else (n * c, s)
    count = (row + 7) // 8  # not -1, which torch cannot tell where there is no element
    flat = (bits.view(rows, count, 1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    flat = flat.view(rows, 8 * count)[:, :row].bool()
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
