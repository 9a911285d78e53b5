"""`recalibrate` and `diagnose` take the lengths of a block that they are called in, or that their `forward` enters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.padding.models import NORMS, batch, randomized, tcn, together, twins
from tests.tolerances import assert_equal64

LENGTHS = [[20, 11, 15, 7], [13, 20, 9, 16]]


def batches() -> list[tuple[Tensor, list[int]]]:
    return [(batch((4, 3, 20), lengths, -1, junk=3.0, seed=seed), lengths) for seed, lengths in enumerate(LENGTHS)]


def by_lengths(model: nn.Module, given: Any) -> Tensor:
    x, lengths = given
    with nk.lengths(lengths):
        return model(x)


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "normkit"])
def test_recalibrate_counts_real_values_alone(ours: bool) -> None:
    model, truth = twins(randomized(tcn(NORMS["batch"])).eval())
    model = nk.convert(model, "batch") if ours else model
    (x, lengths), _ = batches()
    for norm in (layer for layer in truth.modules() if isinstance(layer, nn.BatchNorm1d)):
        norm.momentum = 1.0
    together(
        truth.train(), [x[n : n + 1, :, :length] for n, length in enumerate(lengths)], lambda model, one: model(one)
    )
    with nk.lengths(lengths):
        report = nk.recalibrate(model, [x], progress=False)
    for (name, buffer), other in zip(model.named_buffers(), truth.buffers(), strict=True):
        if "num_batches" not in name:
            assert_equal64(buffer, other, name)
    assert all(layer.values == sum(lengths) for layer in report.layers)


def test_recalibrate_takes_lengths_from_the_batches() -> None:
    model = randomized(nn.Sequential(nn.BatchNorm1d(3))).eval()
    nk.recalibrate(model, batches(), forward=by_lengths, progress=False)
    real = torch.cat([x[n, :, :length] for x, lengths in batches() for n, length in enumerate(lengths)], 1)
    assert_equal64(model[0].running_mean, real.mean(1))
    assert_equal64(model[0].running_var, real.var(1))


def test_the_doctor_judges_by_real_values() -> None:
    """Padding moves what a norm sees; inside of the block the statistics of real values are right, and nothing is
    wrong with them."""
    model = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3, padding=1), nn.BatchNorm1d(4)).eval()
    given = []
    for seed in range(4):
        lengths = torch.randint(5, 37, (16,), generator=torch.Generator().manual_seed(seed)).tolist()
        given.append((batch((16, 8, 40), lengths, -1, seed=seed).float() + 1, lengths))
    for x, lengths in given:
        x.mul_(nk.mask_from_lengths(lengths, 40).unsqueeze(1))
    nk.recalibrate(model, given, forward=by_lengths, progress=False)
    plain = nk.diagnose(model, given, forward=lambda model, one: model(one[0]))
    followed = nk.diagnose(model, given, forward=by_lengths)
    assert "NK111" in {finding.code for finding in plain.findings}
    assert not {finding.code for finding in followed.findings} & {"NK001", "NK111"}
    assert [finding for finding in followed.findings if finding.severity == "error"] == []
    assert [finding for finding in plain.findings if finding.severity == "error"]
    (x, lengths), *_ = given
    with nk.lengths(lengths):
        inside = nk.diagnose(model, [x])
    assert not {finding.code for finding in inside.findings} & {"NK001", "NK111"}
