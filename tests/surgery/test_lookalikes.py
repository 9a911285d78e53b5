"""What a layer is, is told by what it holds and does, not by what it is called."""

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.model.families import family
from normkit.surgery import accelerate, changes, convert, fold, freeze, unfreeze

from .lookalikes import (
    DetrLikeFrozenBatchNorm2d,
    EomtLikeLayerNorm2d,
    FixedAffine2d,
    FrozenBN,
    LayerNorm2dByNameOnly,
    OwnFixedAffine2d,
    RmsLikeNorm,
    StaysInEvaluation2d,
    Still2d,
)
from .models import close, outputs, randomized, same_state, state

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
FROZEN = [DetrLikeFrozenBatchNorm2d, FrozenBN, Still2d, StaysInEvaluation2d]
frozen = pytest.mark.parametrize("kind", FROZEN, ids=lambda kind: kind.__name__)


def net(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomized(nn.Sequential(nn.Conv2d(3, 4, 3), kind(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))


@frozen
def test_frozen_layers_are_recognized_and_others_are_not(kind):
    assert family(kind(4)) == "frozen"
    assert family(FixedAffine2d(4)) == family(OwnFixedAffine2d(4)) == "batch"
    assert family(nk.FrozenBatchNorm2d(4)) == "frozen"
    assert family(nn.BatchNorm2d(4)) == "batch"


@frozen
def test_recalibrate_and_adapt_leave_them_alone(kind):
    model = net(kind).eval()
    before = state(model[1])
    report = nk.recalibrate(model, [X])
    assert (report["1"].reason, report["4"].action) == ("frozen", "recalibrated")
    same_state(model[1], before)
    assert nk.adapt(model).names == ("4",)


def test_a_batch_norm_whose_affine_is_fixed_is_recalibrated():
    for kind in (FixedAffine2d, OwnFixedAffine2d):
        assert nk.recalibrate(net(kind), [X])["1"].action == "recalibrated"


@frozen
def test_fold_folds_them(kind):
    model = net(kind).eval()
    result = fold(model, X)
    assert len(changes(result).replaced) == 2
    close(outputs(result, X), outputs(model, X), 2e-6)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@frozen
def test_unfreeze_makes_a_batch_norm_of_them_and_freeze_one_of_ours(kind, mode):
    model = net(kind).train(mode)
    back = unfreeze(model)
    assert type(back[1]) is nk.BatchNorm2d
    assert (back[1].eps, back[1].training) == (1e-3, mode)
    assert all(isinstance(parameter, nn.Parameter) for parameter in (back[1].weight, back[1].bias))
    ours = freeze(model)
    assert type(ours[1]) is nk.FrozenBatchNorm2d
    for result in (back, ours):
        close(outputs(result.eval(), X), outputs(model.eval(), X), 2e-6)


@frozen
def test_accelerate_and_convert_list_them(kind):
    model = net(kind)
    entry = changes(accelerate(model, X))["1"]
    if kind in (Still2d, StaysInEvaluation2d):  # they have a counter, and their weight is trained
        assert (entry.action, entry.reason) == ("kept", "FrozenBatchNorm2d has other parameters or another state_dict")
    else:
        assert entry.after == "FrozenBatchNorm2d"
    assert changes(convert(model, "group"))["1"].after == "GroupNorm"


def test_a_mode_that_stays_may_be_an_attribute_and_an_instance_norm_may_have_one():
    model = net(nn.BatchNorm2d).eval()
    model[1].train = lambda mode=True: None
    assert nk.recalibrate(model, [X])["1"].reason == "frozen"

    class Tracking(nn.InstanceNorm2d):
        def train(self, mode=True):
            return super().train(False)

    assert family(Tracking(4, track_running_stats=True)) == "frozen"


def test_the_way_back_from_accelerate_leaves_a_frozen_layer_of_somebody_else():
    for kind in FROZEN:
        model = net(kind).eval()
        back = convert(accelerate(model, X), "torch")
        assert type(back[1]) is kind
        assert type(unfreeze(accelerate(model, X))[1]) is nk.BatchNorm2d
        close(outputs(back.train(), X), outputs(model.train(), X), 0)


OPERATIONS = {
    "accelerate": lambda model: accelerate(model, X),
    "convert": lambda model: convert(model, "batch"),
    "fold": lambda model: fold(model.eval(), X),
    "freeze": freeze,
    "unfreeze": unfreeze,
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_norm_of_an_unknown_class_is_listed_and_kept(operation):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), RmsLikeNorm(7), nn.Flatten(), nn.Linear(196, 2))
    entry = changes(operation(model))["2"]
    assert (entry.action, entry.before) == ("kept", "RmsLikeNorm")
    assert entry.reason.startswith("RmsLikeNorm is a class of its own, and what it computes is not known")
    with pytest.raises(ValueError, match=r"got 1 of unknown classes, as 0 \(RmsLikeNorm\)"):
        operation(nn.Sequential(RmsLikeNorm(4)))


def test_a_layer_that_a_flag_freezes_is_recognized_when_the_flag_is_set():
    class Switched2d(nn.BatchNorm2d):
        fixed = False

        def forward(self, x):
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training and not self.fixed
            )

    layer = Switched2d(4)
    assert family(layer) == "batch"
    layer.fixed = True
    assert family(layer) == "frozen"
    layer.fixed = False
    assert family(layer.eval()) == "batch"


def test_recognizing_moves_no_random_numbers():
    class Drops(nn.BatchNorm2d):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), training=True)

    before = torch.get_rng_state()
    family(Drops(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 64])
def test_the_axis_of_a_layer_norm_is_seen_and_not_read_from_its_name(channels):
    if channels > 1:  # of one channel nothing is left over either axis
        assert family(EomtLikeLayerNorm2d(channels)) == "layer2d"
    assert family(LayerNorm2dByNameOnly(channels)) == "layer"


def test_a_layer_norm_over_channels_by_any_name_is_converted():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), EomtLikeLayerNorm2d(4, eps=1e-3)))
    result = convert(model, "layer")
    assert type(result[1]) is nk.LayerNorm2d
    close(outputs(result, X), outputs(model, X), 2e-6)
    assert type(convert(model, "batch")[1]) is nk.BatchNorm2d
