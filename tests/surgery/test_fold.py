"""Folding: the same function without the norm; what cannot be folded exactly stays, with the reason."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import normkit.nn as layers
from normkit._torch import make_norm
from normkit.surgery import changes, fold

from .models import close, outputs, randomized, residual_net, same_state, state

# Each case is float64: what a fold may add there is rounding, some units of 1e-16 a product; a wrong border, group or
# missing bias is of the order of 1e-2.
EXACT = 1e-12


def folded(model, x, **options):
    model = randomized(model).eval().double()
    before = state(model)
    x = x.double() if x.is_floating_point() else x
    result = fold(model, x, **options)
    same_state(model, before)
    if not outputs(model, x)[0].isfinite().all():
        return result
    close(outputs(result, x), outputs(model, x), EXACT)
    return result


def image(channels=6, size=7):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))


def line(channels=6, size=7):
    return image(channels, size)[..., 0]


def volume(channels=6, size=5):
    return torch.randn(2, channels, size, size, size, generator=torch.Generator().manual_seed(1))


def kinds(model):
    return [type(module).__name__ for module in model]


IN_FRONT = {
    "conv1d": (nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), line()),
    "conv2d": (nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), image()),
    "conv3d": (nn.Conv3d(6, 8, 3, padding=1), nn.BatchNorm3d(8), volume()),
    "no bias": (nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), image()),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), image()),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), image()),
    "depthwise, two outputs each": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), image()),
    "reflected border": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), image()),
    "transposed 1d": (nn.ConvTranspose1d(6, 8, 3, stride=2), nn.BatchNorm1d(8), line()),
    "transposed 2d": (nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1), nn.BatchNorm2d(8), image()),
    "transposed 2d, grouped": (nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), image()),
    "transposed 2d, grouped, no bias": (nn.ConvTranspose2d(6, 9, 3, groups=3, bias=False), nn.BatchNorm2d(9), image()),
    "transposed 3d": (nn.ConvTranspose3d(6, 4, 3), nn.BatchNorm3d(4), volume()),
    "linear": (nn.Linear(7, 8), nn.BatchNorm1d(8), image(7)[:, :, 0, 0]),
    "linear, no bias": (nn.Linear(7, 8, bias=False), nn.BatchNorm1d(8), image(7)[:, :, 0, 0]),
    "linear, affine=False": (nn.Linear(7, 8), nn.BatchNorm1d(8, affine=False), image(7)[:, :, 0, 0]),
    "affine=False": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, affine=False), image()),
    "bias=False": (nn.Conv2d(6, 8, 3), make_norm(nn.BatchNorm2d, 8, bias=False), image()),
    "linear, bias=False": (nn.Linear(7, 8), make_norm(nn.BatchNorm1d, 8, bias=False), image(7)[:, :, 0, 0]),
    "SyncBatchNorm": (nn.Conv2d(6, 8, 3), nn.SyncBatchNorm(8), image()),
    "our own": (nn.Conv2d(6, 8, 3), layers.BatchNorm2d(8), image()),
    "instance norm with running statistics": (
        nn.Conv2d(6, 8, 3),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        image(),
    ),
}


@pytest.mark.parametrize(("layer", "norm", "x"), IN_FRONT.values(), ids=IN_FRONT)
def test_a_norm_folds_into_the_layer_in_front(layer, norm, x):
    result = folded(nn.Sequential(layer, norm), x)
    assert kinds(result) == [type(layer).__name__, "Identity"]
    assert changes(result)["1"].reason == "folded into 0 in front"


BEHIND = {
    "conv1d": (nn.BatchNorm1d(6), nn.Conv1d(6, 8, 3), line()),
    "conv2d": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3), image()),
    "conv3d, no bias": (nn.BatchNorm3d(6), nn.Conv3d(6, 8, 3, bias=False), volume()),
    "grouped": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, groups=2), image()),
    "depthwise": (nn.BatchNorm2d(6), nn.Conv2d(6, 12, 3, groups=6), image()),
    "replicated border": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, padding_mode="replicate"), image()),
    "circular border": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), image()),
    "valid": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding="valid"), image()),
    "same with one tap": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1, padding="same"), image()),
    "transposed, one tap": (nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 8, 1, groups=2), image()),
    "linear": (nn.BatchNorm1d(6), nn.Linear(6, 8), image()[..., 0, 0]),
    "linear, no bias": (nn.BatchNorm1d(6, affine=False), nn.Linear(6, 8, bias=False), image()[..., 0, 0]),
}


@pytest.mark.parametrize(("norm", "layer", "x"), BEHIND.values(), ids=BEHIND)
def test_a_norm_folds_into_the_layer_behind(norm, layer, x):
    result = folded(nn.Sequential(norm, layer), x)
    assert kinds(result) == ["Identity", type(layer).__name__]
    assert changes(result)["0"].reason == "folded into 1 behind"


def test_positions_become_features_between_norm_and_linear():
    result = folded(nn.Sequential(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 49, 5)), image())
    assert kinds(result) == ["Identity", "Flatten", "Linear"]


class TokenNorm(nn.Module):
    """BatchNorm1d over all tokens, as transformers with batch norm write it: (B, L, C) -> (B * L, C) and back."""

    def __init__(self):
        super().__init__()
        self.linear, self.bn, self.last = nn.Linear(7, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.linear(x)
        return self.last(self.bn(y.flatten(0, 1)).reshape_as(y).relu())


def test_a_norm_over_flattened_tokens_folds_into_the_linear():
    assert changes(folded(TokenNorm(), line(5, 7)))["bn"].reason == "folded into linear in front"


CHAINS = {
    "conv norm conv norm": ([nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)] * 1 + [nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)], []),
    "conv without bias, norm, norm": ([nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6), nn.BatchNorm2d(6)], []),
    "conv norm norm": ([nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)], []),
    "norm norm conv": ([nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)], []),
    "norm conv norm": ([nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)], []),
    "conv norm identity dropout norm": (
        [nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Identity(), nn.Dropout(0.5), nn.BatchNorm2d(6)],
        [],
    ),
    "conv relu norm relu": ([nn.Conv2d(6, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU()], ["2"]),
}


@pytest.mark.parametrize(("modules", "kept"), CHAINS.values(), ids=CHAINS)
def test_chains_fold_from_both_sides(modules, kept):
    result = folded(nn.Sequential(*copy.deepcopy(modules)), image())
    assert [entry.name for entry in changes(result).kept] == kept


def test_a_residual_network_folds_whole_with_a_shared_relu_and_an_in_place_add():
    result = folded(residual_net(), image(3, 9))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    assert len(changes(result).replaced) == 5


class Branches(nn.Module):
    """Two convolutions into one shared norm, and one convolution into two norms."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.shared = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
        self.split, self.left, self.right = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.shared(self.a(x)) + self.shared(self.b(x)).relu()
        z = self.split(y)
        return self.left(z).relu() + self.right(z).tanh()


