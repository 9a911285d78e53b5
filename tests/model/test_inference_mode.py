"""What changes a model inside of torch.inference_mode gives one that can be trained; what writes into one that was made
there can."""

import copy

import pytest
import torch
from torch import nn

import normkit as nk
from tests.surgery.models import close, outputs, randomized

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomized(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4))
        ).eval()


OPERATIONS = {
    "accelerate": lambda model, inplace: nk.accelerate(model, X, inplace=inplace),
    "convert": lambda model, inplace: nk.convert(model, "batch", example_inputs=X, inplace=inplace),
    "freeze": lambda model, inplace: nk.freeze(model, inplace=inplace),
    "unfreeze": lambda model, inplace: nk.unfreeze(nk.freeze(model), inplace=inplace),
    "fold": lambda model, inplace: nk.fold(model, X, inplace=inplace),
}


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_comes_out_is_what_comes_out_outside_and_can_be_trained(operation, inplace) -> None:
    expected, model = operation(net(), inplace), net()
    with torch.inference_mode():
        result = operation(model, inplace)
        assert torch.is_inference_mode_enabled()
    assert nk.changes(result).entries == nk.changes(expected).entries
    assert not any(tensor.is_inference() for tensor in (*result.parameters(), *result.buffers()))
    for model in (result, expected):
        model.train()(X).sum().backward()
    close(outputs(result.eval(), X), outputs(expected.eval(), X), 1e-5)


def test_recalibrate_writes_statistics_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = copy.deepcopy(net())
    assert model[1].running_var.is_inference()
    expected = net()
    for one in (model, expected):
        assert nk.recalibrate(one, [X])["1"].action == "recalibrated"
    assert torch.equal(model[1].running_var, expected[1].running_var)


def test_load_norm_state_writes_a_model_made_in_inference_mode() -> None:
    values = {
        f"norm/{name}": torch.rand(4).numpy() + 0.5 for name in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    with torch.inference_mode():
        model = nn.Sequential(nn.BatchNorm2d(4))
    nk.load_norm_state(model, values, "keras", names={"0": "norm"}, eps=1e-3, momentum=0.99)
    assert torch.equal(model[0].running_mean, torch.from_numpy(values["norm/moving_mean"]))
