"""What a tensor may be besides plain memory, and what may happen around a call. Scripts hold the functions they use.

Rules: a trick takes a tensor and gives one of the same values, unless its line says otherwise.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def freed(x: Tensor) -> Tensor:
    """Its memory is gone, as FSDP and offloading leave it: nothing may be computed from it."""
    x.untyped_storage().resize_(0)
    return x


def negated(x: Tensor) -> Tensor:
    """A lazy negation."""
    return torch._neg_view(x.neg())


def conjugated(x: Tensor) -> Tensor:
    """The imaginary part of a lazy conjugate: a lazy negation again, of every second element."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def zerotensor(x: Tensor) -> Tensor:
    """torch's tensor of zeros that has no memory; x is zeros."""
    return torch._efficientzerotensor(x.shape, dtype=x.dtype)


def meta(x: Tensor) -> Tensor:
    """No values at all."""
    return x.to("meta")


def fake(x: Tensor) -> Tensor:
    """No values at all."""
    return FakeTensorMode().from_tensor(x)


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def parameter(x: Tensor) -> Tensor:
    return torch.nn.Parameter(x.detach(), requires_grad=x.requires_grad)


def from_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(numpy.array(x.numpy()))


def read_only(x: Tensor) -> Tensor:
    array = numpy.array(x.numpy())
    array.flags.writeable = False
    return torch.from_numpy(array)


def shared(x: Tensor) -> Tensor:
    return x.share_memory_()


def sparse(x: Tensor) -> Tensor:
    return x.to_sparse()


def mkldnn(x: Tensor) -> Tensor:
    return x.to_mkldnn()


def dlpack(x: Tensor) -> Tensor:
    return torch.from_dlpack(x)


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


def subclass(x: Tensor) -> Tensor:
    return x.as_subclass(Plain)


class Wrapper(torch.Tensor):
    """A subclass without memory of its own, as distributed and quantized tensors are."""

    @staticmethod
    def __new__(cls, t: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, t.shape, dtype=t.dtype, strides=t.stride(), device=t.device, storage_offset=int(t.storage_offset())
        )

    def __init__(self, t: Tensor) -> None:
        self.t = t.resolve_neg()  # within a dispatch function torch no longer looks for the sign

    def __repr__(self) -> str:
        return f"Wrapper({self.t})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        open_ = lambda a: a.t if isinstance(a, Wrapper) else a  # noqa: E731
        close = lambda a: Wrapper(a) if type(a) is torch.Tensor else a  # noqa: E731
        found = function(*tree_map(open_, args), **tree_map(open_, kwargs or {}))
        name = function.__name__.split(".")[0]
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        return tree_map(close, found)


def wrapper(x: Tensor) -> Tensor:
    return Wrapper(x)


class Silent(TorchDispatchMode):
    """A dispatch mode that changes nothing."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Quiet(TorchFunctionMode):
    """A function mode that changes nothing."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Memory that is handed out is filled with NaN first."""
    torch._C._set_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(False)


def saved(kind: str) -> saved_tensors_hooks:
    """Hooks that store what autograd keeps in another form."""
    floats: Callable[[Callable[[Tensor], Any]], Callable[[Tensor], Any]] = lambda f: (  # noqa: E731
        lambda t: f(t) if t.is_floating_point() else t
    )
    pack, unpack = {
        "clone": (lambda t: t.clone(), lambda t: t),
        "detach": (lambda t: t.detach(), lambda t: t),
        "numpy": (lambda t: t.detach().resolve_neg().float().numpy() if t.dtype == torch.float32 else t.detach(),
                  lambda t: t if isinstance(t, Tensor) else torch.from_numpy(t.copy())),
        "sparse": (lambda t: t.detach().to_sparse(), lambda t: t.to_dense()),
        "stay_sparse": (lambda t: t.detach().to_sparse(), lambda t: t),
        "strided": (lambda t: t.detach(), lambda t: strided_copy(t)),
        "permuted": (lambda t: t.detach(), lambda t: permuted_copy(t)),
        "parameter": (lambda t: torch.nn.Parameter(t.detach(), requires_grad=t.is_floating_point()), lambda t: t),
        "wrapper": (lambda t: t.detach(), lambda t: Wrapper(t)),
        "subclass": (lambda t: t.detach(), lambda t: t.as_subclass(Plain)),
        "negated": (lambda t: t.detach(), floats(lambda t: torch._neg_view(t.neg()))),
        "float32": (floats(lambda t: t.detach().float()), lambda t: t),
        "bfloat16": (floats(lambda t: t.detach().bfloat16()), floats(lambda t: t.float())),
        "half_and_back": (lambda t: (t.dtype, t.detach().half()) if t.is_floating_point() else (t.dtype, t.detach()),
                          lambda p: p[1].to(p[0])),
        "double": (floats(lambda t: t.detach().double()), lambda t: t),
        "meta": (lambda t: t.detach(), lambda t: t.to("meta")),
        "flat": (lambda t: t.detach(), lambda t: t.reshape(-1)),
        "shorter": (lambda t: t.detach(), lambda t: t.reshape(-1)[: t.numel() // 2]),
        "freed": (lambda t: t.detach().clone(), lambda t: freed(t)),
        "none": (lambda t: t.detach(), lambda t: None),
    }[kind]  # fmt: skip
    return saved_tensors_hooks(pack, unpack)


def strided_copy(t: Tensor) -> Tensor:
    if not t.dim():
        return t
    wide = torch.zeros((*t.shape[:-1], 2 * t.shape[-1]), dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


def permuted_copy(t: Tensor) -> Tensor:
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


def in_thread(function: Callable[[], Any]) -> Any:
    """What the function gives in another thread; its exception is raised here."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((True, function()))
        except BaseException as error:
            found.append((False, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    ok, value = found[0]
    if not ok:
        raise value
    return value


def in_threads(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The output, which eight calls in four threads give alike."""
    outputs: list[Any] = []

    def run() -> None:
        for _ in range(2):
            try:
                outputs.append(norm(x))
            except BaseException as error:
                outputs.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for output in outputs:
        if isinstance(output, BaseException):
            raise output
        if not torch.equal(output.nan_to_num(1234.0), outputs[0].nan_to_num(1234.0)):
            raise ArithmeticError("threads that call the same norm on the same input disagree")
    return outputs[-1]


def is_freed(x: Tensor) -> bool:
    """Whether a tensor that has elements has no memory."""
    strided = x.layout is torch.strided and type(x) in (Tensor, torch.nn.Parameter) and not x._is_zerotensor()
    return strided and x.numel() > 0 and x.untyped_storage().nbytes() == 0


def plain(x: Any) -> Any:
    """A tensor without what wraps it; what has no values stays as it is."""
    if isinstance(x, Wrapper):
        return plain(x.t)
    if not isinstance(x, Tensor) or isinstance(x, FakeTensor) or x.is_meta or is_freed(x):
        return x
    x = x.detach()
    if x.layout is not torch.strided:
        x = x.to_dense()
    return x.as_subclass(Tensor).resolve_neg().resolve_conj()
