"""Freezing: nothing moves a frozen layer, and the way back restores everything."""

import copy
import io

import pytest
import torch
from torch import nn

import normkit.nn as layers
from normkit._torch import make_norm
from normkit.surgery import changes, convert, freeze, unfreeze

from .models import close, outputs, randomized, residual_net, same_state, state

INPUTS = {1: torch.randn(4, 3, 5), 2: torch.randn(4, 3, 5, 5), 3: torch.randn(4, 3, 2, 5, 5)}


def net(norm, spatial=2):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    return randomized(nn.Sequential(conv(3, 4, 1), norm, nn.ReLU()))


KINDS = {
    "1d": (lambda: nn.BatchNorm1d(4), 1),
    "2d": (lambda: nn.BatchNorm2d(4), 2),
    "3d": (lambda: nn.BatchNorm3d(4), 3),
    "sync": (lambda: nn.SyncBatchNorm(4), 2),
    "bias=False": (lambda: make_norm(nn.BatchNorm2d, 4, bias=False), 2),
    "affine=False": (lambda: nn.BatchNorm2d(4, affine=False), 2),
    "cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), 2),
    "ours": (lambda: layers.BatchNorm2d(4, activation="relu", momentum=0.3), 2),
    "ghost": (lambda: layers.GhostBatchNorm1d(4, virtual_batch_size=2), 1),
    "renorm": (lambda: layers.BatchRenorm3d(4, r_max=2.0), 3),
}


@pytest.mark.parametrize(("norm", "spatial"), KINDS.values(), ids=KINDS)
def test_a_frozen_layer_stands_still_in_training_and_comes_back_whole(norm, spatial):
    model, x = net(norm(), spatial), INPUTS[spatial]
    model[1].num_batches_tracked.fill_(11)
    before, shown, momentum = state(model), repr(model), model[1].momentum
    expected = outputs(model.eval(), x)

    frozen = freeze(model.train()).train()
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    close(outputs(frozen, x), expected, 2e-6)
    kept = {name: value.clone() for name, value in frozen[1].named_buffers()}
    for _ in range(3):
        frozen(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, kept[name]) for name, value in frozen[1].named_buffers())
    assert type(frozen[1]).__name__ == f"FrozenBatchNorm{spatial}d"

    back = unfreeze(freeze(model))
    same_state(back, before)
    assert repr(back) == shown
    assert back[1].momentum == momentum
    assert back[1].num_batches_tracked == 11
    assert type(back[1]) is type(model[1])


def test_in_place_the_same_parameter_objects_come_back_and_no_optimizer_moves_them_meanwhile():
    model = randomized(residual_net())
    parameters, before = list(model.parameters()), state(model)
    trained = [parameter.requires_grad_(index % 3 != 1).requires_grad for index, parameter in enumerate(parameters)]
    of_norms = [p for name, p in model.named_parameters() if "bn" in name or name.startswith("1.")]
    assert {p.requires_grad for p in of_norms} == {True, False}
    optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1, weight_decay=0.5)
    model(torch.randn(2, 3, 9, 9)).sum().backward()  # leaves gradients behind
    model.load_state_dict(before)
    frozen = freeze(model, inplace=True)
    assert frozen is model
    assert not any(p.requires_grad for p in of_norms)
    optimizer.step()
    norms = {name: value for name, value in before.items() if "bn" in name or name.startswith("1.")}
    unfreeze(model, inplace=True)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in norms.items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert [parameter.requires_grad for parameter in parameters] == trained


def test_the_mode_comes_back_or_follows_the_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).train()
    model[1].eval()
    assert [m.training for m in unfreeze(freeze(model))] == [True, False, True]
    assert [m.training for m in unfreeze(freeze(model).eval())] == [False, False, False]


@pytest.mark.parametrize("how", ["deepcopy", "save and load"])
def test_a_frozen_model_is_copied_and_saved_with_its_way_back(how):
    model = net(nn.BatchNorm2d(4, momentum=0.7))
    frozen = freeze(model)
    if how == "deepcopy":
        other = copy.deepcopy(frozen)
    else:
        file = io.BytesIO()
        torch.save(frozen, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    back = unfreeze(other, inplace=True)
    same_state(back, state(model))
    assert back[1].momentum == 0.7


def test_what_was_loaded_or_cast_while_frozen_is_there_on_the_way_back():
    model = net(nn.BatchNorm2d(4))
    other = net(nn.BatchNorm2d(4))
    randomized(other, seed=5)
    frozen = freeze(model)
    frozen.load_state_dict(freeze(other).state_dict())
    back = unfreeze(frozen.double())
    assert all(parameter.dtype == torch.float64 for parameter in back.parameters())
    assert back[1].running_mean.dtype == torch.float64
    assert torch.equal(back[1].weight, other[1].weight.double())
    assert torch.equal(back[1].running_var, other[1].running_var.double())


def test_hooks_and_sharing_survive_both_ways():
    norm, seen = nn.BatchNorm2d(4), []
    norm.register_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Sequential(norm))
    frozen = freeze(model, inplace=True)
    assert frozen[1] is frozen[2][0]
    frozen(INPUTS[2])
    unfreeze(frozen, inplace=True)
    assert model[1] is norm
    assert model[2][0] is norm
    model(INPUTS[2])
    assert seen == ["FrozenBatchNorm2d"] * 2 + ["BatchNorm2d"] * 2


def test_a_frozen_layer_without_a_past_becomes_a_trainable_batch_norm():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), layers.FrozenBatchNorm2d(4)))
    back = unfreeze(model)
    assert type(back[1]) is layers.BatchNorm2d
    assert back[1].weight.requires_grad
    close(outputs(back.eval(), INPUTS[2]), outputs(model, INPUTS[2]), 2e-6)


def test_converting_a_frozen_model_starts_from_what_it_was():
    model = net(nn.BatchNorm2d(4, momentum=0.7))
    model[1].num_batches_tracked.fill_(3)
    result = convert(freeze(model), "torch")
    same_state(result, state(model))
    assert result[1].momentum == 0.7
    assert result[1].weight.requires_grad


def test_other_norms_are_kept_with_the_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    frozen = freeze(model)
    assert [entry.action for entry in changes(frozen)] == ["kept", "kept"]
    assert all("no running statistics" in entry.reason for entry in changes(frozen))
    assert {entry.reason for entry in changes(unfreeze(frozen)).of("unfreeze")} == {"it is not frozen"}
    with pytest.raises(ValueError, match="none"):
        freeze(nn.Linear(2, 2))
