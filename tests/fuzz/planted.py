"""Faults put into normkit's public functions, in a child process of the fuzzer alone. Each is what `work=` takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from tools.fuzz.case import Case
from tools.fuzz.fit import fit
from tools.fuzz.generate import draw
from torch import Tensor

import normkit as nk

Runs = tuple[Callable[..., Any], Callable[..., Any]]


def plain(seed: int, number: int) -> Case:
    """A case of batch norm as a function in float32, with nothing that is done to a tensor or around a call."""
    case = draw(seed, number)
    tensors = {}
    for name, array in case.tensors.items():
        usual = "var" if name == "running_var" else "normal"
        tensors[name] = type(array)(values=usual, layout=array.layout if name in ("x", "dy") else "contiguous")
        if array.layout not in ("contiguous", "channels_last"):
            tensors[name] = type(array)(values=usual)
    return fit(
        Case(
            shape=case.shape, training=case.training, tensors=tensors, mask=case.mask, activation=case.activation,
            eps=case.eps, momentum="0.1" if case.momentum == "None" else case.momentum,
            wanted=tuple(name for name in case.wanted if not name.startswith("running")),
        )
    )  # fmt: skip


def _with(fault: Callable[[Callable[..., Tensor], dict[str, Any]], Tensor]) -> Runs:
    """normkit with a batch norm that calls `fault(real, arguments)`."""
    from tools.fuzz.work import prepare  # what a child imports, torch's deprecated parts among it

    runs, real = prepare(), nk.functional.batch_norm
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")

    def batch_norm(*arguments: Any, **named: Any) -> Tensor:
        return fault(real, dict(zip(names, arguments, strict=False)) | named)

    nk.functional.batch_norm = batch_norm  # type: ignore[assignment]
    return runs


def nothing() -> Runs:
    return _with(lambda real, a: real(**a))


def ignores_eps() -> Runs:
    return _with(lambda real, a: real(**a | {"eps": 1e-5}))


def ignores_momentum() -> Runs:
    return _with(lambda real, a: real(**a | {"momentum": 0.1}))


def reads_under_the_mask() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        mask = a.pop("mask", None)
        y = real(**a)
        if mask is None:
            return y
        full = mask if mask.dim() == y.dim() else mask.unsqueeze(1)
        return torch.where(full, y, 0)

    return _with(fault)


def aborts() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        if a.get("residual") is not None and a["input"].dim() > 2:
            os.abort()
        return real(**a)

    return _with(fault)


def torch_dies_too() -> Runs:
    def dies(stage: str) -> Callable[..., Any]:
        def run(case: Case, tell: Callable[[str], None]) -> None:
            tell(stage)
            os.abort()

        return run

    return dies("normkit"), dies("torch")


def sleeps() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        if a.get("activation") is not None:
            time.sleep(60)
        return real(**a)

    return _with(fault)


def loses_the_format() -> Runs:
    return _with(lambda real, a: real(**a).contiguous())


def widens() -> Runs:
    return _with(lambda real, a: real(**a).double())


def detaches_the_weight() -> Runs:
    return _with(lambda real, a: real(**a | {"weight": None if a["weight"] is None else a["weight"].detach() * 1}))


def scales_the_gradient() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        x = a["input"]
        return real(**a | {"input": x.detach() + 1.001 * (x - x.detach())})

    return _with(fault)


def refuses_one_sample() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        if a["input"].shape[0] == 1:
            raise RuntimeError("one sample is too few")
        return real(**a)

    return _with(fault)


def raises_its_own_error() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        assert a["input"].shape[0] != 1
        return real(**a)

    return _with(fault)


def takes_any_weight() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        return real(**a | {"weight": None if a["weight"] is None else a["weight"][: a["input"].shape[1]]})

    return _with(fault)


def leaves_a_mode() -> Runs:
    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        y = real(**a)
        torch.set_default_dtype(torch.float64)
        return y

    return _with(fault)


def fails_the_second_time() -> Runs:
    calls = []

    def fault(real: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
        calls.append(1)
        return real(**a) * (2 if len(calls) > 1 else 1)

    return _with(fault)
