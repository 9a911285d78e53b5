"""A finding as a script that needs torch and normkit alone."""

from __future__ import annotations

import ast
import builtins
import inspect
from types import ModuleType

from . import calls, tricks, values
from .case import Case, features
from .finding import Finding
from .program import render, render_make

_IMPORTS = """\
import contextlib
import threading
import warnings

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import normkit as nk

warnings.simplefilter("ignore")
torch.set_num_threads(1)
"""

_SHOW = """
def show(name, program):
    print(name, end=": ", flush=True)
    try:
        found = program(**make())
    except Exception as error:
        print(type(error).__name__, str(error).split("Exception raised from")[0])
        return
    at = {at!r}
    if at is not None and at[0] in found and not found[at[0]].is_meta:
        print(at[0], list(at[1]), "is", float(plain(found[at[0]])[at[1]]))
    else:
        print({{key: (type(v).__name__, tuple(v.shape), v.stride() if v.layout is torch.strided else v.layout, v.dtype,
                     v.device.type) if v is not None else None for key, v in found.items()}})
"""


def script(number: int, seed: int, case: Case, finding: Finding) -> str:
    """The text of the script."""
    programs = [text for lib in ("torch", "normkit") if (text := render(case, lib)) is not None]
    show = _SHOW.format(at=finding.at)
    body = "\n\n".join([render_make(case), *programs]) + "\n" + show
    parts = [
        f'"""{finding.kind}: {finding.what}\n{finding.detail}\n\nseed {seed}, case {number}, shrunk: '
        f'{", ".join(sorted(features(case))) or "nothing unusual"}; shape {case.shape}\n"""',
        "from __future__ import annotations\n",
        _IMPORTS,
        *_helpers(body),
        body,
    ]
    calls_ = [f'show("{lib}", with_{lib})' for lib in ("torch", "normkit") if f"def with_{lib}(" in body]
    if finding.expected is not None:
        calls_.append(f'print("float64:", float("{finding.expected!r}"))')
    return "\n\n".join(parts) + "\n" + "\n".join(calls_) + "\n"


def _helpers(text: str) -> list[str]:
    """The functions and classes of the fuzzer's own files that a text uses, and those that they use."""
    own: dict[str, str] = {}
    for module in (values, tricks, calls):
        own |= _definitions(module)
    found: list[str] = []
    wanted = _names(text)
    while wanted:
        name = sorted(wanted)[0]
        wanted.discard(name)
        if name in own and name not in found:
            found.append(name)
            wanted |= _names(own[name])
    return [own[name] for name in own if name in found]


def _definitions(module: ModuleType) -> dict[str, str]:
    source = inspect.getsource(module)
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            lines = source.splitlines()
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def _names(text: str) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)} - set(dir(builtins))
