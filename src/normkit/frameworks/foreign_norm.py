"""A norm as another framework has it, in PyTorch's words: what every reader of this folder gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ForeignNorm:
    """weight, bias: gamma and beta, None where the norm has none: then they are 1 and 0 there, and stay so. mean, var:
    the running statistics that it evaluates with, None where it keeps none. eps, keeps (of the old statistic): None
    where the state does not say. eps_default: where it is not that of the framework's table. counter: batches seen.
    family, groups: "layer", "group" (into how many; -1: one a channel), "rms" and so on where the state tells the
    layer's class, as a Keras model and ONNX do; None where it holds arrays alone. notes: what was converted on the way
    here.
    """

    name: str
    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float | None = None
    eps_default: float | None = None
    keeps: float | None = None
    counter: int | None = None
    family: str | None = None
    groups: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def tracked(self) -> bool:
        return self.mean is not None and self.var is not None

    def described(self) -> str:
        """Its name and how many channels it has."""
        first = next((t for t in (self.mean, self.weight, self.bias) if t is not None), None)
        return f"{self.name} {tuple(first.shape)}" if first is not None else self.name


def tensor_of(value: Any, name: str) -> Tensor:
    """The numbers of an array of any library (NumPy, JAX, PyTorch, a variable of Keras, Paddle or MXNet), float64.

    ValueError, which names it, for what holds no numbers, or NaN or Inf.
    """
    value = getattr(value, "value", value) if not isinstance(value, Tensor) else value  # a variable of Flax or Keras
    value = value() if callable(value) else value  # older frameworks have a method of that name
    found = value.detach() if isinstance(value, Tensor) else _from_array(value, name)
    if found.is_meta or not (found.is_floating_point() or found.dtype in (torch.int32, torch.int64)):
        raise ValueError(f"expected {name} to hold numbers, got {found.dtype} on {found.device.type}")
    wide = found.to("cpu", torch.float64, copy=True)
    if not bool(wide.isfinite().all()):
        raise ValueError(f"{name} holds NaN or Inf: the training that wrote it had diverged")
    return wide


def _from_array(value: Any, name: str) -> Tensor:
    for method in ("asnumpy", "detach", "numpy"):  # MXNet; a tensor of a backend; TensorFlow and Paddle
        convert = getattr(value, method, None)
        if callable(convert):
            value = convert()
            break
    if isinstance(value, Tensor):
        return value.detach()
    try:
        import numpy
    except ImportError:  # then nobody had an array
        return torch.tensor(value, dtype=torch.float64)
    try:
        return torch.from_numpy(numpy.array(value).astype("float64"))  # bfloat16 too, which torch cannot read itself
    except (TypeError, ValueError):
        raise ValueError(f"expected {name} to be an array of numbers, got {type(value).__name__}") from None


def vector(value: Tensor) -> Tensor:
    """(C,) of (1, C, 1, 1), (1, 1, 1, C) and the like; anything else as it is."""
    return value.flatten() if value.numel() == max(value.shape, default=0) else value


def is_array(value: Any) -> bool:
    """Whether it is a leaf of a state: numbers, and no further level."""
    return not isinstance(value, (Mapping, str, bytes)) and (
        hasattr(value, "shape") or (isinstance(value, Sequence) and all(isinstance(v, (int, float)) for v in value))
    )
