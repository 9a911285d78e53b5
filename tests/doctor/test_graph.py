"""Norms of exported graphs: read by the names that they had, judged by the rules of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.doctor.examples import images, small_net
from normkit.doctor.graph import norms_of
from normkit.doctor.state import of_model

# torch's own, of copying a graph
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (images()[0],)).module()


def keys(model: nn.Module, batches: Any = None, **options: Any) -> dict[str, str]:
    return {finding.key: finding.severity for finding in nk.diagnose(model, batches, **options).findings}


@pytest.mark.parametrize(
    "lowered",
    [lambda program: program, lambda program: program.run_decompositions({})],
    ids=["as exported", "decomposed"],
)
@pytest.mark.parametrize("training", [False, True])
def test_a_call_has_the_layers_name_and_values(lowered: Callable[[Any], Any], training: bool) -> None:
    model = small_net().train(training)
    model[4].eps, model[4].momentum = 1e-3, 0.3
    expected = {norm.name: norm for norm in of_model(model).norms}
    found = of_model(lowered(torch.export.export(model, (images()[0],))).module())
    assert [norm.name for norm in found.norms] == ["1", "4"]
    for norm in found.norms:
        layer = expected[norm.name]
        assert (norm.eps, norm.momentum, norm.graph) == (layer.eps, layer.momentum, training)
        for name in ("mean", "var", "weight", "bias"):
            assert torch.equal(getattr(norm, name), getattr(layer, name))


def test_a_healthy_export_is_healthy_and_runs() -> None:
    assert set(keys(exported(small_net()), images()).values()) == {"note"}


def test_the_rules_of_a_state_see_a_graph() -> None:
    model = small_net()
    model[1].running_var[0], model[4].running_var[2] = -1, float("nan")
    assert keys(exported(model), select=["NK1"]) == {"NK107 1": "error", "NK108 4": "error"}


def test_a_graph_in_training_mode_is_a_warning_and_one_that_is_not_folded_a_note() -> None:
    assert keys(exported(small_net().train()), select=["NK503"]) == {"NK503 1": "warning", "NK503 4": "warning"}
    assert keys(exported(small_net()), select=["NK503"]) == {"NK503 1": "note", "NK503 4": "note"}
    assert keys(exported(nk.fold(small_net(), images()[0]))) == {}


def test_compare_tells_that_a_swap_has_reset_eps_and_momentum() -> None:
    model = small_net()
    model[4].eps, model[4].momentum = 1e-3, 0.03
    graph = exported(model)
    assert nk.compare(model, graph).same
    for node in graph.graph.nodes:  # what a train/eval swap leaves
        if str(node.target) == "aten.batch_norm.default":
            node.args = (*node.args[:6], 0.1, 1e-5, *node.args[8:])
        if str(node.target) == "aten._native_batch_norm_legit_no_training.default":  # that of torch 2.4
            node.args = (*node.args[:5], 0.1, 1e-5)
    graph.recompile()
    assert nk.compare(model, graph)["4"].settings == ("eps 0.001 -> 1e-05", "momentum 0.03 -> 0.1")


def test_a_model_without_graphs_has_none() -> None:
    assert list(norms_of(small_net())) == []
    assert list(norms_of(torch.fx.symbolic_trace(small_net()))) == []  # modules, which are read as such
