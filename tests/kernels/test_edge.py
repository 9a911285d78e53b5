"""What enters the native core is checked: every function, called with what it cannot take, raises one sentence."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from normkit.kernels.core import core
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

N, C, S = 4, 6, 5


class Subclass(Tensor):
    """Its memory is its own, but operations on it may mean something else."""


class Wrapper(Tensor):
    """Has no memory at all."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]  # private

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        raise AssertionError(f"{function} was called")


def freed(tensor: Tensor) -> Tensor:
    """A view, with an offset, of memory that was given back."""
    whole = torch.cat([tensor.flatten(), tensor.flatten()])
    view = whole[tensor.numel() :].view(tensor.shape)
    whole.untyped_storage().resize_(0)
    return view


# What is no operand of any call: what it is made of, the error's class, and what the error says.
HOSTILE: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "freed": (freed, RuntimeError, "The tensor has a non-zero number of elements, but its data is not allocated yet"),
    "subclass": (lambda t: t.as_subclass(Subclass), TypeError, "takes plain tensors"),
    "wrapper": (Wrapper, TypeError, "takes plain tensors"),
    "fake": (FakeTensorMode().from_tensor, TypeError, "takes plain tensors"),
    "meta": (lambda t: t.to("meta"), RuntimeError, "is on meta"),
    "sparse": (lambda t: t.to_sparse(), NotImplementedError, "layout torch.sparse_coo"),
    "mkldnn": (lambda t: t.float().to_mkldnn(), NotImplementedError, "layout torch._mkldnn"),
    "longer": (lambda t: torch.cat([t, t]), RuntimeError, r"elements not|must have the sizes|rows of|bytes of"),
    "shorter": (lambda t: t[:-1], RuntimeError, r"elements not|must have the sizes|bytes of"),
    "integer": (lambda t: t.to(torch.int64), (RuntimeError, TypeError), r"must be float|scalar type of Float|bytes of"),
    "complex": (lambda t: t + 0j, (RuntimeError, TypeError), r"must be float|scalar type of Float|bytes of"),
    "a number": (lambda t: 3.0, TypeError, "must be Tensor, not float"),
    "a list": (lambda t: [1.0], TypeError, "must be Tensor, not list"),
}


def context(*arguments: Any) -> SimpleNamespace:
    """The context that a forward leaves to its backward."""
    ctx = SimpleNamespace(needs_input_grad=(True,) * 4 + (False,) * 8)
    core.fused_forward(ctx, *arguments)
    ctx.saved_tensors = ctx.to_save
    return ctx


def calls() -> dict[str, tuple[Callable[..., Any], list[Any], dict[int, str]]]:
    """Each function with valid arguments, and which of these are tensors."""
    x, dy, r = torch.randn(N, C, S), torch.randn(N, C, S), torch.randn(N, C, S)
    w, b, mean, var = torch.rand(C), torch.rand(C), torch.rand(C), torch.rand(C)
    wide, shift = torch.rand(S), torch.rand(S)
    _, stats, bits = core.channel_forward(x, r, w, b, None, None, 0, 1e-5, 1, 0.0, True, ())
    _, of_rows, _ = core.layer_forward(x, None, S, False, wide, shift, 1e-5, True)
    running = (mean, var, None, 0.1, None)
    all_four = (True,) * 4
    names = ["input", "residual", "weight", "bias", "mean", "var"]
    backward = {0: "dy", 1: "input", 3: "bits", 4: "weight", 5: "bias", 6: "stats"}
    fused = {1: "input", 2: "weight", 3: "bias", 4: "residual"}
    return {
        "channel_forward": (
            core.channel_forward, [x, r, w, b, mean, var, 0, 1e-5, 1, 0.0, True, ()], dict(enumerate(names)),
        ),
        "channel_backward": (
            core.channel_backward, [dy, x, None, bits, w, b, stats, 0, True, 1, 0.0, *all_four, (), 0], backward,
        ),
        "channel_statistics": (core.channel_statistics, [x], {}),
        "layer_forward": (
            core.layer_forward, [x, r, S, False, wide, shift, 1e-5, True], {1: "residual", 4: "weight", 5: "bias"},
        ),
        "layer_backward": (
            core.layer_backward, [dy, r, x, S, False, wide, shift, of_rows, *all_four[1:]],
            {0: "dy", 1: "dsum", 5: "weight", 6: "bias", 7: "stats"},
        ),
        "fused_forward": (
            core.fused_forward, [None, x, w, b, r, None, running, 0, 0, False, 1e-5, 1, 0.0], fused,
        ),
        "fused_rows": (
            core.fused_forward, [None, x, wide, shift, r, None, None, 2, S, True, 1e-5, 0, 0.0],
            {2: "weight", 3: "bias", 4: "residual"},
        ),
        "fused_backward": (
            core.fused_backward, [context(x, w, b, r, None, None, 0, 0, True, 1e-5, 1, 0.0), dy], {1: "dy"},
        ),
        "added_backward": (
            core.added_backward, [context(x, wide, shift, r, None, None, 2, S, True, 1e-5, 0, 0.0), dy, r],
            {1: "dy", 2: "dsum"},
        ),
        "move_running": (core.move_running, [stats, N * S, mean, var, None, 0.1], {2: "mean", 3: "var"}),
    }  # fmt: skip


