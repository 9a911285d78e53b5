"""Frozen batch norm: constant under train(), optimizers and recalibration, and it loads what others saved."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.tolerances import assert_same

CLASSES = {
    "1d": (nk.FrozenBatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    "2d": (nk.FrozenBatchNorm2d, nn.BatchNorm2d, (4, 3, 5, 5)),
    "3d": (nk.FrozenBatchNorm3d, nn.BatchNorm3d, (4, 3, 2, 5, 5)),
}
classes = pytest.mark.parametrize(("frozen", "batch", "shape"), CLASSES.values(), ids=CLASSES)


def trained(batch: type[nn.Module], shape: tuple[int, ...], **options: bool) -> nn.Module:
    layer = batch(3, EPS, MOMENTUM, **options)
    layer(3 * torch.randn(shape) + 1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


@classes
def test_it_computes_what_the_batch_norm_computes_in_evaluation_and_nothing_moves_it(
    frozen: type[nn.Module], batch: type[nn.Module], shape: tuple[int, ...]
) -> None:
    source, layer = trained(batch, shape), frozen(3, EPS)
    layer.load_state_dict(source.state_dict())
    x, before = torch.randn(shape), {k: v.clone() for k, v in layer.state_dict().items()}
    for training in (True, False):
        layer.train(training)
        torch.testing.assert_close(layer(x), source(x))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}], ids=str)
def test_absent_scale_and_shift_load_as_one_and_zero(options: dict[str, bool]) -> None:
    if options == {"affine": False}:
        source = trained(nn.BatchNorm2d, (4, 3, 5, 5), **options)
    else:
        source = trained(nk.BatchNorm2d, (4, 3, 5, 5), **options)
    layer = nk.FrozenBatchNorm2d(3, EPS)
    layer.load_state_dict(source.state_dict())
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(layer(x), source(x))


def torchvision_state() -> OrderedDict[str, Tensor]:
    """The four buffers, saved by a plain module of version 1."""
    module = nn.Module()
    for name in ("weight", "bias", "running_mean", "running_var"):
        module.register_buffer(name, torch.rand(3) + 0.5)
    return module.state_dict()


def test_it_loads_torchvisions_state_and_gives_the_same_values_back() -> None:
    state, layer = torchvision_state(), nk.FrozenBatchNorm2d(3)
    layer.load_state_dict(state)
    assert list(layer.state_dict()) == [*state, "num_batches_tracked"]
    for name, value in state.items():
        assert_same(layer.state_dict()[name], value, name)


def test_it_loads_detectron2s_oldest_files_without_statistics() -> None:
    """weight and bias alone, no version: the statistics are 0 and 1. A newer file without them is broken."""
    state = OrderedDict(weight=torch.rand(3), bias=torch.rand(3))
    layer = nk.FrozenBatchNorm2d(3)
    nn.init.constant_(layer.running_mean, 9.0)
    layer.load_state_dict(state)
    assert (layer.running_mean == 0).all()
    assert (layer.running_var == 1).all()
    state._metadata = OrderedDict({"": {"version": 3}})  # type: ignore[attr-defined]  # what state_dict() attaches
    with pytest.raises(RuntimeError, match=r'Missing key.*"running_mean", "running_var"'):
        nk.FrozenBatchNorm2d(3).load_state_dict(state)


def test_it_loads_detectron2s_newer_files_with_a_counter() -> None:
    state = torchvision_state()
    state["num_batches_tracked"] = torch.tensor(7)
    result = nk.FrozenBatchNorm2d(3).load_state_dict(state)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert "num_batches_tracked" in state  # the caller's dict stays as it was


def test_inside_a_model_keys_are_prefixed_and_a_missing_layer_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nk.FrozenBatchNorm2d(3, EPS))
    source = nn.Sequential(nn.Conv2d(3, 3, 1), trained(nn.BatchNorm2d, (4, 3, 5, 5)))
    model.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(x), source(x))
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.weight"):
        model.load_state_dict(nn.Sequential(nn.Conv2d(3, 3, 1)).state_dict())


def test_gradients_reach_the_input_and_the_residual_alone() -> None:
    layer = nk.FrozenBatchNorm2d(3, EPS, activation="relu")
    layer.load_state_dict(torchvision_state())
    x, residual = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    y = layer(x, residual)
    gradients = torch.autograd.grad(y.sum(), (x, residual))
    scale = (layer.weight / (layer.running_var + EPS).sqrt()).reshape(1, 3, 1, 1)
    torch.testing.assert_close(gradients[0], gradients[1] * scale)
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_one_value_an_empty_batch_and_a_mask_are_fine() -> None:
    layer = nk.FrozenBatchNorm1d(3, EPS)
    torch.testing.assert_close(layer(torch.ones(1, 3)), torch.ones(1, 3) / (1 + EPS) ** 0.5)
    assert layer(torch.ones(0, 3)).shape == (0, 3)
    mask = torch.tensor([[True, False]])
    assert (layer(torch.full((1, 3, 2), float("nan")).nan_to_num(1.0), mask=mask)[..., 1] == 0).all()


def test_half_precision_keeps_float32_statistics() -> None:
    layer = nk.FrozenBatchNorm2d(3).half()
    assert layer.weight.dtype == torch.float16
    assert layer.running_var.dtype == torch.float32
    assert layer(torch.randn(2, 3, 4, 4).half()).dtype == torch.float16


def test_it_is_no_batch_norm_copies_and_shows_itself_as_torchvisions() -> None:
    layer = nk.FrozenBatchNorm2d(64)
    assert not isinstance(layer, nn.modules.batchnorm._BatchNorm)  # helpers that reset statistics pass it by
    assert repr(layer) == "FrozenBatchNorm2d(64, eps=1e-05)"
    assert repr(nk.FrozenBatchNorm1d(4, activation="relu")) == "FrozenBatchNorm1d(4, eps=1e-05, activation='relu')"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.num_features == 64
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D input\)"):
        layer(torch.ones(2, 64, 3))
