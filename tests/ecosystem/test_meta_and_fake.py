"""Tensors without memory: the meta device and fake tensors give shapes, dtypes and strides as real ones have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import normkit as nk
from tests.ecosystem.nets import OURS, assert_same_state, net

SHAPE = (4, 8, 6, 5)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm2d(8, activation="relu"),
    "batch, cumulative": lambda: nk.BatchNorm2d(8, momentum=None),
    "frozen": lambda: nk.FrozenBatchNorm2d(8),
    "ghost": lambda: nk.GhostBatchNorm2d(8, virtual_batch_size=3),
    "renorm": lambda: nk.BatchRenorm2d(8),
    "sync": lambda: nk.SyncBatchNorm(8),
    "group": lambda: nk.GroupNorm(2, 8, activation="silu"),
    "instance": lambda: nk.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "layer": lambda: nk.LayerNorm(5),
    "layer2d": lambda: nk.LayerNorm2d(8),
    "rms": lambda: nk.RMSNorm(5),
}
RESIDUAL = ("batch", "frozen", "group", "instance")
MASKED = ("batch", "ghost", "renorm", "sync", "instance", "group")


@contextmanager
def meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


MODES: dict[str, Callable[[], Any]] = {"meta": meta, "fake": FakeTensorMode}


def step(make: Callable[[], nn.Module], training: bool, layout: torch.memory_format, **extra: bool) -> list[Tensor]:
    """Output, gradients and buffers of one call, made and called under whatever surrounds it."""
    layer = make().train(training)
    x = torch.empty(SHAPE).contiguous(memory_format=layout).normal_().requires_grad_()
    given = {}
    if extra.get("residual"):
        given["residual"] = torch.ones_like(x)
    if extra.get("mask"):
        given["mask"] = torch.ones(4, 1, 6, 5, dtype=torch.bool)
    y = layer(x, **given)
    y.sum().backward()
    return [y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]


def facts(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors]


CASES = [
    *((name, {}) for name in LAYERS),
    *((name, {"residual": True}) for name in RESIDUAL),
    *((name, {"mask": True}) for name in MASKED),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("name", "extra"), CASES, ids=[" ".join([name, *extra]) for name, extra in CASES])
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_without_memory_gives_the_facts_of_a_real_one(
    mode: str, name: str, extra: dict[str, bool], training: bool, layout: torch.memory_format
) -> None:
    real = step(LAYERS[name], training, layout, **extra)
    with MODES[mode]():
        found = step(LAYERS[name], training, layout, **extra)
    assert all(isinstance(tensor, FakeTensor) if mode == "fake" else tensor.is_meta for tensor in found)
    assert facts(found) == facts(real)


@pytest.mark.parametrize("name", OURS)
def test_a_model_made_fake_for_an_estimate(name: str) -> None:
    """As memory estimators do: a real model, its tensors converted, run forward and backward."""
    model, mode = OURS[name](), FakeTensorMode()
    expected = model.state_dict()
    x = mode.from_tensor(torch.randn(2, 3, 6, 6))
    given = {key: mode.from_tensor(value) for key, value in expected.items()}
    with mode:
        y = torch.func.functional_call(model, given, (x,))
    assert isinstance(y, FakeTensor)
    assert y.shape == (2, 4)
    assert model.state_dict().keys() == expected.keys()
    assert not any(isinstance(value, FakeTensor) for value in model.state_dict().values())


@pytest.mark.parametrize("assign", [True, False], ids=["assigned", "copied"])
def test_made_on_meta_and_filled(assign: bool) -> None:
    with torch.device("meta"):
        model = net(nk)
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(net(nn).state_dict(), assign=assign)
    assert_same_state(model, net(nn))
    torch.testing.assert_close(model.eval()(torch.ones(2, 3, 6, 6)), net(nn).eval()(torch.ones(2, 3, 6, 6)))


@pytest.mark.parametrize("kit", [nn, nk], ids=["torch", "ours"])
def test_surgery_on_meta_then_filled(kit: Any) -> None:
    with torch.device("meta"):
        model = net(kit)
    for changed in (nk.convert(model, "batch", only="bn*"), nk.freeze(model), nk.convert(model, "torch")):
        assert all(tensor.is_meta for tensor in changed.state_dict().values())
        whole = net(nn)
        changed.load_state_dict(whole.state_dict(), assign=True)
        torch.testing.assert_close(changed.eval()(torch.ones(2, 3, 6, 6)), whole.eval()(torch.ones(2, 3, 6, 6)))


def test_statistics_of_a_model_on_meta_are_refused_with_the_reason() -> None:
    with torch.device("meta"):
        model = net(nk)
    with pytest.raises(RuntimeError, match="meta"):
        nk.recalibrate(model, [torch.ones(2, 3, 6, 6)])


def test_lengths_without_values_make_a_mask() -> None:
    with FakeTensorMode():
        mask = nk.mask_from_lengths(torch.tensor([2, 3]), 5)
    assert mask.shape == (2, 5)
