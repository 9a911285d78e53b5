"""What code that was written for torch.nn relies on: signatures, types, state_dict in all its ages, devices, errors."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.conformance.compare import randomize

# name -> (constructor arguments, input shape)
LAYERS: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "BatchNorm1d": ((6,), (4, 6, 5)),
    "BatchNorm2d": ((6,), (4, 6, 5, 3)),
    "BatchNorm3d": ((6,), (4, 6, 2, 3, 3)),
    "InstanceNorm1d": ((6,), (4, 6, 5)),
    "InstanceNorm2d": ((6,), (4, 6, 5, 3)),
    "InstanceNorm3d": ((6,), (4, 6, 2, 3, 3)),
    "GroupNorm": ((3, 6), (4, 6, 5)),
    "LayerNorm": ((6,), (4, 5, 6)),
    "RMSNorm": ((6,), (4, 5, 6)),
}
LAZY = {f"Lazy{name}": (name, case[1]) for name, case in LAYERS.items() if name[-1] == "d"}
TRACKED = [name for name in LAYERS if name[-1] == "d"]

each_layer = pytest.mark.parametrize("name", LAYERS)
each_tracked = pytest.mark.parametrize("name", TRACKED)
each_lazy = pytest.mark.parametrize("name", LAZY)
lazy_warning = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


def asked(name: str) -> dict[str, Any]:
    """Options that are nobody's default, and affine parameters and statistics where a layer has them if asked."""
    tracked = {"momentum": MOMENTUM, "affine": True, "track_running_stats": True}
    return {"eps": EPS, **(tracked if name in TRACKED else {})}


def pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """(ours, torch's), affine and tracked where the family can be, with equal and telling state."""
    options = {**asked(name), **options}
    theirs = getattr(nn, name)(*LAYERS[name][0], **options)
    randomize(theirs)
    ours = getattr(nk, name)(*LAYERS[name][0], **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def example(name: str) -> torch.Tensor:
    return torch.randn(LAYERS[name][1], generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", [*LAYERS, *LAZY])
def test_the_constructor_is_torchs_with_keyword_only_extras(name: str) -> None:
    ours = inspect.signature(getattr(nk, name)).parameters.values()
    theirs = {p.name: p for p in inspect.signature(getattr(nn, name)).parameters.values()}
    shared = [(p.name, p.default, p.kind) for p in ours if p.name in theirs]
    assert shared == [(p.name, p.default, p.kind) for p in theirs.values()]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in ours if p.name not in theirs)


@each_layer
def test_it_is_an_instance_of_torchs_class(name: str) -> None:
    ours, theirs = pair(name)
    for base in type(theirs).__mro__:
        assert isinstance(ours, base)


@each_layer
def test_state_dicts_load_both_ways(name: str) -> None:
    ours, theirs = pair(name)
    x = example(name)
    ours(x)
    back = getattr(nn, name)(*LAYERS[name][0], **asked(name))
    back.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(back.eval()(x), ours.eval()(x))
    torch.testing.assert_close(pair(name)[0].eval()(x), theirs.eval()(x))


@each_tracked
def test_a_version_1_dict_may_lack_the_counter_and_a_version_2_dict_may_not(name: str) -> None:
    ours, _ = pair(name)
    state = copy.deepcopy(ours.state_dict())
    del state["num_batches_tracked"]
    with pytest.raises(RuntimeError, match=r"Missing key.*num_batches_tracked"):
        ours.load_state_dict(state)
    state._metadata[""]["version"] = 1
    ours.load_state_dict(state, strict=True)
    assert ours.num_batches_tracked == 0


def test_an_old_instance_norm_dict_with_statistics_is_refused_as_by_torch() -> None:
    state = nk.InstanceNorm1d(6, affine=True, track_running_stats=True).state_dict()
    del state._metadata
    with pytest.raises(RuntimeError, match="Unexpected running stats buffer"):
        nk.InstanceNorm1d(6, affine=True).load_state_dict(state)


@each_tracked
def test_loading_keeps_the_buffers_objects(name: str) -> None:
    ours, theirs = pair(name)
    before = {key: value.data_ptr() for key, value in ours.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    ours(example(name))
    assert {key: value.data_ptr() for key, value in ours.state_dict().items()} == before


@each_tracked
def test_assigned_half_statistics_become_float32(name: str) -> None:
    half = {
        key: value.half() if value.is_floating_point() else value for key, value in pair(name)[1].state_dict().items()
    }
    ours = getattr(nk, name)(*LAYERS[name][0], affine=True, track_running_stats=True)
    ours.load_state_dict(half, assign=True)
    assert ours.weight.dtype == torch.float16
    assert ours.running_mean.dtype == ours.running_var.dtype == torch.float32


@each_tracked
@pytest.mark.parametrize("cast", ["half", "bfloat16", "to", "dtype", "default"])
def test_statistics_stay_float32_through_every_door(name: str, cast: str) -> None:
    ours, _ = pair(name)
    expected = ours.running_mean.clone()
    if cast == "to":
        ours.to(torch.bfloat16)
    elif cast == "dtype":
        ours = getattr(nk, name)(6, affine=True, track_running_stats=True, dtype=torch.float16)
    elif cast == "default":
        torch.set_default_dtype(torch.float16)
        try:
            ours = getattr(nk, name)(6, affine=True, track_running_stats=True)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        getattr(ours, cast)()
    assert ours.running_mean.dtype == ours.running_var.dtype == torch.float32
    assert ours.weight.dtype in (torch.float16, torch.bfloat16)
    assert ours.num_batches_tracked.dtype == torch.int64
    if cast in ("half", "bfloat16", "to"):
        assert torch.equal(ours.running_mean, expected)  # no round trip through the narrow dtype


@each_layer
def test_double_widens_everything(name: str) -> None:
    ours, _ = pair(name)
    assert all(v.dtype in (torch.float64, torch.int64) for v in ours.double().state_dict().values())
    assert ours(example(name).double()).dtype == torch.float64


@each_layer
def test_a_meta_layer_gets_memory_by_to_empty(name: str) -> None:
    ours, theirs = pair(name)
    meta = getattr(nk, name)(*LAYERS[name][0], device="meta", **asked(name))
    assert meta(example(name).to("meta")).shape == LAYERS[name][1]
    meta.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    x = example(name)
    torch.testing.assert_close(meta.eval()(x), ours.eval()(x), rtol=0, atol=0)


@each_layer
def test_shared_memory_copies_and_files_keep_the_layer(name: str) -> None:
    ours, _ = pair(name)
    stream = io.BytesIO()
    torch.save(ours, stream)
    stream.seek(0)
    x = example(name)
    shared = copy.deepcopy(ours).share_memory()
    assert all(v.is_shared() for v in shared.state_dict().values())
    copies = [shared, torch.load(stream, weights_only=False), pickle.loads(pickle.dumps(ours)), copy.copy(ours)]
    expected = ours.eval()(x)
    for made in copies:
        assert type(made) is type(ours)
        assert torch.equal(made.eval()(x), expected)


@each_layer
def test_an_activation_and_its_repr_survive_a_pickle(name: str) -> None:
    layer = getattr(nk, name)(*LAYERS[name][0], EPS, activation="relu")
    made = pickle.loads(pickle.dumps(layer))
    assert repr(made) == repr(layer)
    assert repr(layer).endswith("activation='relu')")
    assert made(example(name)).min() == 0


@each_layer
def test_an_unknown_activation_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="activation 'rleu' is not known"):
        getattr(nk, name)(*LAYERS[name][0], activation="rleu")


@each_layer
def test_script_is_refused_with_the_ways_out(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"torch\.export or torch\.jit\.trace"):
        torch.jit.script(pair(name)[0])


@lazy_warning
@each_lazy
def test_a_lazy_layer_becomes_the_plain_one_of_ours(name: str) -> None:
    plain, shape = LAZY[name]
    layer = getattr(nk, name)(EPS, MOMENTUM, activation="relu")
    assert isinstance(layer, getattr(nn, name))
    x = torch.randn(shape)
    y = layer(x)
    assert type(layer) is getattr(nk, plain)
    assert (y.shape, layer.num_features, layer.activation) == (x.shape, shape[1], "relu")
    expected = getattr(nk, plain)(shape[1], activation="relu", **asked(plain))
    torch.testing.assert_close(y, expected(x), rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), expected.state_dict(), rtol=0, atol=0)


@lazy_warning
@each_lazy
def test_a_half_lazy_layer_has_float32_statistics(name: str) -> None:
    x = torch.randn(LAZY[name][1]).half()
    for layer in (getattr(nk, name)(dtype=torch.float16), getattr(nk, name)().half()):
        layer(x)
        assert layer.weight.dtype == torch.float16
        assert layer.running_var.dtype == torch.float32