CALLS = calls() if core is not None else {}  # without the core there is nothing to collect
OPERANDS = [(name, index, role) for name, (_, _, roles) in CALLS.items() for index, role in roles.items()]


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_that_the_others_are_made_of_are_taken(name: str) -> None:
    function, arguments, _ = calls()[name]
    function(*arguments)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(("name", "index", "role"), OPERANDS, ids=[f"{name}-{role}" for name, _, role in OPERANDS])
def test_what_is_no_operand_is_refused(name: str, index: int, role: str, kind: str) -> None:
    function, arguments, _ = calls()[name]
    make, error, text = HOSTILE[kind]
    if role == "bits" and kind == "integer":
        pytest.skip("whole numbers of 0 to 255 in another dtype are the bytes of the forward")
    if role == "stats":
        text += "|stats must be"
    arguments[index] = make(arguments[index])
    with pytest.raises(error, match=text):
        function(*arguments)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", ["x", None, object(), torch.ones(3)], ids=["str", "None", "object", "tensor"])
def test_a_number_of_another_type_is_named(name: str, value: Any) -> None:
    function, valid, _ = calls()[name]
    for index, argument in enumerate(valid):
        if not isinstance(argument, (bool, int, float)) or (name == "move_running" and value is None):
            continue
        arguments = [*valid]
        arguments[index] = value
        with pytest.raises(
            (TypeError, ValueError), match=r"argument '\w+' must be (float|int|bool), not|only one element"
        ):
            function(*arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({6: 4}, r"groups \(4\) must divide the number of channels \(6\)"),
        ({6: -1}, r"groups \(-1\) must divide"),
        ({8: 13}, "no activation has the code 13"),
        ({11: (1, 1)}, "sizes must be positive and sum up to the 4 samples"),
        ({11: (5, -1)}, "sizes must be positive"),
        ({11: (2**62, 2**62, 2**62, 2**62 + 4)}, "sizes must be positive"),
        ({5: None}, "mean and var must both be given"),
    ],
)
def test_sizes_that_would_lead_out_of_bounds_are_refused(arguments: dict[int, Any], text: str) -> None:
    function, given, _ = calls()["channel_forward"]
    for index, value in arguments.items():
        given[index] = value
    with pytest.raises(ValueError, match=text):
        function(*given)


def test_tuples_are_looked_at_before_they_are_read() -> None:
    x, ctx = torch.randn(N, C, S), calls()["fused_backward"][1][0]
    for running in ("mean", [x], (x,)):
        with pytest.raises((TypeError, ValueError), match="argument 'running' must"):
            core.fused_forward(None, x, None, None, None, None, running, 0, 0, True, 1e-5, 0, 0.0)
    for name, value in (("saved_tensors", (x,)), ("plan", "012345"), ("needs_input_grad", ())):
        with pytest.raises((TypeError, ValueError), match=f"argument '{name}' must"):
            core.fused_backward(SimpleNamespace(**{**vars(ctx), name: value}), x)
    with pytest.raises(TypeError, match="expected 2 arguments, got 1"):
        core.fused_backward(ctx)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.complex64, torch.bool])
def test_statistics_that_are_no_floating_point_are_refused_as_torch_does(dtype: torch.dtype) -> None:
    mean, var = torch.zeros(C, dtype=dtype), torch.ones(C, dtype=dtype)
    x = torch.randn(N, C, S)
    for function in (torch.nn.functional.batch_norm, lambda x, *running, training: core.channel_forward(
        x, None, None, None, *running, 0, 1e-5, 0, 0.0, False, ()
    )):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"mixed dtype \(CPU\): expect parameter to have scalar type of Float"):
            function(x, mean, var, training=False)
    with pytest.raises(RuntimeError, match="expect parameter to have scalar type of Float"):
        core.move_running(core.channel_statistics(x), N * S, mean, var, None, 0.1)
