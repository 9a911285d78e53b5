"""The functions of the native core (native/bind.cpp). kernels/core.py imports it, kernels/native.py calls it.

Arguments are positional. Tensors are plain (no subclass), on the CPU, with memory; each is checked (native/edge.h), and
what does not fit raises a RuntimeError, TypeError, ValueError or NotImplementedError, in torch's words if it has any.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor

INTERFACE: int

def set_torch(names: SimpleNamespace, /) -> None:
    """names: what native/torch.h asks for; `exchange` is torch's table of DLPack functions, or `older_table`'s;
    `storages` what `kernels/storages.py` finds, or None."""

def older_table(
    functions: dict[str, int],
    offset: int,
    data_ptr: Callable[[Tensor], int],
    from_dlpack: Callable[[Any], Tensor],
    /,
) -> Any:
    """Such a table over libtorch's C shim, as a capsule. offset: of the at::Tensor in a Python object, bytes."""

def older_loop(functions: dict[str, int], /) -> int:
    """The address of a parallel loop over libgomp."""

def set_parallel(address: int, /) -> None: ...
def isa() -> str: ...
def use_isa(name: str, /) -> bool: ...
def isa_problem() -> str: ...
def keep_memory(limit: int, /) -> None: ...
def kept_memory() -> int: ...
def ready(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running: tuple[Any, ...] | None,
    kind: int,
    size: int,
    training: bool,
    /,
) -> bool:
    """Whether `fused_forward` takes these tensors as they are.

    Plain tensors on the CPU, input not empty: (N, C, *), residual of its sizes and dtype, the others (C,) of fitting
    dtypes or None, and in training more than one value for each set of statistics; or rows (*, size), beside a residual
    row-major as it is.
    """

def plain_gradient(grad_output: Tensor, /) -> bool:
    """Whether it is a plain tensor with memory, with no torch-dispatch mode around it: what `fused_backward` takes."""

def fused_inference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Any,
    running: tuple[Any, ...] | None,
    kind: int,
    size: int,
    training: bool,
    eps: float,
    code: int,
    param: float,
    /,
) -> Any:
    """`ready` and `fused_forward` without a context, in one call; None where the tensors are not ready."""

def fused_forward(
    ctx: Any,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Any,
    running: tuple[Tensor, Tensor, Tensor | None, float | None, Any] | None,
    kind: int,
    size: int,
    training: bool,
    eps: float,
    code: int,
    param: float,
    /,
) -> Any:
    """The forward of an autograd Function whose arguments are those after ctx. kind: what has statistics of its own.

    kind      0: a channel over the batch; 1: one of `size` groups of a sample's channels; 2: layer norm, 3: RMS norm of
              rows of `size` elements (no activation)
    residual  added behind the norm; to rows before it, and then (output, sum) comes back: the norm of the sum, rounded
              to the dtype, and the sum, which is saved in the input's place, while ctx.materialize_grads is False
    ctx       None saves nothing. Else ctx.to_save = (input, weight, bias, residual or None, None, stats, bits or None),
              ctx.norm = norm, ctx.plan = (kind, size, training, code, param, channels_last)
    stats     their bytes: uint8, to be seen as float64 (3, sets)
    bits      uint8, in the memory order that channels_last tells
    running   (mean, var, batches, momentum, deferred); kind 0 takes its statistics from there unless training. A
              training forward moves them; where that is no plain step it asks norm.move(stats, input), stats as float64
    """

def fused_backward(ctx: Any, grad_output: Tensor, /) -> tuple[Tensor | None, ...]:
    """One gradient for each of those twelve arguments: of input, weight, bias and residual, then None.

    Reads ctx.saved_tensors, ctx.plan and ctx.needs_input_grad. What comes back in another dtype or memory format is
    brought back where that is exact; RuntimeError where it is not what was saved.
    """

def added_backward(ctx: Any, grad_output: Tensor, grad_sum: Tensor | None, /) -> tuple[Tensor | None, ...]:
    """The same for rows with a residual: grad_sum is added to the gradient of both, rounded before."""

def channel_forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    groups: int,
    eps: float,
    code: int,
    param: float,
    save: bool,
    sizes: Sequence[int],
    /,
) -> tuple[Tensor, Any, Any]:
    """(output, stats, bits) of input (N, C, *); stats float64 (3, sets) and bits uint8 may be None.

    groups: 0 for statistics of channels over the batch. weight, bias: (C,), or (N, C) where a sample has its own, of
    groups or beside given statistics; stats of groups are then (3, groups) of one sample after the other. mean, var:
    (C,), given statistics. sizes: samples of each slice of the batch, where slices have statistics of their own: stats
    is (3 * slices, C) then.
    """

def channel_backward(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    bits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    groups: int,
    training: bool,
    code: int,
    param: float,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
    sizes: Sequence[int],
    count: int,
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight, bias and residual where needed. stats: float64 (3, sets), or its bytes.

    count: how many values are behind the statistics where not all are, else 0.
    """

def channel_statistics(input: Tensor, /) -> Tensor:
    """(3, C) float64 of input (N, C, *): mean, biased variance, 1 / sqrt(var)."""

def layer_forward(
    input: Tensor,
    residual: Tensor | None,
    width: int,
    rms: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    save: bool,
    /,
) -> tuple[Tensor, Any, Any]:
    """(output, stats float64 (3, rows) or None, input + residual or None) over rows of `width` elements.

    weight, bias: `width` elements, or (blocks, ..., width), one for each of as many blocks of consecutive rows; stats
    are then those of one block after the other, (3, rows of a block) each.
    """

def layer_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    input: Tensor,
    width: int,
    rms: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias where needed. stats: float64 (3, rows), or its bytes.

    grad_sum: added to the input's gradient, which is rounded before.
    """

def element_forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    kind: int,
    size: int,
    eps: float,
    save: bool,
    /,
) -> tuple[Tensor, Any]:
    """(scale * norm(input) + shift, stats float64 (3, sets) or None), row-major; scale, shift: of the input's sizes.

    kind, size: as in `fused_forward`; kind 0 is by mean and var (C,), and a set is a plane.
    """

def element_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    kind: int,
    size: int,
    stats: Tensor,
    training: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_scale: bool,
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight, bias and scale where needed; that of shift is grad_output.

    training: False where the statistics are constants.
    """

def move_running(
    stats: Tensor,
    count: int,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,
    momentum: float | None,
    /,
) -> bool | None:
    """True: moved. False: nothing was, a new value is not finite. None: nothing was, only torch's operations can."""