@lazy_warning
@each_lazy
def test_a_lazy_layer_takes_a_plain_state_dict(name: str) -> None:
    plain, shape = LAZY[name]
    ours, theirs = getattr(nk, name)(EPS, MOMENTUM), pair(plain)[1]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert repr(ours) == repr(theirs)


@each_layer
@pytest.mark.parametrize("which", ["input", "gradient", "both"])
def test_values_that_torch_has_yet_to_negate_are_read_as_such(name: str, which: str) -> None:
    def gradients(x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        layer = pair(name)[0]
        x.requires_grad_()
        y = layer(x)
        return y, *torch.autograd.grad(y, (x, *layer.parameters()), dy)

    def lazily(t: torch.Tensor, lazy: bool) -> torch.Tensor:
        return torch._neg_view(-t) if lazy else t  # what a conjugate's imaginary part is, and contiguous

    x, dy = example(name), example(name).flip(0)
    expected = gradients(x, dy)
    found = gradients(lazily(x.detach(), which != "gradient"), lazily(dy, which != "input"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each_tracked
def test_wrong_ranks_raise_torchs_error(name: str) -> None:
    ours, theirs = pair(name)
    for rank in range(1, 7):
        x = torch.randn((6,) * rank)
        assert error_of(ours, x) == error_of(theirs, x)


def error_of(layer: nn.Module, x: torch.Tensor) -> str | None:
    """The text of the ValueError that the layer raises, or None."""
    try:
        layer(x)
    except ValueError as error:
        return str(error)
    return None


CALLS: dict[str, Any] = {
    "layer_norm_shape": lambda f: f.layer_norm(torch.ones(2, 3), [5]),
    "layer_norm_empty_shape": lambda f: f.layer_norm(torch.ones(2, 3), []),
    "layer_norm_weight": lambda f: f.layer_norm(torch.ones(2, 3), [3], torch.ones(2)),
    "layer_norm_bias": lambda f: f.layer_norm(torch.ones(2, 3), [3], None, torch.ones(2)),
    "layer_norm_scalar": lambda f: f.layer_norm(torch.tensor(1.0), [1]),
    "layer_norm_long": lambda f: f.layer_norm(torch.ones(2, 3).long(), [3]),
    "rms_norm_shape": lambda f: f.rms_norm(torch.ones(2, 3, 4), [3, 5]),
    "rms_norm_weight": lambda f: f.rms_norm(torch.ones(2, 3), [3], torch.ones(4)),
    "rms_norm_long": lambda f: f.rms_norm(torch.ones(2, 3).long(), [3]),
    "instance_norm_one_position": lambda f: f.instance_norm(torch.ones(2, 3, 1)),
    "instance_norm_no_statistics": lambda f: f.instance_norm(torch.ones(2, 3, 4), use_input_stats=False),
    "instance_norm_one_statistic": lambda f: f.instance_norm(torch.ones(2, 3, 4), torch.ones(3)),
    "instance_norm_mean": lambda f: f.instance_norm(torch.ones(2, 3, 4), torch.ones(4), torch.ones(4)),
    "instance_norm_weight": lambda f: f.instance_norm(torch.ones(2, 3, 4), weight=torch.ones(2)),
    "instance_norm_long": lambda f: f.instance_norm(torch.ones(2, 3, 4).long()),
    "group_norm_groups": lambda f: f.group_norm(torch.ones(2, 5, 4), 2),
    "group_norm_weight": lambda f: f.group_norm(torch.ones(2, 4, 4), 2, torch.ones(2)),
    "group_norm_rank": lambda f: f.group_norm(torch.ones(4), 2),
    "group_norm_one_value": lambda f: f.group_norm(torch.ones(1, 4), 4),
    "batch_norm_one_value": lambda f: f.batch_norm(torch.ones(1, 4), None, None, training=True),
    "batch_norm_no_statistics": lambda f: f.batch_norm(torch.ones(2, 4), None, None),
    "batch_norm_mean": lambda f: f.batch_norm(torch.ones(2, 4), torch.ones(3), torch.ones(3)),
    "batch_norm_eps": lambda f: f.batch_norm(torch.ones(2, 4), None, None, training=True, eps=0.0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_wrong_calls_raise_torchs_error(call: Any) -> None:
    try:
        call(nn.functional)
    except (ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError, and in 2.4 it is that
        expected = error
    else:
        pytest.skip(f"torch {torch.__version__} takes it")
    with pytest.raises((ValueError, RuntimeError)) as caught:
        call(nk.functional)
    assert isinstance(caught.value, type(expected))
    assert str(caught.value) == str(expected)
