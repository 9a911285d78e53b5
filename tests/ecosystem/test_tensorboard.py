"""TensorBoard's graph of a model with our layers has the nodes that torch's has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.ecosystem.nets import OURS, images, net

pytestmark = pytest.mark.filterwarnings("ignore")  # add_graph traces with torch.jit; tensorboard's own deprecations

ARGUMENTS = ("prim::Constant", "prim::ListConstruct")  # which a trace shares between operations as it happens
NUMBER = re.compile(r"\d+$")  # of a value in the trace


def nodes(model: nn.Module, folder: Path) -> list[tuple[str, str, list[Any]]]:
    """(name, operation, output shapes) of every node, as TensorBoard reads them from the file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_graph(model.eval(), images())
        for name, parameter in model.named_parameters():
            writer.add_histogram(name, parameter)
    graph = EventAccumulator(str(folder)).Reload().Graph()
    return sorted(
        (NUMBER.sub("", node.name), node.op, str(node.attr["_output_shapes"]))
        for node in graph.node
        if node.op not in ARGUMENTS
    )


@pytest.mark.parametrize("name", OURS)
def test_the_graph_has_the_nodes_of_torchs(name: str, tmp_path: Path) -> None:
    found, expected = nodes(OURS[name](), tmp_path / "ours"), nodes(net(nn), tmp_path / "torch")
    assert found == expected
    assert any("BatchNorm2d[bn1]" in name for name, _, _ in expected)
