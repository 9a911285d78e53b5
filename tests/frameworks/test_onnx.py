"""ONNX: nodes of a graph made with the onnx package, and a model that torch exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import normkit as nk
from tests.frameworks.nets import Net, arrays, images, normalized
from tests.test_export import why_not_onnx


def graph(nodes: list[Any], held: dict[str, np.ndarray]) -> Any:
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [value("x", TensorProto.FLOAT, ["n", 6, 5, 5])],
            [value("y", TensorProto.FLOAT, ["n", 6, 5, 5])],
            [numpy_helper.from_array(array, name) for name, array in held.items()],
        )
    )


def batch_norm(**attributes: float) -> Any:
    a = arrays(1)
    names = {"gamma": "bn1.weight", "beta": "bn1.bias", "mean": "bn1.running_mean", "var": "bn1.running_var"}
    node = helper.make_node("BatchNormalization", ["x", *names.values()], ["y"], **attributes)
    return graph([node], {theirs: a[mine] for mine, theirs in names.items()})


def test_a_batch_norm_with_its_attributes() -> None:
    model, x = Net(), images()
    layer = nk.load_norm_state(model, batch_norm(epsilon=1e-3, momentum=0.75), "onnx")["bn1"]
    torch.testing.assert_close(model.eval().bn1(x).double(), normalized(x, arrays(1), 1e-3), rtol=1e-5, atol=1e-5)
    assert (model.bn1.eps, model.bn1.momentum) == (1e-3, 0.25)
    assert "eps as the state says" in layer.converted


def test_absent_attributes_are_the_operators_defaults() -> None:
    model = Net()
    nk.load_norm_state(model, batch_norm(), "onnx")
    assert (model.bn1.eps, model.bn1.momentum) == (1e-5, pytest.approx(0.1))


def test_a_file_and_values_of_constant_nodes(tmp_path: Path) -> None:
    proto = batch_norm()
    held = proto.graph.initializer.pop(0)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["held"], value=held))
    proto.graph.node.insert(1, helper.make_node("Identity", ["held"], [held.name]))
    onnx.save(proto, tmp_path / "net.onnx")
    model = Net()
    nk.load_norm_state(model, tmp_path / "net.onnx", "onnx")
    assert torch.equal(model.bn1.weight, torch.from_numpy(arrays(1)["gamma"]))


def test_parameters_that_are_computed_are_not_taken() -> None:
    proto = batch_norm()
    proto.graph.node.insert(0, helper.make_node("Abs", ["bn1.running_var"], ["positive"]))
    proto.graph.node[1].input[4] = "positive"
    with pytest.raises(ValueError, match="has no norm that is known"):
        nk.load_norm_state(Net(), proto, "onnx")


def test_layer_norm_and_rms_norm() -> None:
    a = arrays(1)
    layer_norm = helper.make_node("LayerNormalization", ["x", "ln.weight", "ln.bias"], ["z"], epsilon=1e-6)
    rms = helper.make_node("RMSNormalization", ["z", "rms.weight"], ["y"])
    proto = graph([layer_norm, rms], {"ln.weight": a["gamma"], "ln.bias": a["beta"], "rms.weight": a["mean"]})
    model = nn.ModuleDict({"ln": nn.LayerNorm(6), "rms": nk.RMSNorm(6)})
    nk.load_norm_state(model, proto, "onnx")
    assert torch.equal(model.ln.bias, torch.from_numpy(a["beta"]))
    assert torch.equal(model.rms.weight, torch.from_numpy(a["mean"]))
    assert (model.ln.eps, model.rms.eps) == (1e-6, 1e-5)


def test_a_node_of_another_kind_is_refused() -> None:
    """Its arrays fit; what is computed does not."""
    a = arrays(1)
    names = ["x", "norm.weight", "norm.bias"]
    held = {"norm.weight": a["gamma"], "norm.bias": a["beta"]}
    groups = helper.make_node("GroupNormalization", names, ["y"], num_groups=3)
    for node, mine in (
        (helper.make_node("LayerNormalization", names, ["y"]), nn.GroupNorm(2, 6)),
        (helper.make_node("InstanceNormalization", names, ["y"]), nn.GroupNorm(2, 6)),
        (groups, nn.GroupNorm(2, 6)),
        (groups, nn.InstanceNorm2d(6, affine=True)),
    ):
        with pytest.raises(ValueError, match=r"is a group norm|normalizes [26] groups of channels"):
            nk.load_norm_state(nn.ModuleDict({"norm": mine}), graph([node], held), "onnx")
    nk.load_norm_state(nn.ModuleDict({"norm": nn.GroupNorm(3, 6)}), graph([groups], held), "onnx")
    instance = helper.make_node("InstanceNormalization", names, ["y"])
    nk.load_norm_state(nn.ModuleDict({"norm": nn.GroupNorm(6, 6)}), graph([instance], held), "onnx")


def test_what_keeps_statistics_evaluates_by_them_whatever_its_class() -> None:
    mine, x = nn.ModuleDict({"bn1": nn.InstanceNorm2d(6, affine=True, track_running_stats=True)}), images()
    nk.load_norm_state(mine, batch_norm(epsilon=1e-3), "onnx")
    torch.testing.assert_close(mine.eval().bn1(x).double(), normalized(x, arrays(1), 1e-3), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter's, about itself
def test_a_model_that_torch_exported_comes_back_by_its_names() -> None:
    if (reason := why_not_onnx(True)) is not None:
        pytest.skip(reason)
    theirs = nn.ModuleDict(
        {"norms": nn.Sequential(nn.GELU(), nn.BatchNorm2d(6, eps=3e-4), nn.GELU(), nn.BatchNorm2d(6))}
    )
    g = torch.Generator().manual_seed(3)
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.5)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = theirs["norms"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norms(x)

    program = torch.onnx.export(Whole().eval(), (images(),), dynamo=True, verbose=False)
    assert program is not None
    mine = nn.ModuleDict(
        {
            "norms": nk.convert(
                nn.Sequential(*(type(m)(6) if isinstance(m, nn.BatchNorm2d) else m for m in theirs["norms"])), "batch"
            )
        }
    )
    report = nk.load_norm_state(mine, program.model_proto, "onnx")
    assert len(report) == 2
    x = images(1)
    torch.testing.assert_close(mine.eval()["norms"](x), theirs.eval()["norms"](x))
