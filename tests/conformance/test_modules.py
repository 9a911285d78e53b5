"""Every ModuleInfo sample and error input of a norm in torch.testing._internal, on our layers.

The samples are torch's, the checks are ours: results are compared with torch's layer in the same dtype and in float64.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.conformance.compare import DTYPES, assert_as_right_as_torch, quiet_import, randomize

common = quiet_import("torch.testing._internal.common_modules")
NAMES = [f"{family}Norm{d}d" for family in ("Batch", "Instance") for d in (1, 2, 3)] + [
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
]
INFO = {info.module_cls.__name__: info for info in common.module_db if info.module_cls.__name__ in NAMES}
MODES = {"train": True, "eval": False}
HALF = (torch.bfloat16, torch.float16)

each_layer = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_mode = pytest.mark.parametrize("training", MODES.values(), ids=MODES)
pytestmark = pytest.mark.filterwarnings("ignore:input's size at dim")


def samples(name: str, dtype: torch.dtype, training: bool) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """(constructor input, positional input, keyword input) of each sample that has an input."""
    torch.manual_seed(0)
    info = INFO[name]
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training):
        if sample.forward_input is not None:
            yield sample.constructor_input, sample.forward_input.args, sample.forward_input.kwargs


def layers(name: str, constructor: Any, dtype: torch.dtype, training: bool) -> tuple[nn.Module, nn.Module, nn.Module]:
    """(ours, torch's, torch's in float64) with equal state."""
    theirs = getattr(nn, name)(*constructor.args, **constructor.kwargs).to(dtype).train(training)
    randomize(theirs)
    ours = getattr(nk, name)(*constructor.args, **constructor.kwargs).to(dtype).train(training)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


def step(layer: nn.Module, args: tuple[Any, ...], grad_seed: int) -> list[Tensor]:
    """The output, the gradients and the buffers after one forward and backward."""
    x = args[0].detach().clone().requires_grad_()
    y = layer(x, *args[1:])
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(grad_seed)).to(args[0].dtype)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy.to(y.dtype))
    return [y, *gradients, *(b.clone() for n, b in layer.named_buffers() if n != "num_batches_tracked")]


@each_mode
@each_dtype
@each_layer
def test_three_steps_are_as_right_as_torch(name: str, dtype: torch.dtype, training: bool) -> None:
    seen = 0
    for constructor, args, kwargs in samples(name, dtype, training):
        seen += 1
        ours, theirs, truth = layers(name, constructor, dtype, training)
        args = (*args, *kwargs.values())
        for i in range(3):
            scaled = tuple(a * (i + 1) if isinstance(a, Tensor) else a for a in args)
            wide = tuple(a.double() if isinstance(a, Tensor) else a for a in scaled)
            results = [step(ours, scaled, i), step(theirs, scaled, i), step(truth, wide, i)]
            assert results[0][0].dtype == results[1][0].dtype
            for position, (a, b, c) in enumerate(zip(*results, strict=True)):
                assert_as_right_as_torch(a, b, c, f"{constructor.args}{constructor.kwargs} step {i} result {position}")
    assert seen > 0


@each_dtype
@each_layer
def test_state_and_repr_are_torchs(name: str, dtype: torch.dtype) -> None:
    for constructor, _, _ in samples(name, dtype, True):
        ours, theirs, _ = layers(name, constructor, dtype, True)
        assert repr(ours) == repr(theirs)
        mine, other = ours.state_dict(), theirs.state_dict()
        assert list(mine) == list(other)
        assert mine._metadata == other._metadata
        for key, value in other.items():
            assert mine[key].shape == value.shape
            wider = key.startswith("running") and dtype in HALF  # a deliberate difference
            assert mine[key].dtype == (torch.float32 if wider else value.dtype)


@each_mode
@each_layer
def test_copies_compute_the_same(name: str, training: bool) -> None:
    for constructor, args, kwargs in samples(name, torch.float32, training):
        layer = layers(name, constructor, torch.float32, training)[0]
        stream = io.BytesIO()
        torch.save(layer.state_dict(), stream)
        stream.seek(0)
        loaded = getattr(nk, name)(*constructor.args, **constructor.kwargs).train(training)
        loaded.load_state_dict(torch.load(stream, weights_only=True))
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded]
        expected = layer(*args, **kwargs)
        for made in copies:
            torch.testing.assert_close(made(*args, **kwargs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@each_dtype
@each_layer
def test_factory_arguments_reach_every_tensor(name: str, dtype: torch.dtype, device: str) -> None:
    for constructor, _, _ in samples(name, dtype, True):
        layer = getattr(nk, name)(*constructor.args, **constructor.kwargs, device=device, dtype=dtype)
        for key, value in layer.state_dict(keep_vars=True).items():
            assert value.device.type == device
            statistic = key.startswith("running") and dtype in HALF
            expected = torch.int64 if key == "num_batches_tracked" else torch.float32 if statistic else dtype
            assert value.dtype == expected, key


@each_mode
@each_layer
def test_strides_change_nothing_and_channels_last_stays(name: str, training: bool) -> None:
    for constructor, args, kwargs in samples(name, torch.float32, training):
        x = (*args, *kwargs.values())[0]
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        spread = torch.repeat_interleave(x, 2, dim=-1)[..., ::2]
        versions = [spread, x.to(memory_format=formats[x.dim()])] if x.dim() in formats else [spread]
        layer = layers(name, constructor, torch.float32, training)[0]
        expected = copy.deepcopy(layer)(x)
        for other in versions:
            y = copy.deepcopy(layer)(other)
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)  # sums in another order
        unbatched = name.startswith("Instance") and x.dim() == int(name[-2]) + 1
        if x.dim() in formats and name != "LayerNorm" and not unbatched:
            assert y.is_contiguous(memory_format=formats[x.dim()])


@each_layer
def test_errors_are_torchs(name: str) -> None:
    info = INFO[name]
    if info.module_error_inputs_func is None:
        pytest.skip("torch has no error inputs for it")
    for error in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        with pytest.raises(error.error_type, match=error.error_regex) as ours:
            attempt(getattr(nk, name), error.module_error_input)
        with pytest.raises(error.error_type) as theirs:
            attempt(getattr(nn, name), error.module_error_input)
        assert str(ours.value).split() == str(theirs.value).split()


def attempt(make: Any, sample: Any) -> None:
    """Build a layer and call it."""
    layer = make(*sample.constructor_input.args, **sample.constructor_input.kwargs)
    layer(*sample.forward_input.args, **sample.forward_input.kwargs)


@each_mode
@each_layer
def test_gradients_are_finite_differences(name: str, training: bool) -> None:
    for constructor, args, kwargs in samples(name, torch.float64, training):
        x = (*args, *kwargs.values())[0].detach().requires_grad_()
        layer = layers(name, constructor, torch.float64, training)[0]
        names, parameters = zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())

        def run(x: Tensor, *values: Tensor, layer: nn.Module = layer, names: tuple[str, ...] = names) -> Tensor:
            buffers = {key: value.clone() for key, value in layer.named_buffers()}
            return torch.func.functional_call(layer, {**dict(zip(names, values, strict=True)), **buffers}, (x,))

        if x.numel() and x.numel() < 300:
            assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
            assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)