def test_one_norm_folds_into_several_convolutions_but_several_norms_not_into_one():
    result = folded(Branches(), image())
    assert changes(result)["shared"].reason == "folded into a, b in front"
    assert [entry.name for entry in changes(result).kept] == ["left", "right"]
    assert "also read by right" in changes(result)["left"].reason


class Custom(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv_bn(forward, **more):
    return Custom(forward, conv=nn.Conv2d(6, 6, 3, padding=1), bn=nn.BatchNorm2d(6), **more)


class StandardizedConv(nn.Conv2d):
    """Weight standardization: a scale of the weight has no effect."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


class SameConv(nn.Conv2d):
    """Padding that depends on the size of the input, as ported networks have it; module.padding says 0."""

    def forward(self, x):
        more = [
            -(-size // s) * s - size + k - s
            for size, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        wide, high = max(more[1], 0), max(more[0], 0)
        return super().forward(F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2]))


def hooked():
    model = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    model[0].register_forward_hook(lambda module, args, y: y.relu())
    return model


def tied():
    model = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
    model[3].weight = model[0].weight
    return model


def twice(model, x):
    return model.bn(model.conv(x)) + model.conv(x.relu())


def stash(model, x):
    model.feature = model.conv(x)
    return model.bn(model.feature)


def transposed_tokens(model, x):
    return model.bn(model.linear(x))  # (N, L, C): the norm's channels are L, the linear's C


def not_finite():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1))
    model[1].eps = float("nan")
    return model


KEPT = {
    "not finite": (not_finite, "not finite"),
    "zero border behind": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1)), "zeros"),
    "same border behind": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding="same")), "zeros"),
    "transposed behind": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 8, 3)), "border"),
    "self-padding conv behind": (lambda: nn.Sequential(nn.BatchNorm2d(6), SameConv(6, 8, 3, stride=2)), "probe"),
    "relu between": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)), "1 (ReLU)"),
    "pool behind": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Conv2d(6, 6, 1)),
        "MaxPool2d",
    ),
    "no neighbours": (lambda: nn.Sequential(nn.BatchNorm2d(6)), "input of the model"),
    "weight standardization": (lambda: nn.Sequential(StandardizedConv(6, 6, 3), nn.BatchNorm2d(6)), "not affine"),
    "hooks": (hooked, "hooks"),
    "tied weights": (tied, "shares a parameter with 3"),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(6, 6, 1)), nn.BatchNorm2d(6)),
        "parametrized",
    ),
    "shared conv": (lambda: conv_bn(twice), "shared"),
    "two readers": (lambda: conv_bn(lambda m, x: (y := m.conv(x)) + m.bn(y)), "also read by add"),
    "an output too": (lambda: conv_bn(lambda m, x: (y := m.conv(x), m.bn(y))), "output of the model"),
    "stashed": (lambda: conv_bn(stash), "still holds"),
    "view read": (lambda: conv_bn(lambda m, x: (y := m.conv(x), m.bn(y))[1] + y[:, :1].mean()), "__getitem__"),
    "weight read elsewhere": (
        lambda: conv_bn(lambda m, x: m.bn(m.conv(x)) + m.conv.weight.square().sum()),
        "read outside of its forward",
    ),
    "called functionally": (
        lambda: conv_bn(lambda m, x: m.bn(F.conv2d(x, m.conv.weight, padding=1))),
        "fed by conv2d",
    ),
    "not reached": (lambda: conv_bn(lambda m, x: m.conv(x)), "do not reach"),
    "no running statistics": (
        lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        "no running statistics",
    ),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6)), "statistics from each input"),
    "one norm, one of two inputs foldable": (
        lambda: conv_bn(lambda m, x: m.bn(m.conv(x)) + m.bn(x)),
        "input of the model",
    ),
}


@pytest.mark.parametrize(("build", "reason"), KEPT.values(), ids=KEPT)
def test_what_cannot_be_folded_exactly_stays_with_its_reason(build, reason):
    result = folded(build(), image())
    (entry,) = changes(result)
    assert entry.action == "kept"
    assert reason in entry.reason


def test_the_channel_axis_of_norm_and_linear_must_be_the_same():
    model = Custom(transposed_tokens, linear=nn.Linear(6, 6), bn=nn.BatchNorm1d(6))
    assert "another axis" in changes(folded(model, line(6, 6)))["bn"].reason


def test_a_zero_border_is_no_obstacle_where_the_norm_shifts_nothing():
    model = nn.Sequential(nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 8, 3, padding=1)).eval()
    model[0].running_var.fill_(4.0)
    result = fold(model, image())
    assert kinds(result) == ["Identity", "Conv2d"]
    close(outputs(result, image()), outputs(model, image()), 1e-5)


def test_a_convolution_that_pads_itself_folds_the_norm_behind_it():
    assert kinds(folded(nn.Sequential(SameConv(6, 8, 3, stride=2), nn.BatchNorm2d(8)), image())) == [
        "SameConv",
        "Identity",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    model = randomized(nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))).eval().to(dtype)
    result = fold(model, image().to(dtype))
    norm, conv = model[1].double(), model[0].double()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (conv.weight * scale.view(-1, 1, 1, 1)).to(dtype)
    assert torch.equal(result[0].weight, expected)
    assert result[0].bias.dtype == dtype


def test_in_place_keeps_the_parameter_objects():
    model = randomized(nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).eval()
    weight, bias, expected = model[0].weight, model[0].bias, outputs(model, image())
    assert fold(model, image(), inplace=True) is model
    assert model[0].weight is weight
    assert model[0].bias is bias
    close(outputs(model, image()), expected, 1e-5)


@pytest.mark.parametrize("part", ["the model", "one norm"])
def test_training_mode_is_refused_layer_by_layer(part):
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))
    (model.train() if part == "the model" else model.eval()[1].train())
    before = state(model)
    (entry,) = changes(fold(model, image()))
    assert entry.action == "kept"
    assert "model.eval()" in entry.reason
    same_state(model, before)


def test_an_activation_and_a_residual_of_our_layer_stay_behind():
    norm = layers.BatchNorm2d(6, activation="relu")
    model = Custom(lambda m, x: m.bn(m.conv(x), residual=x), conv=nn.Conv2d(6, 6, 1), bn=norm)
    result = folded(model, image())
    assert type(result.bn).__name__ == "AddActivation"
    plain = folded(nn.Sequential(nn.Conv2d(6, 6, 1), layers.BatchNorm2d(6, activation=nn.LeakyReLU(0.2))), image())
    assert kinds(plain) == ["Conv2d", "LeakyReLU"]


def test_a_masked_norm_stays():
    model = Custom(lambda m, x: m.bn(m.conv(x), mask=x[:, 0] > 0), conv=nn.Conv2d(6, 6, 1), bn=layers.BatchNorm2d(6))
    assert "mask" in changes(folded(model, image()))["bn"].reason


def test_verify_reports_the_largest_error_of_each_output():
    model = randomized(conv_bn(lambda m, x: {"a": m.bn(m.conv(x)), "b": [x]})).eval()
    a, b = changes(fold(model, image())).errors
    assert (a.output, b.output) == ("output['a']", "output['b'][0]")
    assert 0 < a.largest < a.limit
    assert b.largest == 0
    assert changes(fold(model, image(), verify=False)).errors == ()


class Branching(nn.Module):
    """Looks at its own norm: folded, it takes another branch."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return y if isinstance(self.bn, nn.BatchNorm2d) else y + 1


class Reading(Branching):
    def forward(self, x):
        return self.bn(self.conv(x)) * self.bn.num_features


@pytest.mark.parametrize(
    ("kind", "reason"), [(Branching, "differs by 1"), (Reading, "AttributeError")], ids=["value", "raise"]
)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_fold_that_changes_the_model_is_undone(kind, reason, inplace):
    model = randomized(kind()).eval()
    before = state(model)
    result = fold(model, image(), inplace=inplace)
    same_state(result, before)
    (entry,) = changes(result)
    assert entry.action == "kept"
    assert reason in entry.reason


def test_selection():
    model = nn.Sequential(
        nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
    ).eval()
    assert [entry.action for entry in changes(fold(model, image(), only="4"))] == ["kept", "replaced"]
    with pytest.raises(ValueError, match="select none of the 2"):
        fold(model, image(), only="none")
    with pytest.raises(ValueError, match="expected a model with a normalization layer, got Conv2d with none"):
        fold(nn.Conv2d(6, 6, 1), image())


def test_a_model_that_cannot_be_copied_is_told_of_inplace():
    model = randomized(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))).eval()
    model.lock = (entry for entry in ())  # a generator cannot be copied
    with pytest.raises(RuntimeError, match="inplace=True"):
        fold(model, image())
    assert len(changes(fold(model, image(), inplace=True)).replaced) == 1


def test_a_norm_inside_of_a_convolution_is_not_folded_into_the_outer_one():
    class WithNorm(nn.Conv2d):
        def __init__(self):
            super().__init__(6, 6, 1)
            self.bn = nn.BatchNorm2d(6)

        def forward(self, x):
            return self.bn(super().forward(x)).relu()

    assert "read outside of its forward, by 0" in changes(folded(nn.Sequential(WithNorm()), image()))["0.bn"].reason


def test_exports_of_the_folded_model_have_no_batch_norm():
    result = fold(randomized(residual_net()).eval(), image(3, 9))
    program = torch.export.export(result, (image(3, 9),))
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
