"""Weight decay reaches weights, and neither norms nor biases."""

import pytest
import torch
from torch import nn

import normkit.nn as layers
from normkit.surgery import parameter_groups


class ForeignRMSNorm(nn.Module):
    """As model libraries write it: no subclass of anything."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


def names(model, **options):
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[of[id(parameter)] for parameter in group["params"]] for group in parameter_groups(model, **options)]


NORMS = {
    "batch": nn.BatchNorm2d(4),
    "group": nn.GroupNorm(2, 4),
    "layer": nn.LayerNorm(4),
    "rms": nn.RMSNorm(4),
    "instance": nn.InstanceNorm1d(4, affine=True),
    "ours": layers.GroupNorm(2, 4),
    "foreign": ForeignRMSNorm(),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_and_biases_have_no_decay(norm):
    decayed, free = names(nn.Sequential(nn.Linear(3, 4), norm, nn.MultiheadAttention(4, 1)))
    assert decayed == ["0.weight", "2.in_proj_weight", "2.out_proj.weight"]
    assert {"0.bias", "1.weight", "2.in_proj_bias", "2.out_proj.bias"} <= set(free)


def test_every_trained_parameter_is_there_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    decayed, free = names(model)
    assert decayed == ["0.weight"]
    assert free == ["0.bias", "1.weight", "2.bias"]


def test_an_optimizer_applies_the_decay_where_it_should():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=0.5), lr=1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * (0.5 if name == "0.weight" else 1.0)), name


def test_a_model_without_norms_or_without_weights_still_has_two_groups():
    assert names(nn.BatchNorm1d(4)) == [[], ["weight", "bias"]]
    torch.optim.SGD(parameter_groups(nn.BatchNorm1d(4)), lr=1.0)
    with pytest.raises(ValueError, match="weight_decay must be at least 0"):
        parameter_groups(nn.Linear(2, 2), weight_decay=-1.0)
