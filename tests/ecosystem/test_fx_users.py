"""What stands on torch.fx: feature extractors, quantization, fusion of convolutions and batch norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import normkit as nk
from tests.ecosystem.nets import OURS, images, net

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated, in favour of another package


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", OURS)
def test_torchvisions_feature_extractor_finds_every_norm(name: str, training: bool) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model, theirs = OURS[name]().train(training), net(nn).train(training)
    assert get_graph_node_names(model) == get_graph_node_names(theirs)
    wanted = ["bn1", "bn2", "group", "instance", "layer", "rms", "head"]
    found, expected = (create_feature_extractor(m, wanted)(images()) for m in (model, theirs))
    torch.testing.assert_close(found, expected)


def quantized(model: nn.Module, training: bool) -> tuple[fx.GraphModule, Tensor]:
    """A model prepared for quantization, calibrated or trained by a step; and what it gives when quantized."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

    torch.manual_seed(0)
    if training:
        prepared = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping("onednn"), (images(),))
    else:
        prepared = prepare_fx(model.eval(), get_default_qconfig_mapping("onednn"), (images(),))
    prepared(images())
    return prepared, convert_fx(prepared.eval())(images())


@pytest.mark.parametrize("training", [True, False], ids=["aware", "after"])
@pytest.mark.parametrize("name", OURS)
def test_quantization_takes_our_layers_and_torchs_back(name: str, training: bool) -> None:
    """Ours stay layers of their own beside the convolutions; turned back, the whole is fused as torch's is."""
    theirs, expected = quantized(net(nn), training)
    ours, found = quantized(OURS[name](), training)
    assert type(ours.get_submodule("bn1")) is nk.BatchNorm2d
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()  # 8 bits, at other places
    back, same = quantized(nk.convert(OURS[name](), "torch"), training)
    assert [str(node) for node in back.graph.nodes] == [str(node) for node in theirs.graph.nodes]
    torch.testing.assert_close(same, expected)


@pytest.mark.parametrize("name", OURS)
def test_fx_fusion_never_drops_a_norm(name: str) -> None:
    from torch.fx.experimental.optimization import fuse

    model, x = OURS[name]().eval(), images()
    fused, expected = fuse(model), fuse(net(nn).eval())
    torch.testing.assert_close(fused(x), expected(x), rtol=1e-4, atol=1e-5)
