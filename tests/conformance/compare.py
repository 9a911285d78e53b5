"""What the conformance tests share: the comparison with torch and float64, and a quiet import of torch's own cases."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}

# Of the largest value. The samples reach |x| about 9 with a variance of 1e-2 at times, so a gradient term may be ten
# times the largest gradient: 64 u of the dtype, and 1e-7 for float64, where torch's own samples leave eps at 1e-5.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 64 * 2.0**-24,
    torch.bfloat16: 4 * 2.0**-8,  # one rounding of the output, one of each of dy and y between
    torch.float16: 4 * 2.0**-11,
}


def quiet_import(name: str) -> ModuleType:
    """Import a module of torch's test support, which warns while it loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def assert_as_right_as_torch(ours: Any, theirs: Any, truth: Any, what: str, scale: float = 1.0) -> None:
    """Raise unless `ours` is within TOLERANCE of the float64 truth, or at least as near to it as torch's result is.

    scale: how large the terms are that the result is a difference of, where that is more than the result's own size.
    Some of torch's kernels sum gradients in half precision; the same values are not asked of us where they are wrong.
    """
    assert (ours is None) == (theirs is None), f"{what}: {ours} against {theirs}"
    if ours is None:
        return
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, torch has {tuple(theirs.shape)}"
    undefined = theirs.isnan()
    assert torch.equal(ours.isnan(), undefined), f"{what}: NaN at other places than torch's"
    if not ours.is_floating_point() or ours.numel() == 0 or undefined.all():
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), f"{what}: {ours} against {theirs}"
        return
    expected = truth.detach().double()[~undefined]
    error = (ours.detach().double()[~undefined] - expected).abs()
    torchs = (theirs.detach().double()[~undefined] - expected).abs().max()
    allowed = max(float(torchs), TOLERANCE[theirs.dtype] * max(scale, float(expected.abs().max())))
    assert float(error.max()) <= allowed, f"{what}: error {float(error.max()):.3g}, allowed {allowed:.3g}"


def randomize(module: nn.Module) -> None:
    """Give parameters and statistics values that show a missing weight, bias, mean or variance."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                drawn = torch.rand(value.shape, generator=g)
                value.copy_(drawn - 0.5 if "mean" in name or "bias" in name else drawn + 0.5)


def twin(value: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy of tensors in nested arguments, in another dtype if given, with the same strides and requires_grad."""
    if isinstance(value, Tensor):
        copy = value.detach().clone(memory_format=torch.preserve_format)
        if dtype is not None and copy.is_floating_point():
            copy = copy.to(dtype)
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(twin(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: twin(v, dtype) for k, v in value.items()}
    return value


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []
