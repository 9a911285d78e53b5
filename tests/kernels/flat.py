"""The native kernels with plain arguments: tests draw tensors one by one, kernels take them as operands."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from normkit._activation import by_code
from normkit._operands import Needs, Operands, Saved
from normkit.kernels import native
from tests.cases import EPS

Found = tuple[Tensor | None, ...]


def batch_norm_forward(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, residual: Tensor | None = None,
    code: int = 0, param: float = 0.0, eps: float = EPS, *, save_for_backward: bool = True,
    sizes: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(output, stats, bits)."""
    operands = Operands(x, weight, bias, residual)
    y, saved = native.batch_norm_forward(operands, by_code(code, param), eps, save=save_for_backward, sizes=sizes)
    return y, *saved


def batch_norm_inference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    code: int, param: float, eps: float, *, save_for_backward: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(output, stats, bits)."""
    operands = Operands(x, weight, bias, residual)
    y, saved = native.batch_norm_inference(operands, mean, var, by_code(code, param), eps, save=save_for_backward)
    return (y, None, None) if saved is None else (y, *saved)


def batch_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, bits: Tensor | None,
    stats: Tensor, code: int, param: float, *, training: bool, needs: tuple[bool, bool, bool, bool],
    sizes: Sequence[int] = (),
) -> Found:  # fmt: skip
    """Gradients of input, weight, bias and residual."""
    operands, saved = Operands(x, weight, bias, residual), Saved(stats, bits)
    return native.batch_norm_backward(
        dy, operands, saved, by_code(code, param), Needs(*needs), training=training, sizes=sizes
    )


def group_norm_forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, code: int,
    param: float, eps: float, *, save_for_backward: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(output, stats, bits)."""
    operands = Operands(x, weight, bias, residual)
    y, saved = native.group_norm_forward(operands, groups, by_code(code, param), eps, save=save_for_backward)
    return (y, None, None) if saved is None else (y, *saved)


def group_norm_backward(
    dy: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    bits: Tensor | None, stats: Tensor, code: int, param: float, *, needs: tuple[bool, bool, bool, bool],
) -> Found:  # fmt: skip
    """Gradients of input, weight, bias and residual."""
    operands, saved = Operands(x, weight, bias, residual), Saved(stats, bits)
    return native.group_norm_backward(dy, operands, saved, groups, by_code(code, param), Needs(*needs))


def layer_norm_forward(
    x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, save_for_backward: bool = True
) -> tuple[Tensor, Tensor | None]:
    """(output, stats)."""
    y, saved = native.layer_norm_forward(Operands(x, weight, bias), size, eps, save=save_for_backward)
    return y, None if saved is None else saved.stats


def layer_norm_backward(
    dy: Tensor, x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, stats: Tensor, *,
    needs: tuple[bool, bool, bool],
) -> Found:  # fmt: skip
    """Gradients of input, weight and bias."""
    return native.layer_norm_backward(dy, Operands(x, weight, bias), Saved(stats), size, Needs(*needs, False))[:3]


def rms_norm_forward(
    x: Tensor, size: int, weight: Tensor | None, eps: float, *, save_for_backward: bool = True
) -> tuple[Tensor, Tensor | None]:
    """(output, stats)."""
    y, saved = native.rms_norm_forward(Operands(x, weight), size, eps, save=save_for_backward)
    return y, None if saved is None else saved.stats


def rms_norm_backward(
    dy: Tensor, x: Tensor, size: int, weight: Tensor | None, stats: Tensor, *, needs: tuple[bool, bool]
) -> Found:
    """Gradients of input and weight."""
    return native.rms_norm_backward(dy, Operands(x, weight), Saved(stats), size, Needs(*needs, False, False))[:2]
