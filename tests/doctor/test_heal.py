"""What `fix` mends, and `assert_healthy`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.doctor.catalogue import catalogue
from normkit.doctor.examples import images, small_net


@pytest.mark.parametrize("code", ["NK101", "NK103", "NK104", "NK107", "NK108"])
def test_statistics_are_mended_on_a_copy_and_measured_again(code: str) -> None:
    model, batches, *_ = catalogue()[code].sick()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = nk.diagnose(model, batches)
    healed, healing = found.healing(model)
    assert not found.healthy
    assert nk.diagnose(healed, batches).healthy
    assert healing.left == 0
    assert all(treatment.done for treatment in healing.treatments)
    assert [t.after for t in healing.treatments] == [0.0] * len(healing.treatments)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) or bool(value.isnan().any())
    assert found.fix(model, inplace=True) is model
    assert nk.diagnose(model, batches).healthy


def test_settings_are_mended_as_the_fix_says() -> None:
    model = small_net().train()
    model[4].momentum = 0.99
    model[4].running_var.mul_(3)
    healed = nk.diagnose(model, images()).fix(model)
    assert healed[4].momentum == pytest.approx(0.01)
    assert nk.diagnose(healed, images()).healthy


def test_what_cannot_be_mended_is_named() -> None:
    model = small_net()
    with torch.no_grad():
        model[4].weight[0] = float("nan")
    found = nk.diagnose(model, images())
    _, healing = found.healing(model)
    assert healing.left > 0
    assert "not done: take an earlier checkpoint" in healing.table().text()


def test_notes_are_left_alone() -> None:
    model = small_net()
    model[4].num_batches_tracked.fill_(3)
    healed = nk.diagnose(model, images()).fix(model)
    assert healed[4].num_batches_tracked == 3


def test_assert_healthy() -> None:
    nk.testing.assert_healthy(small_net(), images())
    model = small_net()
    model[4].running_var.mul_(14)
    with pytest.raises(AssertionError, match="NK103"):
        nk.testing.assert_healthy(model, images())
    assert nk.testing.assert_healthy(model, images(), ignore={"NK103": "on purpose"}).healthy
    with pytest.raises(ValueError, match="ignore needs a reason for NK103"):
        nk.testing.assert_healthy(model, images(), ignore={"NK103": " "})
    with pytest.raises(AssertionError, match="'note'"):
        nk.testing.assert_healthy(small_net(), images(), fail_on="note")
    nk.testing.assert_healthy(nn.Linear(2, 2), [torch.zeros(1, 2)])
