"""sequential=True: each layer has the statistics of what it sees in evaluation (Wu & Johnson 2021, section 3.2)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.statistics.nets import BATCH_NORMS, assert_statistics, assert_unchanged, data, net, state


def inputs(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """What each norm sees in evaluation, all calls and batches together, (m, C) float64."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(
                args[0].detach().double().movedim(1, -1).flatten(0, -2)
            )
        )
        for name, layer in model.named_modules()
        if hasattr(layer, "running_mean")
    ]
    model.eval()
    for batch in batches:
        model(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("norm", BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_statistics_are_those_of_the_evaluated_model(norm):
    model, batches = net(norm), data((4, 7, 1))
    nk.recalibrate(model, batches, sequential=True)
    for name, x in inputs(model, batches).items():
        assert_statistics(model.get_submodule(name), x.mean(0), x.var(0))


def test_parallel_statistics_are_not_those_of_the_evaluated_model():
    """What the sequential mode is for; here by 5 to 20 % of the variance, where sequential is exact to 1e-6."""
    model, batches = net(), data((4, 4, 4), spread=3.0)
    nk.recalibrate(model, batches)
    x = inputs(model, batches)["2"]
    assert ((model[2].running_var.double() / x.var(0) - 1).abs() > 0.03).all()


def test_with_one_batch_both_modes_agree():
    """Evaluation divides by the unbiased variance, training by the biased one: 1/(2m) apart, m = 8*36."""
    parallel, sequential = net(), net()
    nk.recalibrate(parallel, data((8,)))
    nk.recalibrate(sequential, data((8,)), sequential=True)
    torch.testing.assert_close(parallel[2].running_var, sequential[2].running_var, rtol=1.1 / (8 * 36), atol=0)


class Residual(nn.Module):
    """Called in another order than registered, with a branch and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.shared, self.first = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.branch = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.last(self.shared(y) + self.branch(x) ** 2) + self.shared(x)


def test_the_order_of_calls_decides_not_the_order_of_registration():
    model, batches = Residual(), data((6, 5), spread=2.0)
    report = nk.recalibrate(model, batches, sequential=True)
    for name, x in inputs(model, batches).items():
        layer = model.get_submodule(name)
        assert_statistics(layer, x.mean(0), x.var(0))
    assert {layer.name: layer.calls for layer in report} == {"last": 2, "shared": 4, "first": 2, "branch": 2}


def test_one_pass_a_layer():
    passes = []

    class Counted:
        def __iter__(self):
            passes.append(1)
            return iter(data())

    nk.recalibrate(Residual(), Counted(), sequential=True)
    assert len(passes) == 4


def test_only_settles_the_selected_layers():
    model = net()
    before = state(model[0])
    nk.recalibrate(model, data(), sequential=True, only="2")
    assert_unchanged(model[0], before)
    x = inputs(model, data())["2"]
    assert_statistics(model[2], x.mean(0), x.var(0))
