"""Converting: the target's class, the source's values, one entry a layer, and nothing raised for what must stay."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import normkit.nn as layers
from normkit.surgery import changes, convert, freeze

from .models import close, outputs, randomized, residual_net, same_state, state

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
BATCH = {"batch": "BatchNorm2d", "sync": "SyncBatchNorm", "ghost": "GhostBatchNorm2d", "renorm": "BatchRenorm2d"}
OTHERS = {"group": "GroupNorm", "layer": "LayerNorm2d", "instance": "InstanceNorm2d"}
NAMES = ["1", "3.bn1", "3.bn2", "4.bn1", "4.bn2"]


def net():
    return randomized(residual_net())


def kinds(model):
    return {type(module).__name__ for name, module in model.named_modules() if name in NAMES}


@pytest.mark.parametrize(("target", "name"), (BATCH | OTHERS).items(), ids=BATCH | OTHERS)
def test_every_layer_becomes_the_target_and_keeps_gamma_and_beta(target, name):
    model = net()
    before = state(model)
    result = convert(model, target)
    same_state(model, before)
    assert kinds(result) == {name}
    assert [(entry.name, entry.action, entry.after) for entry in changes(result)] == [
        (n, "replaced", name) for n in NAMES
    ]
    for layer in NAMES:
        assert torch.equal(result.get_submodule(layer).weight, before[f"{layer}.weight"])
        assert torch.equal(result.get_submodule(layer).bias, before[f"{layer}.bias"])
    assert all(torch.isfinite(y).all() for y in outputs(result.train(), X))
    result.train()(X).sum().backward()


@pytest.mark.parametrize("target", [*BATCH, "frozen"])
def test_evaluation_is_the_same_function_in_the_batch_family(target):
    model = net().eval()
    model[1].momentum, model[1].num_batches_tracked = 0.03, torch.tensor(7)
    result = convert(model, target)
    close(outputs(result, X), outputs(model, X), 2e-6)  # the same formula, other roundings: some units of 6e-8 a layer
    if target != "frozen":
        assert result[1].momentum == 0.03
        assert result[1].num_batches_tracked == 7
    back = convert(result, "torch")
    assert kinds(back) == {"BatchNorm2d"}
    close(outputs(back, X), outputs(model, X), 2e-6)


@pytest.mark.parametrize("target", list(BATCH))
def test_there_and_back_gives_the_same_state_dict(target):
    model = net()
    result = convert(convert(model, target), "torch")
    same_state(result, state(model))
    assert repr(result) == repr(model)


def test_a_layer_that_is_the_target_already_is_kept():
    model = convert(net(), "batch")
    again = convert(model, "batch")
    assert {entry.reason for entry in changes(again).of("convert").entries[5:]} == {"it is that already"}
    assert {entry.action for entry in changes(convert(net(), "torch"))} == {"kept"}


def test_in_place_keeps_the_parameter_objects():
    model = net()
    weights = list(model.parameters())
    buffers = dict(model.named_buffers())
    assert convert(model, "batch", inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


def test_mode_hooks_requires_grad_and_attributes_come_along():
    model = net()
    seen = []
    model[3].bn1.eval()
    model[3].bn1.weight.requires_grad_(False)
    model[3].bn1.note = "mine"
    handle = model[3].bn1.register_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    convert(model, "batch", inplace=True)
    assert not model[3].bn1.training
    assert model[3].bn2.training
    assert not model[3].bn1.weight.requires_grad
    assert model[3].bn1.note == "mine"
    model(X)
    handle.remove()
    model(X)
    assert seen == ["BatchNorm2d"]


AFFINE = {
    "affine=False": {"affine": False},
    "bias=False": {"bias": False},
    "no statistics": {"track_running_stats": False},
    "cumulative": {"momentum": None},
    "float64": {"dtype": torch.float64},
    "eps": {"eps": 0.1},
}


@pytest.mark.parametrize("options", AFFINE.values(), ids=AFFINE)
@pytest.mark.parametrize("target", ["batch", "sync", "ghost", "group", "torch"])
def test_the_arguments_carry_over(options, target):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layers.BatchNorm2d(4, **options))
    new = convert(model, target)[1]
    assert new.eps == model[1].eps
    assert (new.weight is None, new.bias is None) == (model[1].weight is None, model[1].bias is None)
    if new.weight is not None:
        assert new.weight.dtype == model[1].weight.dtype
    if target != "group":
        assert new.momentum == model[1].momentum
        assert new.track_running_stats == model[1].track_running_stats


GROUPS = {64: 32, 96: 32, 32: 16, 48: 24, 24: 12, 20: 10, 7: 1, 1: 1}


@pytest.mark.parametrize(("channels", "expected"), GROUPS.items(), ids=map(str, GROUPS))
def test_groups_divide_the_channels_and_the_entry_says_what_was_chosen(channels, expected):
    result = convert(nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels)), "group")
    assert result[1].num_groups == expected
    assert (str(expected) in changes(result)["1"].reason) == (expected != 32)


def test_groups_without_positions_hold_enough_channels():
    assert convert(nn.Sequential(nn.Linear(3, 64), nn.BatchNorm1d(64)), "group")[1].num_groups == 8


def test_layer_norm_on_rows_is_layer_norm():
    result = convert(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)), "layer")
    assert type(result[1]) is layers.LayerNorm
    assert result(torch.ones(2, 3)).shape == (2, 6)


def test_group_norm_to_batch_norm_starts_the_statistics_afresh_and_says_so():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)))
    result = convert(model, "batch")
    assert type(result[1]) is layers.BatchNorm2d
    assert "afresh" in changes(result)["1"].reason
    assert torch.equal(result[1].running_var, torch.ones(4))
    assert torch.equal(result[1].weight, model[1].weight)


def test_sync_becomes_the_batch_norm_that_it_was():
    model = nn.ModuleDict(
        {"a": nn.BatchNorm1d(4), "b": nn.BatchNorm3d(4), "c": nn.Conv2d(3, 4, 1), "d": nn.BatchNorm2d(4)}
    )
    back = convert(copy.deepcopy(convert(model, "sync")), "torch")
    assert [type(back[key]).__name__ for key in "abd"] == ["BatchNorm1d", "BatchNorm3d", "BatchNorm2d"]


def projector():
    stem = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stem, nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


class Branches(nn.Module):
    """The same, in a forward of its own: nothing but a run shows what its norms see."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(projector())

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_a_sync_layer_of_torch_takes_its_rank_from_the_steps_before_it():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)))
    assert type(convert(model, "torch")[1]) is nn.BatchNorm3d
    model = randomized(nn.SyncBatchNorm.convert_sync_batchnorm(projector())).eval()
    for target in ("torch", "batch", "frozen", "renorm"):
        result = convert(model, target)
        assert [type(result[i]).__name__[-2:] for i in (1, 6)] == ["2d", "1d"]
        close(outputs(result, X), outputs(model, X), 2e-6)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_sync_layer_that_only_a_run_can_show_is_kept_without_one(mode):
    model = randomized(nn.SyncBatchNorm.convert_sync_batchnorm(Branches())).train(mode)
    for operation in (lambda **given: convert(model, "batch", **given), lambda **given: freeze(model, **given)):
        kept = changes(operation()).kept
        assert [entry.name for entry in kept] == ["parts.1", "parts.6"]
        assert all("pass example_inputs" in entry.reason for entry in kept)
        result = operation(example_inputs=X)
        assert [type(result.parts[i]).__name__[-2:] for i in (1, 6)] == ["2d", "1d"]
        close(outputs(result.eval(), X), outputs(copy.deepcopy(model).eval(), X), 2e-6)


