"""attribute_gap names the layers whose running statistics are wrong, and no others."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import normkit as nk
from normkit.doctor import gap as module
from normkit.doctor.gap import attribute_gap
from normkit.doctor.gap_report import Gap
from tests.doctor.nets import Chain, Residual, Rows, Shared, images, loss, recalibrated, seeded, trained
from tests.statistics.nets import ForeignBatchNorm, Lookalike, assert_unchanged, state

NORMS = {
    "torch": nn.BatchNorm2d,
    "normkit": nk.BatchNorm2d,
    "torch_sync": nn.SyncBatchNorm,
    "normkit_renorm": nk.BatchRenorm2d,
    "instance": lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
    "foreign": ForeignBatchNorm,
    "lookalike": Lookalike,
}


def attributed(model: nn.Module, batches=None, **options) -> Gap:
    return attribute_gap(model, images() if batches is None else batches, progress=False, **options)


def named(gap: Gap) -> list[str]:
    return [share.layer for share in gap.shares]


def variance_up(layer: nn.Module) -> None:
    layer.running_var.mul_(14)


def mean_off(layer: nn.Module) -> None:
    layer.running_mean.add_(2 * layer.running_var.sqrt())


def variance_down(layer: nn.Module) -> None:
    layer.running_var.div_(10)


FAULTS = {"variance_up": variance_up, "mean_off": mean_off, "variance_down": variance_down}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_one_wrong_layer_is_named_alone(norm, fault):
    model = recalibrated(lambda: Residual(norm))
    fault(model.block1.norm1)
    gap = attributed(model)
    assert named(gap) == ["block1.norm1"]
    assert gap.shares[0].share > 0.95


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize(
    ("make", "layer"), [(Rows, "2"), (Rows, "5"), (Chain, "1"), (Chain, "7"), (Shared, "norm"), (Shared, "last")]
)
def test_in_nets_of_other_kinds(make, layer, fault):
    model = recalibrated(make)
    fault(model.get_submodule(layer))
    assert named(attributed(model)) == [layer]


def test_a_later_norm_that_would_repair_it_is_not_blamed():
    """Under batch statistics norm 4 takes the scale that norm 1 got wrong away again."""
    model = recalibrated(lambda: Chain(lambda c: nn.BatchNorm2d(c)))
    model[2] = nn.Identity()  # no relu between: the repair would be exact
    nk.recalibrate(model, images(), sequential=True, progress=False)
    model[1].running_var.mul_(30)
    gap = attributed(model)
    assert named(gap) == ["1"]
    assert abs(gap.others_share) < 0.02


def test_two_wrong_layers_share_the_gap():
    model = recalibrated(Residual)
    model.block0.norm2.running_var.mul_(9)
    model.block2.norm1.running_mean.add_(1.5 * model.block2.norm1.running_var.sqrt())
    gap = attributed(model, orders=2)
    assert set(named(gap)) == {"block0.norm2", "block2.norm1"}
    assert all(share.share > 0.1 for share in gap.shares)
    assert sum(share.share for share in gap.shares) + gap.others_share == pytest.approx(1, abs=1e-9)


def test_a_player_whose_statistics_are_right_gets_nothing(monkeypatch):
    monkeypatch.setattr(module, "SCREEN", -1.0)
    model = recalibrated(Residual)
    model.block1.norm1.running_var.mul_(14)
    gap = attributed(model)
    assert len(gap.shares) == 6
    by_name = {share.layer: share for share in gap.shares}
    for name, share in by_name.items():
        assert (abs(share.share) < 0.02) == (name != "block1.norm1")
    assert by_name["block0.norm1"].share == 0.0  # exact to the last bit: its input depends on no other norm
    assert sum(share.share for share in gap.shares) == pytest.approx(1, abs=1e-9)


def test_each_order_sums_to_one_on_a_whole_net_at_its_start():
    model = seeded(Residual).eval()
    gap = attributed(model, orders=6)
    assert gap.found
    assert gap.orders == 6
    assert sum(share.share for share in gap.shares) + gap.others_share == pytest.approx(1, abs=1e-9)
    assert all("they never moved from 0 and 1" in share.cause for share in gap.shares)


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize("make", [Residual, Chain, Rows])
@pytest.mark.parametrize("metric", [None, loss], ids=["distance", "loss"])
def test_a_healthy_trained_net_has_no_shares(make, size, metric):
    gap = attributed(trained(make), images(8, size), metric=metric)
    assert not gap.found
    assert gap.shares == ()
    assert "not more than batches differ" in gap.reason or "no layer is farther" in gap.reason


@pytest.mark.parametrize("make", [Residual, Chain, Rows])
def test_a_trained_net_that_fails_in_evaluation(make):
    """By the loss, in a net whose other statistics are as good as training leaves them."""
    model = trained(make)
    name, layer = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][-1]
    layer.running_mean.add_(3 * layer.running_var.sqrt())
    gap = attributed(model, metric=loss)
    assert gap.unit == "loss"
    assert gap.gap > 0.2
    assert gap.shares[0].layer == name
    assert gap.shares[0].share == pytest.approx(1, abs=0.1)
    assert gap.running > gap.exact


def test_a_metric_that_falls():
    def accuracy(output, batch):
        return (output.argmax(1) == batch[1]).double().mean()

    model = trained(Chain)
    model[4].running_mean.add_(6)
    gap = attributed(model, metric=accuracy)
    assert gap.gap < -0.1
    assert named(gap) == ["4"]
    assert gap.shares[0].share == pytest.approx(1, abs=0.1)


def test_a_forward_that_returns_the_loss():
    model = trained(Chain)
    model[4].running_mean.add_(6)
    gap = attributed(model, forward=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    assert (gap.unit, named(gap)) == ("loss", ["4"])


def test_dict_batches_and_dict_outputs():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = recalibrated(Chain)

        def forward(self, *, pixels):
            logits = self.inner(pixels)
            return {"logits": logits, "labels": logits.argmax(1), "scores": logits.softmax(1)}

    model = Named().eval()
    variance_up(model.inner[4])
    gap = attributed(model, [{"pixels": x} for x, _ in images()])
    assert named(gap) == ["inner.4"]


def test_a_generator_is_gone_over_once_and_not_beyond_max_batches():
    taken = []

    def loader():
        for batch in images():
            taken.append(batch)
            yield batch

    model = recalibrated(Chain)
    variance_up(model[4])
    gap = attributed(model, loader(), max_batches=5)
    assert (gap.batches, len(taken)) == (5, 5)
    assert named(gap) == ["4"]


def test_frozen_layers_and_layers_held_in_evaluation_are_no_players():
    model = recalibrated(Residual)
    for layer in (model.block0.norm1, model.block1.norm1, model.block2.norm1):
        variance_up(layer)
    frozen = nk.freeze(model, only="block0.norm1")
    frozen.train()
    frozen.block1.norm1.eval()
    gap = attributed(frozen)
    assert "block2.norm1" in named(gap)
    assert not {"block0.norm1", "block1.norm1"} & set(named(gap))
    assert gap.layers == 4


def test_frozen_by_structure_under_any_name():
    class Still(nn.Module):
        def __init__(self, source):
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, getattr(source, name).detach().clone())

        def forward(self, x):
            scale = self.weight / (self.running_var + 1e-5).sqrt()
            return x * scale.view(-1, 1, 1) + (self.bias - self.running_mean * scale).view(-1, 1, 1)

    model = recalibrated(Chain)
    variance_up(model[1])
    model[1] = Still(model[1])
    variance_up(model[7])
    gap = attributed(model)
    assert gap.layers == 2
    assert "1" not in named(gap)


def test_a_norm_trained_on_two_different_inputs_has_a_gap_of_its_own():
    """It normalizes each by its own statistics in training and both by one set in evaluation."""
    gap = attributed(trained(Shared))
    assert gap.found
    assert "norm" in named(gap)


def test_a_shared_norm_is_one_player():
    model = recalibrated(Shared)
    model.again = model.norm  # and under two names
    variance_up(model.norm)
    gap = attributed(model)
    assert named(gap) == ["norm"]
    assert gap.layers == 2


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_given_back(training):
    model = trained(Residual).train(training)
    variance_up(model.block1.norm1)
    before, random = state(model), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    attributed(model, metric=loss)
    assert_unchanged(model, before)
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert not any("forward" in vars(m) for m in model.modules())


def test_and_after_an_exception():
    class Once(Exception):
        pass

    calls = []

    def failing(output, batch):
        calls.append(1)
        if len(calls) == 20:
            raise Once
        return loss(output, batch)

    model = trained(Residual)
    before = state(model)
    with pytest.raises(Once):
        attributed(model, metric=failing)
    assert_unchanged(model, before)
    assert not any("forward" in vars(m) for m in model.modules())


def test_the_same_input_gives_the_same_json():
    found = set()
    for seed in (1, 2):
        torch.manual_seed(seed)  # the caller's random numbers have no say
        found.add(attributed(seeded(Residual).train()).to_json())
    assert len(found) == 1


def test_a_model_that_works_in_place_on_its_input_sees_the_same_data_each_time():
    class Greedy(Chain):
        def forward(self, x):
            return super().forward(x.mul_(2))

    model = seeded(Greedy).eval()
    batches = images()
    nk.recalibrate(model, [(2 * x,) for x, _ in batches], forward=lambda m, b: nn.Sequential.forward(m, b[0]))
    assert attributed(model, batches).gap < 0.05
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, images(), strict=True))


def test_what_depends_on_the_batch_and_on_dropout_is_told_apart():
    model = recalibrated(Residual)
    gap = attributed(model)
    assert gap.depends_on_the_batch > 0.02
    assert gap.dropout > 0.2
    model.drop = nn.Identity()
    assert attributed(model).dropout == 0
    assert attributed(model, images(8, 256)).depends_on_the_batch < gap.depends_on_the_batch


def test_a_model_that_returns_something_else_in_training():
    class Detector(Chain):
        def forward(self, x):
            y = super().forward(x)
            return {"loss": y.sum()} if self.training else y

    model = recalibrated(Detector)
    variance_up(model[4])
    gap = attributed(model)
    assert gap.dropout is None
    assert "cannot be compared" in gap.training_refused
    assert "not measured" in str(gap)
    assert named(gap) == ["4"]


def test_one_batch_cannot_tell():
    model = recalibrated(Chain)
    variance_up(model[4])
    gap = attributed(model, images(1))
    assert not gap.found
    assert "one batch cannot tell" in gap.reason


def test_statistics_that_are_no_numbers():
    model = recalibrated(Chain)
    model[4].running_var[2] = math.nan
    gap = attributed(model)
    assert not gap.found
    assert "not finite" in gap.reason
    assert gap.running is None
    assert Gap.from_json(gap.to_json()) == gap


def test_answers_that_are_no_numbers_on_the_way():
    model = recalibrated(Chain)
    variance_up(model[1])
    variance_up(model[4])
    seen = []

    def metric(output, batch):
        seen.append(1)
        return output.abs().mean() if len(seen) <= 4 * 8 else math.nan  # batch, exact, running, training; then parts

    gap = attributed(model, metric=metric)
    assert not gap.found
    assert gap.shares == ()
    assert "not finite with some of the layers" in gap.reason
    assert Gap.from_json(gap.to_json()) == gap


def test_a_net_without_batch_norm():
    gap = attributed(nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.LayerNorm(4)))
    assert (gap.layers, gap.gap, gap.found) == (0, 0.0, False)


def test_at_most_sixteen_players(monkeypatch):
    monkeypatch.setattr(module, "PLAYERS", 2)
    model = seeded(Residual).eval()
    gap = attributed(model)
    assert len(gap.shares) == 2
    assert gap.others == 4
    assert gap.others_share != 0
    assert "4 other layers together" in str(gap)


def test_the_cost_is_said_before_it_starts_and_kept(capsys):
    model = seeded(Residual).eval()
    gap = attribute_gap(model, images(), orders=4)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "train/eval gap: at most 7 passes over 8 batches"
    assert said[1].startswith("train/eval gap: 6 layers one by one, in 4 orders: ")
    more = int(said[1].split(": ")[2].split()[0])
    assert more <= 4 * 5
    assert gap.passes <= 7 + more


def test_a_bar_on_a_terminal_and_plain_lines_without_rich(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    model = seeded(Residual).eval()
    attribute_gap(model, images(3))
    assert "by layer" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    attribute_gap(model, images(3))
    assert len(capfd.readouterr().err.splitlines()) == 2
    attribute_gap(model, images(3), progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_sentences_say_layer_distance_and_history():
    model = recalibrated(Residual)
    layer = model.block1.norm2
    layer.running_var.mul_(14)
    layer.momentum = 0.001
    layer.num_batches_tracked.fill_(200)
    text = str(attributed(model))
    assert "of the gap is block1.norm2: running_var is 14 times the data's; momentum 0.001 after 200 steps" in text


def test_one_channel_is_named():
    model = recalibrated(Residual)
    model.block1.norm2.running_var[5] = 1e-6
    gap = attributed(model)
    assert "running_var of channel 5 is 1/" in gap.shares[0].cause


def test_json_round_trip():
    gap = attributed(seeded(Residual).eval())
    assert Gap.from_json(gap.to_json()) == gap


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_batches": 0}, "max_batches must be an int of at least 1, got 0"),
        ({"orders": 3}, "orders must be an even int of at least 2, got 3"),
        ({"orders": True}, "orders must be an even int"),
        ({"batches": []}, "expected at least one batch, got none"),
    ],
)
def test_wrong_values(options, text):
    with pytest.raises(ValueError, match=text):
        attributed(seeded(Chain), options.pop("batches", None), **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metric": lambda output, batch: output}, "must return a number .* got a tensor of shape"),
        ({"metric": lambda output, batch: "good"}, "got str"),
        ({"forward": lambda model, batch: model(batch[0]).argmax(1)}, "without a floating-point tensor"),
        ({"batches": torch.zeros(2, 3, 6, 6)}, "put a single batch into a list"),
    ],
)
def test_wrong_types(options, text):
    with pytest.raises(TypeError, match=text):
        attributed(seeded(Chain), options.pop("batches", None), **options)


def test_lazy_layers_are_left_as_they_are():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(RuntimeError, match="lazy layers"):
        attributed(model)
    assert isinstance(model[1].running_mean, nn.UninitializedBuffer)


def test_a_loader_that_shuffles_draws_its_seed_and_the_random_state_comes_back():
    x, y = (torch.cat(part) for part in zip(*images(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    model = recalibrated(Chain)
    variance_up(model[4])
    before = torch.get_rng_state()
    gap = attributed(model, loader)
    assert torch.equal(before, torch.get_rng_state())
    assert named(gap) == ["4"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["dp", "compiled"])
def test_wrapped_models(wrap):
    model = recalibrated(Chain)
    variance_up(model[4])
    gap = attributed(wrap(model))
    assert [name.rpartition(".")[2] for name in named(gap)] == ["4"]
