"""A subclass is replaced only where outputs, gradients and statistics are its family's, for two batch sizes."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from normkit.surgery import accelerate, changes, convert, fold, freeze

from .models import close, outputs, randomized

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def by_batch(norm, x):
    return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


class Biased(nn.BatchNorm2d):
    """Keras's convention: the running variance is the biased one."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
            self.num_batches_tracked += 1
        return by_batch(self, x)


class Uncounted(nn.BatchNorm2d):
    def forward(self, x):
        moves = self.training
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, moves, self.momentum, self.eps
        )


class Unmoved(nn.BatchNorm2d):
    """Normalizes by the batch and keeps the pretrained statistics."""

    def forward(self, x):
        return by_batch(self, x) if self.training else super().forward(x)


class OtherMomentum(nn.BatchNorm2d):
    """TensorFlow's convention: momentum is the weight of the old value."""

    def forward(self, x):
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            1 - self.momentum,
            self.eps,
        )


class StillAffine(nn.BatchNorm2d):
    """Its weight and bias get no gradient."""

    def forward(self, x):
        weight, bias = self.weight.detach(), self.bias.detach()
        if self.training:
            self.num_batches_tracked += 1
        return F.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, self.training, self.momentum, self.eps
        )


class Straight(nn.GroupNorm):
    """The gradient passes its statistics by."""

    def forward(self, x):
        y = super().forward(x)
        return x + (y - x).detach()


class SmallBatches(nn.BatchNorm2d):
    """Running statistics for batches below six."""

    def forward(self, x):
        return super().forward(x) if len(x) >= 6 else super().forward(x) * 1.01


def world_size():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class NaiveSync(nn.BatchNorm2d):
    """detectron2's: it asks a helper for the number of processes."""

    def forward(self, x):
        if world_size() == 1 or not self.training:
            return super().forward(x)
        raise NotImplementedError


OTHERS = {
    Biased: "running statistics are not",
    Uncounted: "running statistics are not",
    Unmoved: "a subclass",
    OtherMomentum: "running statistics are not",
    StillAffine: "gradients are not",
    SmallBatches: "not an activation of the norm",
    NaiveSync: "asks about other processes",
}


@pytest.mark.parametrize(("kind", "reason"), OTHERS.items(), ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize(
    "operation",
    [lambda m: accelerate(m, X), lambda m: convert(m, "batch"), lambda m: convert(m, "torch"), freeze],
    ids=["accelerate", "batch", "torch", "freeze"],
)
def test_other_statistics_or_gradients_are_kept(kind, reason, operation):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), kind(4, eps=3e-4), nn.ReLU()))
    entry = changes(operation(model))["1"]
    assert (entry.action, entry.after) == ("kept", kind.__name__)
    assert reason in entry.reason


def test_other_gradients_of_a_group_norm_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Straight(2, 4))
    assert "gradients are not" in changes(accelerate(model, X))["1"].reason


def test_evaluation_alone_counts_where_a_norm_is_folded():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), Biased(4, eps=3e-4))).eval()
    assert changes(fold(model, X))["1"].action == "replaced"
    close(outputs(fold(model, X), X), outputs(model, X), 1e-5)


class Plain(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("momentum", [0.0, 0.1, None])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_what_only_passes_on_is_replaced(momentum, options):
    model = nn.Sequential(Plain(3, eps=3e-4, momentum=momentum, **options))
    if options.get("track_running_stats", True):
        assert changes(freeze(model))["0"].action == "replaced"
    entry = changes(accelerate(model, X))["0"]
    assert (entry.action, entry.after) == ("replaced", "BatchNorm2d")


class NoTensors(nn.InstanceNorm2d):
    def forward(self, x):
        return super().forward(x)


def test_a_norm_without_tensors_is_probed():
    assert changes(accelerate(nn.Sequential(NoTensors(3), nn.ReLU()), X))["0"].after == "InstanceNorm2d"


class ChannelsFirst(nn.LayerNorm):
    """ConvNeXt's: by a flag over the last axis, or over axis 1 of images."""

    def __init__(self, channels, first):
        super().__init__(channels, eps=3e-4)
        self.first = first

    def forward(self, x):
        if not self.first:
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("first", "after"), [(True, "LayerNorm2d"), (False, "LayerNorm")])
def test_a_layer_norm_over_the_channels_of_images_is_known_by_its_numbers(first, after):
    model = randomized(nn.Sequential(nn.Conv2d(3, 5, 1), ChannelsFirst(5, first))).eval()
    x = X if first else X[..., :5]
    result = accelerate(model, x)
    assert changes(result)["1"].after == after
    close(outputs(result, x), outputs(model, x), 1e-5)
    assert type(convert(result, "torch")[1]) is ChannelsFirst
    if first:
        assert changes(convert(model, "group"))["1"].after == "GroupNorm"


class OverSequences(nn.LayerNorm):
    """SqueezeBERT's: over the channels of (N, C, L)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 1)).permute(0, 2, 1)


@pytest.mark.parametrize("channels", [3, 64])
def test_a_layer_norm_over_the_channels_of_sequences_is_found_and_taken_back(channels: int) -> None:
    model, x = nn.Sequential(OverSequences(channels)), torch.randn(2, channels, 5)
    fast = accelerate(model, x)
    assert changes(fast)["0"].action == "replaced"
    torch.testing.assert_close(fast(x), model(x))
    back = convert(fast, "torch")
    assert changes(back)["0"].reason == "what it was before accelerate"
    assert torch.equal(back(x), model(x))


class ByRank(nn.LayerNorm):
    """Over the last axis of tokens and over axis 1 of images: neither layer alone."""

    def forward(self, x):
        return super().forward(x) if x.dim() == 3 else super().forward(x.movedim(1, -1)).movedim(-1, 1)


def test_a_layer_norm_that_goes_by_rank_is_kept():
    assert changes(accelerate(nn.Sequential(ByRank(9)), X[:, 0]))["0"].action == "kept"


class Doubled(nn.BatchNorm2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Single(nn.BatchNorm2d):
    """Stays float32 in a model of another precision."""

    def _apply(self, fn, recurse=True):
        return self


class OtherNames(nn.BatchNorm2d):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}gamma"] = destination.pop(f"{prefix}weight")


class Extra(nn.GroupNorm):
    def get_extra_state(self):
        return {"version": torch.tensor(2)}


class Logged(nn.BatchNorm2d):
    def train(self, mode=True):
        self.switched = mode
        return super().train(mode)


OWN = {
    "__call__": lambda: Doubled(4),
    "_apply": lambda: Single(4),
    "_save_to_state_dict": lambda: OtherNames(4),
    "get_extra_state": lambda: Extra(2, 4),
    "train": lambda: Logged(4),
}


@pytest.mark.parametrize(
    "operation",
    [lambda m: accelerate(m, X), lambda m: convert(m, "instance"), lambda m: convert(m, "torch")],
    ids=["accelerate", "instance", "torch"],
)
@pytest.mark.parametrize("method", OWN)
def test_a_norm_with_another_method_than_its_base_is_kept(method, operation):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), OWN[method](), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    entry = changes(operation(model))["1"]
    assert (entry.action, entry.reason) == (
        "kept",
        f"a subclass with a {method}() of its own, which no other layer has",
    )


def test_a_norm_that_is_called_otherwise_is_not_folded():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4))).eval()
    result = fold(model, X)
    assert "a __call__() of its own" in changes(result)["1"].reason
    close(outputs(result, X), outputs(model, X), 0)


def test_an_attribute_with_the_name_of_a_method_is_none():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].type = "BN"
    assert changes(convert(model, "batch"))["1"].action == "replaced"