class Attention(nn.Module):
    """Group norm over (N, C, H * W), as in the attention blocks of diffusion models."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.linear = nn.GroupNorm(2, channels), nn.Linear(channels, channels)

    def forward(self, x):
        y = self.linear(self.norm(x.flatten(2)).transpose(1, 2)).transpose(1, 2)
        return x + y.reshape(x.shape)


@pytest.mark.parametrize("target", ["batch", "instance", "layer"])
def test_a_group_norm_over_tokens_is_no_norm_of_images(target):
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), Attention(8))).eval()
    x = torch.randn(8, 3, 6, 6)  # N equals C: an instance norm of images would take it for one image
    kept = convert(model, target)
    assert changes(kept)["1"].action == "replaced"
    assert "example_inputs" in changes(kept)["3.norm"].reason
    kept(x)
    seen = convert(model, target, example_inputs=x)
    names = {"batch": "BatchNorm1d", "instance": "InstanceNorm1d", "layer": "GroupNorm"}
    assert type(seen[3].norm).__name__ == names[target]
    seen(x)


def test_a_norm_that_sees_images_and_tokens_is_kept():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x):
            return self.norm(x) + self.norm(x.flatten(2)).view(x.shape)

    assert changes(convert(Both(), "batch", example_inputs=X))["norm"].action == "kept"


def test_rows_and_sequences_are_told_apart_where_that_matters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.head, self.last = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Linear(4, 4), None
            self.last = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.last(self.head(self.bn(self.conv(x)).mean(2)))

    model, x = Net(), torch.randn(4, 3, 7)
    kept = convert(model, "instance")
    assert [entry.action for entry in changes(kept)] == ["kept", "kept"]
    seen = convert(model, "instance", example_inputs=x)
    assert [type(m).__name__ for m in (seen.bn, seen.last)] == ["InstanceNorm1d", "BatchNorm1d"]
    assert "no positions" in changes(seen)["last"].reason
    seen(x)


class WithActivation(nn.BatchNorm2d):
    """As model libraries have it: the activation inside of the norm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Odd(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 1.5


class Tagged(nn.BatchNorm2d):
    """A subclass that computes what its base does."""


def test_a_subclass_with_an_activation_inside_is_converted_with_it():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), WithActivation(4), Tagged(4)))
    result = convert(model, "batch")
    assert isinstance(result[1].activation, nn.LeakyReLU)
    assert type(result[2]) is layers.BatchNorm2d
    close(outputs(result.train(), X), outputs(model.train(), X), 2e-6)
    close(outputs(result.eval(), X), outputs(model.eval(), X), 2e-6)


def lazy():
    return nn.Sequential(nn.LazyBatchNorm2d())


def parametrized():
    return nn.Sequential(nn.Conv2d(3, 4, 1), parametrizations.weight_norm(nn.BatchNorm2d(4), dim=None))


def patched():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].forward = lambda x: x
    return model


KEPT = {
    "an odd forward": (lambda: nn.Sequential(Odd(4)), "batch", "not an activation of the norm"),
    "a patched forward": (patched, "batch", "replaced on the instance"),
    "lazy": (lazy, "batch", "lazy"),
    "parametrized": (parametrized, "batch", "parametrized"),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(4)), "batch", "last axes"),
    "rms norm to group": (lambda: nn.Sequential(nn.RMSNorm(4)), "group", "last axes"),
    "rms norm to layer": (lambda: nn.Sequential(nn.RMSNorm(4)), "layer", "subtracts no mean"),
    "rank unknown": (
        lambda: nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "norm": nn.GroupNorm(2, 4)}),
        "batch",
        "1, 2 or 3",
    ),
    "rows to instance": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "instance", "no positions"),
    "volumes to layer": (lambda: nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)), "layer", "(N, C, H, W)"),
    "group to frozen": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
        "frozen",
        "no running statistics",
    ),
    "no statistics to frozen": (
        lambda: nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)),
        "frozen",
        "no running statistics",
    ),
    "no statistics to renorm": (
        lambda: nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)),
        "renorm",
        "running statistics",
    ),
    "fused activation to torch": (
        lambda: nn.Sequential(layers.BatchNorm2d(4, activation="relu")),
        "torch",
        "activation",
    ),
    "LayerNorm2d to torch": (lambda: nn.Sequential(layers.LayerNorm2d(4)), "torch", "torch.nn has no"),
}


@pytest.mark.parametrize(("build", "target", "reason"), KEPT.values(), ids=KEPT)
def test_what_cannot_be_converted_is_kept_with_the_reason(build, target, reason):
    (entry,) = changes(convert(build(), target, inplace=True))
    assert entry.action == "kept"
    assert reason in entry.reason


def test_a_shared_layer_stays_shared():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Sequential(norm))
    result = convert(model, "group")
    assert result[1] is result[2][0]
    assert [entry.name for entry in changes(result)] == ["1"]


SELECTIONS = {
    "a name": ("3", None, ["3.bn1", "3.bn2"]),
    "a pattern": ("*.bn2", None, ["3.bn2", "4.bn2"]),
    "a list": (["1", "4.bn?"], None, ["1", "4.bn1", "4.bn2"]),
    "a type": (nn.BatchNorm2d, "1", ["3.bn1", "3.bn2", "4.bn1", "4.bn2"]),
    "a function": (lambda name, module: module.num_features == 8 and "bn1" in name, None, ["3.bn1", "4.bn1"]),
    "skip": (None, ["3", "4"], ["1"]),
}


@pytest.mark.parametrize(("only", "skip", "expected"), SELECTIONS.values(), ids=SELECTIONS)
def test_only_and_skip_select(only, skip, expected):
    result = convert(net(), "batch", only=only, skip=skip)
    assert [entry.name for entry in changes(result).replaced] == expected
    assert {entry.reason for entry in changes(result).kept} <= {"not selected by only=", "left out by skip="}


@pytest.mark.parametrize(("only", "skip"), [("none", None), (None, nn.BatchNorm2d), (nn.GroupNorm, None)])
def test_a_selection_without_a_layer_raises(only, skip):
    with pytest.raises(ValueError, match="select none of the 5 normalization layers"):
        convert(net(), "batch", only=only, skip=skip)


def test_what_is_asked_wrongly_raises():
    with pytest.raises(ValueError, match="target must be one of batch, sync, group"):
        convert(net(), "bach")
    with pytest.raises(ValueError, match="got Linear with none"):
        convert(nn.Linear(2, 2), "batch")
    with pytest.raises(TypeError, match="only= and skip="):
        convert(net(), "batch", only=3)


def test_a_model_that_is_a_norm_itself():
    norm = nn.BatchNorm2d(4)
    assert type(convert(norm, "group")) is layers.GroupNorm
    assert "cannot be replaced in place" in changes(convert(norm, "group", inplace=True))[0].reason


def test_a_converted_model_can_be_copied_saved_and_loaded():
    result = convert(net(), "sync")
    file = io.BytesIO()
    torch.save(copy.deepcopy(result), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    same_state(loaded, state(result))
    assert changes(loaded) == changes(result)


class OwnInstanceNorm(nn.InstanceNorm2d):
    def forward(self, x):
        return super().forward(x)


class OwnLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


WITHOUT_TENSORS = {
    "instance": (OwnInstanceNorm(4), "InstanceNorm2d"),
    "layer": (OwnLayerNorm(6, elementwise_affine=False), "LayerNorm"),
    "layer over two axes": (OwnLayerNorm((4, 6)), "LayerNorm"),
}


@pytest.mark.parametrize(("norm", "name"), WITHOUT_TENSORS.values(), ids=WITHOUT_TENSORS)
def test_a_subclass_is_probed_by_its_arguments_where_it_has_no_tensors(norm, name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
    target = "instance" if name.startswith("Instance") else "layer"
    result = convert(model, target)
    assert (type(result[1]).__name__, changes(result)["1"].action) == (name, "replaced")
    x = torch.randn(2, 3, 4, 6)
    close(outputs(result, x), outputs(model, x), 2e-6)


@pytest.mark.parametrize("target", ["batch", "frozen", "sync", "torch"])
def test_buffers_that_are_not_saved_are_not_saved_afterwards(target):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if target != "torch" else layers.BatchNorm2d(4))
    model[1]._non_persistent_buffers_set.update(("running_mean", "running_var"))
    keys = list(model.state_dict())
    result = convert(model, target)
    assert changes(result)["1"].action == "replaced"
    assert sorted(result.state_dict()) == sorted(keys)
