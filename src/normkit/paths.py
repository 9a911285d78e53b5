"""Which path typical calls take on this machine, and why: `choose` asked for each, in each way of calling.

The calls are really made so: inside of torch.compile, torch.export and torch.func.vmap `choose` sees what it would see
in a user's program. Nothing is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._activation import NONE
from ._operands import Operands
from .functional.batch_norm import BatchNormSpec
from .functional.batch_renorm import Limits, corrected
from .functional.choose import choose
from .functional.ghost_batch_norm import sliced
from .functional.group_norm import GroupNormSpec
from .functional.instance_norm import InstanceNormSpec
from .functional.layer_norm import LayerNormSpec
from .functional.rms_norm import RMSNormSpec
from .functional.running import Running
from .functional.spec import NormSpec
from .model.table import Table

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CHANNELS, EPS = 4, 1e-5


class Row(NamedTuple):
    """One typical call, or several alike: norm and tensors in words, how it is called, the path and the reason."""

    norm: str
    tensors: str
    called: str
    path: str
    reason: str


class _Call(NamedTuple):
    norm: str
    tensors: str
    spec: NormSpec
    operands: Operands


Answer = tuple[str, str]


def rows(device: str = "cpu") -> list[Row]:
    """The table: norm x dtype x layout x way of calling on one device, with equal neighbours as one row."""
    calls = _calls(device)
    found = [
        Row(call.norm, call.tensors, called, *answer)
        for called, ask in _WAYS.items()
        for call, answer in zip(calls, _answers(ask, calls), strict=True)
    ]
    order = {norm: i for i, norm in enumerate(dict.fromkeys(call.norm for call in calls))}
    found.sort(key=lambda row: order[row.norm])
    return [_merged(list(alike)) for _, alike in groupby(found, key=lambda row: (row.norm, *row[2:]))]


def table() -> Table:
    """The rows of every device that is here."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = tuple(
        (row.norm, row.called, row.path, row.reason, row.tensors) for device in devices for row in rows(device)
    )
    return Table(("norm", "called", "path", "why", "tensors"), found, (True,) * len(found))


def _answers(ask: Callable[[Sequence[_Call]], list[Answer]], calls: Sequence[_Call]) -> list[Answer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations are not what is asked for
        try:
            return ask(calls)
        except Exception as error:  # a torch that cannot compile or export here says so in its row
            return [("-", f"does not run here: {type(error).__name__}")] * len(calls)


def _merged(alike: Sequence[Row]) -> Row:
    each = [row.tensors for row in alike]
    device = each[0].split()[0]
    layouts = f"{device} float32/64, bfloat16, float16; contiguous, channels_last"
    return alike[0]._replace(tensors=layouts if len(each) == 2 * len(DTYPES) else "; ".join(each))


def _calls(device: str) -> list[_Call]:
    calls = []
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.empty(4, CHANNELS, 3, 3, dtype=dtype, device=device).contiguous(memory_format=layout)
            tensors = f"{device} {dtype} {layout}".replace("torch.", "").removesuffix("_format")
            mask = torch.empty(4, 1, 3, 3, dtype=torch.bool, device=device)
            calls += [_Call(name, tensors, spec, Operands(x)) for name, spec in _norms(x).items()]
            masked = {f"{name}, masked": _norms(x)[name] for name in ("batch norm", "group norm", "ghost batch norm")}
            calls += [_Call(name, tensors, spec, Operands(x, mask=mask)) for name, spec in masked.items()]
    return calls


def _norms(x: Tensor) -> dict[str, NormSpec]:
    running = Running(torch.zeros(CHANNELS, device=x.device), torch.ones(CHANNELS, device=x.device), None, 0.1)
    batch = BatchNormSpec(NONE, running, True, EPS)
    return {
        "batch norm": batch,
        "batch norm, evaluation": BatchNormSpec(NONE, running, False, EPS),
        "group norm": GroupNormSpec(NONE, 2, EPS),
        "instance norm": InstanceNormSpec(NONE, None, True, EPS),
        "layer norm": LayerNormSpec(NONE, (3,), EPS),
        "RMS norm": RMSNormSpec(NONE, (3,), EPS),
        "ghost batch norm": sliced(batch, x, 2),
        "batch renorm": corrected(batch, Limits(3.0, 5.0), None),
    }


def _eager(calls: Sequence[_Call]) -> list[Answer]:
    return [choose(call.spec, call.operands) for call in calls]


def _compiled(calls: Sequence[_Call]) -> list[Answer]:
    def ask(operands: list[Operands]) -> list[Answer]:
        return [choose(call.spec, tensors) for call, tensors in zip(calls, operands, strict=True)]

    return torch.compile(ask, backend="eager", fullgraph=True)([call.operands for call in calls])


def _exported(calls: Sequence[_Call]) -> list[Answer]:
    seen: list[list[Answer]] = []
    torch.export.export(_Probe(calls, seen), (torch.empty(1),), strict=False)
    return seen[0]


def _transformed(calls: Sequence[_Call]) -> list[Answer]:
    seen: list[list[Answer]] = []
    torch.func.vmap(_Probe(calls, seen))(torch.empty(1))
    return seen[0]


class _Probe(nn.Module):
    """Asks in its forward, wherever that runs."""

    def __init__(self, calls: Sequence[_Call], seen: list[list[Answer]]) -> None:
        super().__init__()
        self.ask = lambda: seen.append(_eager(calls))

    def forward(self, x: Tensor) -> Tensor:
        self.ask()
        return x + 1


_WAYS: dict[str, Callable[[Sequence[_Call]], list[Answer]]] = {
    "eager": _eager, "torch.compile": _compiled, "torch.export": _exported, "torch.func": _transformed,
}  # fmt: skip
