"""Runs one case in this process: normkit, torch and float64 side by side."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit import _torch

from . import calls, tricks, values
from .case import Case
from .finding import Finding, Outcome
from .fit import nearest
from .judge import judge
from .program import render, render_make
from .truth import Truth, compute

Stage = Callable[[str], None]

NAMES: dict[str, Any] = {
    **{name: value for m in (values, tricks, calls) for name, value in vars(m).items() if not name.startswith("__")},
    "torch": torch, "nn": nn, "F": F, "nk": nk, "FakeTensorMode": FakeTensorMode, "forward_ad": forward_ad,
    "make_fx": make_fx, "checkpoint": checkpoint,
}  # fmt: skip


def run(case: Case, stage: Stage = lambda name: None) -> Finding | None:
    """Run the case; a disagreement is a finding. stage: told what runs, so that a crash can be laid at its door."""
    stage("make")
    make, with_normkit = program(case, "normkit")
    stage("normkit")
    ours = _outcome(with_normkit, make)
    assert ours is not None
    broken = restore()
    if is_lost():
        return None if "INTERNAL ASSERT" in str(ours.error) else _LOST
    stage("torch")
    theirs, near = _outcome(program(case, "torch")[1], make), None
    if theirs is None and ours.error is not None:
        near_make, near_torch = program(nearest(case), "torch")
        near = _outcome(near_torch, near_make)
    restore()
    if broken:
        return Finding("state", broken, "what was set inside the call stays set after it", 4)
    truth: Truth | None = None
    if ours.error is None:
        stage("truth")
        truth = _truth(case, make, theirs)
    stage("judge")
    return judge(case, ours, theirs, truth, near)


def run_torch(case: Case, stage: Stage) -> None:
    """Run torch's program alone, or its nearest norm's, to learn whether it dies of the case; then with an output that
    is a view, as normkit's may be: torch to 2.15 dies of a hook on a view that was written through another one."""
    if render(case, "torch") is None:
        case = nearest(case)
    stage("torch")
    for as_view in (False, True):
        make, with_torch = program(case, "torch", as_view)
        _outcome(with_torch, make)


def program(
    case: Case, lib: str, as_view: bool = False
) -> tuple[Callable[[], dict[str, Any]], Callable[..., dict[str, Any]] | None]:
    """The case's two functions: the tensors', and the one that takes them; None where torch has no such norm."""
    text = render(case, lib, as_view)
    return _function(render_make(case), "make"), None if text is None else _function(text, f"with_{lib}")


def _function(text: str, name: str) -> Callable[..., Any]:
    names = dict(NAMES)
    exec(compile(text, f"<{name}>", "exec"), names)
    return names[name]


def _outcome(runs: Callable[..., dict[str, Any]] | None, make: Callable[[], dict[str, Any]]) -> Outcome | None:
    if runs is None:
        return None
    tensors = make()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome(found=runs(**tensors))
    except Exception as error:
        error.__traceback__ = None
        return Outcome(error=error)


def _truth(case: Case, make: Callable[[], dict[str, Any]], theirs: Outcome | None) -> Truth | None:
    """None where float64 has no answer: dtypes that make no norm, and what torch raises for."""
    tensors = make()
    if not all(t.is_floating_point() for n, t in tensors.items() if n not in ("mask", "dy")):
        return None
    try:
        return compute(case, tensors)
    except Exception:
        if theirs is not None and theirs.error is not None:
            return None
        raise  # the fuzzer's own fault: normkit computes, and nobody looks at what


_LOST = Finding("state", "dispatch keys", "torch's autograd stays switched off after the call", 4)


def is_lost() -> bool:
    """Whether the thread's dispatch keys are no longer what they were, for which there is no remedy."""
    excluded, keys = torch._C._dispatch_tls_is_dispatch_key_excluded, torch._C.DispatchKey
    return (
        excluded(keys.AutogradCPU)
        or excluded(keys.ADInplaceOrView)
        or not torch.zeros(1).requires_grad_().neg().requires_grad
    )


def restore() -> str:
    """Put the process back as it was; returns what was not."""
    found = []
    if torch.get_default_dtype() != torch.float32:
        found.append("default dtype")
        torch.set_default_dtype(torch.float32)
    if torch._C._len_torch_dispatch_stack():
        found.append("dispatch mode")
        while torch._C._len_torch_dispatch_stack():
            torch._C._pop_torch_dispatch_stack()
    if not torch.is_grad_enabled():
        found.append("grad mode")
        torch.set_grad_enabled(True)
    if torch._C._functorch.peek_interpreter_stack() is not None:
        found.append("transform")
    if _torch.saved_tensors_hooks_top() is not None:
        found.append("saved tensor hooks")
    torch.set_num_threads(1)
    torch._C._set_deterministic_algorithms(False)
    return ", ".join(found)
