"""Flop counters see in our layers what they see in torch's: PyTorch's own, and fvcore's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
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


@pytest.mark.parametrize("name", OURS)
def test_a_compiled_model_counts_the_same(name: str) -> None:
    def total(model: nn.Module) -> int:
        torch.compiler.reset()
        model.compile(backend="aot_eager")
        with FlopCounterMode(display=False) as counter:
            model(images()).sum().backward()
        return counter.get_total_flops()

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
