"""Flop counters see in our layers what they see in torch's: PyTorch's own, and fvcore's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.ecosystem.nets import OURS, images, net


def counted(model: nn.Module, training: bool) -> dict[str, dict[str, int]]:
    """Flops by module and operation."""
    model.train(training)
    with FlopCounterMode(display=False) as counter:
        y = model(images())
        if training:
            y.sum().backward()
    return {
        module: {str(operation): flops for operation, flops in counts.items()}
        for module, counts in counter.get_flop_counts().items()
    }


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", OURS)
def test_torchs_counter_gives_each_module_the_same(name: str, training: bool) -> None:
    found, expected = counted(OURS[name](), training), counted(net(nn), training)
    assert found == expected
    assert sum(expected["Global"].values()) > 0


class Own(nn.Module):
    """A module of a user's, in the place of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def total(model: nn.Module) -> int:
    """Flops of a compiled model, forward and backward."""
    torch.compiler.reset()
    model.compile(backend="aot_eager")
    with FlopCounterMode(display=False) as counter:
        model(images()).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", OURS)
def test_a_compiled_model_counts_the_same(name: str) -> None:
    other = net(nn)
    other.rms = Own()
    try:
        total(other)
    except torch._dynamo.exc.BackendCompilerFailed:  # of torch 2.4
        pytest.skip(f"torch {torch.__version__} counts no compiled model with modules that are not its own")
    assert total(OURS[name]()) == total(net(nn)) > 0


@pytest.mark.filterwarnings("ignore")  # fvcore traces with torch.jit, which torch has deprecated
@pytest.mark.parametrize("name", OURS)
def test_fvcore_counts_the_same_by_module_and_operation(name: str) -> None:
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # it lists what it does not count

    def analysis(kind: Any, model: nn.Module) -> tuple[Any, Any]:
        found = kind(model.eval(), images())
        return found.by_module_and_operator(), found.unsupported_ops()

    for kind in (FlopCountAnalysis, ActivationCountAnalysis):
        assert analysis(kind, OURS[name]()) == analysis(kind, net(nn))
