"""The keys of a model's normalization layers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import normkit as nk
from tests.surgery.foreign import torchvision_model
from tests.surgery.lookalikes import FrozenBN, RmsLikeNorm


def test_the_keys_are_those_of_norms_of_every_kind_and_no_others():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 1),
            "bn": nk.BatchNorm2d(4, activation=nn.PReLU(4)),
            "frozen": FrozenBN(4),
            "rms": RmsLikeNorm(4),
            "group": nn.Sequential(nn.GroupNorm(2, 4), nn.Linear(4, 4)),
            "plain": nn.InstanceNorm2d(4),
            "weighted": parametrizations.weight_norm(nn.LayerNorm(4)),
            "linear": parametrizations.weight_norm(nn.Linear(4, 4)),
        }
    )
    wanted = [
        *(f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"frozen.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
        "rms.weight",
        "group.0.weight",
        "group.0.bias",
        "weighted.bias",
        "weighted.parametrizations.weight.original0",
        "weighted.parametrizations.weight.original1",
    ]
    assert nk.norm_keys(model) == wanted
    assert nk.norm_keys(nn.ModuleDict({"module": model})) == [f"module.{key}" for key in wanted]


def test_a_shared_layer_has_its_keys_under_each_name_and_a_model_may_be_a_norm():
    norm = nn.LayerNorm(4)
    assert nk.norm_keys(nn.Sequential(norm, norm)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert nk.norm_keys(norm) == ["weight", "bias"]
    assert nk.norm_keys(nn.Linear(2, 2)) == []
    with pytest.raises(TypeError, match="expected a model"):
        nk.norm_keys(norm.state_dict())


def test_a_resnets_keys_are_unaltered_by_freezing():
    model = torchvision_model("resnet18")
    keys = nk.norm_keys(model)
    assert len(keys) == 5 * 20
    assert nk.norm_keys(nk.freeze(model)) == keys
    rest = [key for key in model.state_dict() if key not in keys]
    assert all(".conv" in f".{key}" or "downsample.0" in key or key.startswith("fc.") for key in rest)


def test_fedbn_a_client_keeps_its_norms():
    model, received = (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2))
    nn.init.constant_(received[1].weight, 5.0)
    own = set(nk.norm_keys(model))
    shared = {key: value for key, value in received.state_dict().items() if key not in own}
    model.load_state_dict(shared, strict=False)
    assert torch.equal(model[0].weight, received[0].weight)
    assert (model[1].weight == 1).all()
