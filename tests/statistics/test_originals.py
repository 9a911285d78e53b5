"""The defects of torch's update_bn and fvcore's precise_bn and what recalibrate does in their place."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import normkit as nk
from tests.cases import generator
from tests.statistics.nets import assert_unchanged, data, net, state


def clustered() -> list[torch.Tensor]:
    """Batches of 2 around centres of variance 9, so 10 in all and 1 inside a batch."""
    g = generator(3)
    return list((3 * torch.randn(500, 1, 1, generator=g) + torch.randn(500, 2, 1, generator=g)).unbind())


def test_update_bn_unfreezes_layers_in_eval_mode():
    def frozen_first() -> nn.Sequential:
        model = net().train()
        model[0].eval()
        return model

    theirs, ours = frozen_first(), frozen_first()
    before = state(ours[0])
    update_bn(data(), theirs)
    nk.recalibrate(ours, data())
    assert not torch.equal(theirs[0].running_mean, before["running_mean"])
    assert_unchanged(ours[0], before)


def test_update_bn_averages_the_variances_of_batches():
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    update_bn(clustered(), theirs)
    nk.recalibrate(ours, clustered())
    truth = torch.cat(clustered()).var()
    assert theirs.running_var < 0.2 * truth
    torch.testing.assert_close(ours.running_var, truth.reshape(1), rtol=1e-6, atol=0)


def test_update_bn_dies_on_a_last_batch_of_one_and_leaves_momentum_none():
    theirs, ours = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    g = generator()
    batches = [torch.randn(n, 3, generator=g) for n in (8, 8, 1)]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        update_bn(batches, theirs)
    assert theirs.momentum is None
    nk.recalibrate(ours, batches)
    assert ours.momentum == 0.1
    torch.testing.assert_close(ours.running_var, torch.cat(batches).var(0), rtol=1e-6, atol=0)


def test_update_bn_counts_a_small_batch_as_much_as_a_large_one():
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    batches = [torch.zeros(98, 1), torch.full((2, 1), 10.0)]
    update_bn(batches, theirs)
    nk.recalibrate(ours, batches)
    assert theirs.running_mean == 5.0
    torch.testing.assert_close(ours.running_mean, torch.tensor([0.2]))


def test_update_bn_measures_under_dropout():
    def model() -> nn.Sequential:
        return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1))

    theirs, ours = model(), model()
    batches = [torch.ones(500, 1), -torch.ones(500, 1)]
    update_bn(batches, theirs)
    nk.recalibrate(ours, batches)
    assert theirs[1].running_var > 0.9  # 1 kept or doubled: the variance of dropout alone
    torch.testing.assert_close(ours[1].running_var, torch.tensor([1000 / 999]))


def test_update_bn_poisons_the_statistics_with_one_inf():
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    batches = [torch.randn(8, 1, generator=generator()), torch.full((8, 1), torch.inf)]
    update_bn(batches, theirs)
    with pytest.warns(RuntimeWarning, match="skipped 1 calls"):
        nk.recalibrate(ours, batches)
    assert not theirs.running_var.isfinite()
    assert ours.running_var.isfinite()


def fvcore() -> ModuleType:
    """fvcore's precise_bn.py by itself: its package imports much that is not needed here."""
    package = importlib.util.find_spec("fvcore")
    if package is None or importlib.util.find_spec("tqdm") is None:
        pytest.skip("fvcore and tqdm are not installed (pip install --no-deps fvcore)")
    path = Path(next(iter(package.submodule_search_locations or []))) / "nn" / "precise_bn.py"
    spec = importlib.util.spec_from_file_location("fvcore_precise_bn", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fvcore_gives_a_negative_variance_at_mean_far_above_std():
    g = generator()
    batches = [3000 + 0.01 * torch.randn(16, 1, generator=g) for _ in range(8)]
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    fvcore().update_bn_stats(theirs, batches, num_iters=8)
    nk.recalibrate(ours, batches)
    truth = torch.cat(batches).double().var()
    assert abs(theirs.running_var.item() - truth) > 10 * truth
    assert ours.running_var.item() == pytest.approx(truth.item(), rel=5e-7)


def test_fvcore_zeroes_a_layer_that_no_batch_reaches():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    theirs, ours = Unused(), Unused()
    batches = clustered()[:4]
    fvcore().update_bn_stats(theirs, batches, num_iters=4)
    report = nk.recalibrate(ours, batches)
    assert theirs.unused.running_var == 0
    assert ours.unused.running_var == 1
    assert report.unreached == ("unused",)


def test_fvcore_leaves_momentum_and_a_hook_behind_after_a_short_loader():
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    batches = clustered()[:4]
    with pytest.raises(AssertionError):
        fvcore().update_bn_stats(theirs, batches, num_iters=200)
    nk.recalibrate(ours, batches, steps=200)
    assert (theirs.momentum, len(theirs._forward_pre_hooks)) == (1.0, 1)
    assert (ours.momentum, len(ours._forward_pre_hooks)) == (0.1, 0)


def test_fvcore_puts_other_buffers_in_place_of_the_models():
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    their_buffer, our_buffer = theirs.running_mean, ours.running_mean
    batches = clustered()[:4]
    fvcore().update_bn_stats(theirs, batches, num_iters=4)
    nk.recalibrate(ours, batches)
    assert theirs.running_mean is not their_buffer
    assert ours.running_mean is our_buffer


def test_fvcore_refuses_a_shared_layer():
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    batches = clustered()[:4]
    with pytest.raises(AssertionError, match="reused"):
        fvcore().update_bn_stats(nn.Sequential(theirs, theirs), batches, num_iters=4)
    assert nk.recalibrate(nn.Sequential(ours, ours), batches)["0"].calls == 8
