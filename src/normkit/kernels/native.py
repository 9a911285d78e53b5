"""The native core: the only importer of normkit._native.

Takes torch tensors, hands raw addresses and sizes to C++, allocates the outputs with torch. No autograd, no modules.

    input     (N, C, *) contiguous or channels last, or (N, C); any other strides are made dense first
    stats     float64 (3, C): mean, biased variance, rstd
    bits      uint8, one bit an element: where a piecewise linear activation has slope 1; each memory row of the input
              starts a new byte

Threads are torch's own: libtorch exports `torch_parallel_for` as a C symbol, and the kernels call it by its address.
Results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import glob
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

IDENTITY, RELU, LEAKY_RELU, RELU6, SILU, HARDSWISH = 0, 1, 2, 3, 4, 9
FUSED_ACTIVATIONS: frozenset[int] = frozenset({IDENTITY, RELU, LEAKY_RELU, RELU6, SILU, HARDSWISH})
FUSES_RESIDUAL = True
_PIECEWISE_LINEAR = frozenset({RELU, LEAKY_RELU, RELU6})
_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _torch_parallel_for() -> int:
    """The address of libtorch's parallel loop, 0 where it cannot be found."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "*torch_cpu.*")):
        try:
            function = ctypes.CDLL(path).torch_parallel_for
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        core = importlib.import_module("normkit._native")
    except ImportError as error:
        return None, f"the native core is not built ({error}); reinstall normkit where a C++ compiler is found"
    core.set_parallel(_torch_parallel_for())
    core.set_dtypes(torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if core.isa_problem():
        warnings.warn(f"{core.isa_problem()}; using {core.isa()}", RuntimeWarning, stacklevel=2)
    return core, None


_core, _problem = _load()


def available() -> bool:
    """Whether the native core was built and loads."""
    return _core is not None


def why_not() -> str | None:
    """Why the native core is not available, or None."""
    return _problem


def isa() -> str:
    """The instruction set in use: "baseline", "avx2" or "avx512"; "none" without the native core."""
    return "none" if _core is None else _core.isa()


def supports_dtype(dtype: torch.dtype) -> bool:
    """Whether inputs of this dtype have native kernels."""
    return _core is not None and dtype in _DTYPES


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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """activation(batch_norm(input) + residual) by the batch's statistics: (output, stats, bits)."""
    x, shape = _dense(input)
    stats = torch.empty(3, shape[1], dtype=torch.float64)
    y, bits = _forward(
        x, shape, 0, weight, bias, residual, activation, param, eps, None, None, stats, save_for_backward
    )
    return y, stats, bits


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
    x, shape = _dense(input)
    stats = torch.empty(3, shape[1], dtype=torch.float64) if save_for_backward else None
    given = running_mean, running_var
    y, bits = _forward(x, shape, 0, weight, bias, residual, activation, param, eps, *given, stats, save_for_backward)
    return y, stats, bits


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
) -> Gradients:
    """Gradients of input, weight, bias and residual; training=False: the statistics are constants."""
    return _backward(
        grad_output, input, 0, weight, bias, residual, bits, stats, activation, param, training=training, needs=needs
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
    x, shape = _dense(input)
    stats = torch.empty((3, shape[0] * num_groups), dtype=torch.float64) if save_for_backward else None
    y, bits = _forward(
        x, shape, num_groups, weight, bias, residual, activation, param, eps, None, None, stats, save_for_backward
    )
    return y, stats, bits


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
    return _backward(
        grad_output, input, num_groups, weight, bias, residual, bits, stats, activation, param,
        training=True, needs=needs,
    )  # fmt: skip


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
    return _layer_forward(input, normalized_size, False, weight, bias, eps, save_for_backward)


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
    return _layer_backward(grad_output, input, normalized_size, False, weight, bias, stats, needs)


def rms_norm_forward(
    input: Tensor, normalized_size: int, weight: Tensor | None, eps: float, *, save_for_backward: bool = True
) -> tuple[Tensor, Tensor | None]:
    """RMS norm over rows of `normalized_size` elements: (output, stats (3, rows): 0, mean square, rstd)."""
    return _layer_forward(input, normalized_size, True, weight, None, eps, save_for_backward)


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
    dx, dweight, _ = _layer_backward(grad_output, input, normalized_size, True, weight, None, stats, (*needs, False))
    return dx, dweight


def unpack_bits(bits: Tensor, like: Tensor) -> Tensor:
    """The bits of a forward as a bool tensor of the input's shape."""
    x, (n, c, s, last) = _dense(like)
    rows, row = (n * s, c) if last else (n * c, s)
    flat = (bits.view(rows, -1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    flat = flat.view(rows, -1)[:, :row].bool()
    if not last:
        return flat.reshape(x.shape)
    return flat.view(n, *x.shape[2:], c).movedim(-1, 1)


def keeps_bits(activation: int) -> bool:
    """Whether a forward with a residual keeps the activation's sign as bits."""
    return activation in _PIECEWISE_LINEAR


def count_bit_bytes(input: Tensor) -> int:
    """How many bytes those bits take."""
    return _bit_bytes(_dense(input)[1])


def move_running(stats: Tensor, count: int, running_mean: Tensor, running_var: Tensor, factor: float) -> bool:
    """running = (1 - factor) * running + factor * new, var unbiased; False, and nothing written, where not finite.

    stats: (3, C). running_mean, running_var: (C,), contiguous, float32 or float64.
    """
    assert _core is not None
    if not (running_mean.is_contiguous() and running_var.is_contiguous() and running_mean.dtype == running_var.dtype):
        raise ValueError(
            "running_mean and running_var must be contiguous and of one dtype, "
            f"got {running_mean.dtype} and {running_var.dtype}"
        )
    unbias = count / (count - 1)
    moved: bool = _core.move_running(running_mean.numel(), stats, unbias, running_mean, running_var, factor)
    return moved


def _forward(
    x: Tensor,
    shape: tuple[int, int, int, bool],
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    param: float,
    eps: float,
    mean: Tensor | None,
    var: Tensor | None,
    stats: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """groups = 0: statistics per channel over the batch; else per sample and group."""
    assert _core is not None
    y = torch.empty_like(x)
    bits = None
    if residual is not None:
        residual = _like(residual, x)
        if save and activation in _PIECEWISE_LINEAR:
            bits = torch.empty(_bit_bytes(shape), dtype=torch.uint8)
    if x.numel() == 0:
        if stats is not None:
            stats.zero_()
        return y, bits
    _core.channel_forward(
        *shape, groups, x, residual, y, bits, _contiguous(weight), _contiguous(bias), _contiguous(mean),
        _contiguous(var), stats, eps, activation, param,
    )  # fmt: skip
    return y, bits


def _backward(
    grad_output: Tensor,
    input: Tensor,
    groups: int,
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
) -> Gradients:
    assert _core is not None
    x, shape = _dense(input)
    dy = _like(grad_output, x)
    dx = torch.empty_like(x) if needs[0] else None
    dweight = (
        torch.empty_like(weight, memory_format=torch.contiguous_format) if weight is not None and needs[1] else None
    )
    dbias = torch.empty_like(bias, memory_format=torch.contiguous_format) if bias is not None and needs[2] else None
    dresidual = None
    if needs[3]:
        dresidual = torch.empty_like(x) if activation != IDENTITY else dy
    if x.numel() == 0:
        _zero(dweight, dbias)
        return dx, dweight, dbias, dresidual
    residual = residual if residual is None else _like(residual, x)
    _core.channel_backward(
        *shape, groups, dy, x, residual, bits, _contiguous(weight), _contiguous(bias), stats, dx,
        dresidual if activation != IDENTITY else None, dweight, dbias, training, activation, param,
    )  # fmt: skip
    return dx, dweight, dbias, dresidual


def _layer_forward(
    input: Tensor, width: int, rms: bool, weight: Tensor | None, bias: Tensor | None, eps: float, save: bool
) -> tuple[Tensor, Tensor | None]:
    assert _core is not None
    x = input.contiguous()
    y = torch.empty_like(x)
    rows = x.numel() // width if width else 0
    stats = torch.empty((3, rows), dtype=torch.float64) if save else None
    if rows:
        _core.layer_forward(rows, width, rms, x, y, _contiguous(weight), _contiguous(bias), stats, eps)
    return y, stats


def _layer_backward(
    grad_output: Tensor,
    input: Tensor,
    width: int,
    rms: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    assert _core is not None
    x = input.contiguous()
    dy = _like(grad_output, x)
    dx = torch.empty_like(x) if needs[0] else None
    dweight = (
        torch.empty_like(weight, memory_format=torch.contiguous_format) if weight is not None and needs[1] else None
    )
    dbias = torch.empty_like(bias, memory_format=torch.contiguous_format) if bias is not None and needs[2] else None
    rows = x.numel() // width if width else 0
    if rows == 0:
        _zero(dweight, dbias)
        return dx, dweight, dbias
    weight = _contiguous(weight)  # by name: a temporary would be freed before the kernel reads it
    _core.layer_backward(rows, width, rms, dy, x, _contiguous(weight), stats, dx, dweight, dbias)
    return dx, dweight, dbias


def _dense(input: Tensor) -> tuple[Tensor, tuple[int, int, int, bool]]:
    """The input with dense strides, and (N, C, S, whether channels are innermost in memory)."""
    n, c = input.shape[:2]
    s = input.numel() // (n * c) if n and c else 0
    if input.is_contiguous():
        return input, (n, c, s, s == 1)
    if input.dim() > 2 and input.movedim(1, -1).is_contiguous():
        return input, (n, c, s, True)
    return input.contiguous(), (n, c, s, s == 1)


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    """The tensor in x's dtype and strides."""
    if tensor.dtype == x.dtype and (tensor.stride() == x.stride() or (tensor.is_contiguous() and x.is_contiguous())):
        return tensor
    return torch.empty_like(x).copy_(tensor)


def _contiguous(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None or parameter.is_contiguous() else parameter.contiguous()


def _zero(*gradients: Tensor | None) -> None:
    for gradient in gradients:
        if gradient is not None:
            gradient.zero_()


def _bit_bytes(shape: tuple[int, int, int, bool]) -> int:
    n, c, s, last = shape
    return n * s * ((c + 7) // 8) if last else n * c * ((s + 7) // 8)
