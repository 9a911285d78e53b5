"""Every option of a layer counts on every path, in training and evaluation: against formulas in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.nn.formulas import CASES, Case

# id -> (the path, whether a mask is given)
PATHS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], bool]] = {
    "as it comes": (nullcontext, False),  # one call of the core
    "kernel by kernel": (nk.recompute_outputs, False),  # somebody listens: Python calls the core's kernels
    "composed": (partial(nk.backend, "composed"), False),
    "aten": (partial(nk.backend, "aten"), False),
    "masked": (nullcontext, True),
    "masked, composed": (partial(nk.backend, "composed"), True),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def leaves(layer: nn.Module, x: Tensor, residual: Tensor | None) -> list[Tensor]:
    return [x, *layer.parameters(), *([] if residual is None else [residual])]


def gradients(y: Tensor, wanted: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad(y, wanted, dy, create_graph=create_graph, retain_graph=True))


@pytest.mark.parametrize(("path", "masked"), PATHS.values(), ids=PATHS)
@each_mode
@each_case
def test_a_layer_computes_what_its_options_say(case: Case, training: bool, path: Any, masked: bool) -> None:
    """Output, first derivatives (by kernels, and with a graph), and the statistics that one call moves."""
    if path is PATHS["aten"][0] and training and not case.has_aten:
        pytest.skip("PyTorch has no such kernel")
    layer, (x, residual, mask) = case.layer().train(training), case.draw()
    wanted = leaves(layer, x, residual)
    keep = case.beside(mask if masked else torch.ones_like(mask))
    expected, moved = case.output(layer, x, residual, keep), case.moved(layer, x, keep)
    truth = gradients(expected, wanted)
    given = {"mask": mask} if masked else {}
    with path():
        y = layer(x, **given) if residual is None else layer(x, residual=residual, **given)
        for found in (gradients(y, wanted), gradients(y, wanted, create_graph=True)):
            for ours, theirs in zip((y, *found), (expected, *truth), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for name, value in zip(("running_mean", "running_var"), moved, strict=False):
        torch.testing.assert_close(getattr(layer, name), value)


class Side(nn.Module):
    """All layers beside each other, so that one program holds them all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(case.layer() for case in CASES.values())

    def forward(self, x: Tensor, residual: Tensor) -> list[Tensor]:
        pairs = zip(CASES.values(), self.layers, strict=True)
        return [layer(x, residual=residual) if case.takes_residual else layer(x) for case, layer in pairs]


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, *inputs: Tensor) -> Callable[..., list[Tensor]]:
    return torch.compile(model, backend="aot_eager", fullgraph=True)  # type: ignore[no-any-return]  # a module


def exported(model: nn.Module, *inputs: Tensor) -> Callable[..., list[Tensor]]:
    return torch.export.export(model, inputs).module()  # type: ignore[return-value]  # a module


@pytest.mark.filterwarnings("ignore")  # Dynamo and the exporter warn about themselves
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", [compiled, exported])
@each_mode
def test_a_program_computes_what_its_layers_options_say(training: bool, how: Callable[..., Any]) -> None:
    """Eager layers are held to the formulas above."""
    eager = Side().train(training)
    other = copy.deepcopy(eager)
    x, residual, _ = CASES["batch"].draw()
    assert residual is not None
    program = how(other, x.detach(), residual.detach())
    with torch.no_grad():
        for step in range(2):  # the second by what the first has moved
            results = zip(CASES, program(x + step, residual), eager(x + step, residual), strict=True)
            for name, ours, theirs in results:
                assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9), name
    state = dict((program if how is exported else other).named_buffers())
    for name, value in eager.named_buffers():
        if name not in state and torch.__version__ < (2, 8):  # type: ignore[operator]
            continue  # the exporters of 2.4 and 2.6 leave out what the program does not read of layers not torch's own
        torch.testing.assert_close(state[name], value)
