"""A frozen layer's checkpoint is a batch norm's: strictly, both ways, on every road a state comes in."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit._torch import make_norm
from tests.surgery.foreign import library
from tests.surgery.lookalikes import FrozenBN

FORMS: dict[str, Callable[[], nn.Module]] = {
    "torch 1d": lambda: nn.BatchNorm1d(5),
    "torch 2d": lambda: nn.BatchNorm2d(5),
    "torch 3d": lambda: nn.BatchNorm3d(5),
    "torch affine=False": lambda: nn.BatchNorm2d(5, affine=False),
    "torch bias=False": lambda: make_norm(nn.BatchNorm2d, 5, bias=False),
    "torch sync": lambda: nn.SyncBatchNorm(5),
    "ours": lambda: nk.BatchNorm2d(5),
    "ours affine=False": lambda: nk.BatchNorm2d(5, affine=False),
    "ours bias=False": lambda: nk.BatchNorm2d(5, bias=False),
    "ghost": lambda: nk.GhostBatchNorm2d(5),
    "renorm": lambda: nk.BatchRenorm2d(5),
}
forms = pytest.mark.parametrize("norm", FORMS.values(), ids=FORMS)


def filled(norm: nn.Module, seed: int = 0) -> nn.Module:
    """`norm` with random state and a counter of 11."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.fill_(11)
    return norm


def net(norm: nn.Module) -> nn.Sequential:
    convs = {"1d": nn.Conv1d, "3d": nn.Conv3d}
    return nn.Sequential(convs.get(type(norm).__name__[-2:], nn.Conv2d)(3, 5, 1), norm)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@forms
def test_a_frozen_models_checkpoint_loads_into_the_plain_model_and_back(norm: Callable[[], nn.Module]) -> None:
    plain = net(filled(norm()))
    saved = nk.freeze(plain).state_dict()
    assert_equal(saved, plain.state_dict())
    other = net(filled(norm(), seed=1))
    other.load_state_dict(saved, strict=True)
    assert_equal(other.state_dict(), saved)
    back = nk.freeze(net(filled(norm(), seed=2)))
    back.load_state_dict(other.state_dict(), strict=True)
    assert_equal(back.state_dict(), saved)
    assert_equal(nk.unfreeze(back).state_dict(), saved)  # the counter that was loaded included


@forms
def test_a_fresh_frozen_layer_takes_the_form_of_what_it_loads(norm: Callable[[], nn.Module]) -> None:
    source = filled(norm())
    frozen = nk.FrozenBatchNorm2d(5)
    frozen.load_state_dict(source.state_dict(), strict=True)
    filled(norm(), seed=1).load_state_dict(frozen.state_dict(), strict=True)
    assert_equal(dict(sorted(frozen.state_dict().items())), dict(sorted(source.state_dict().items())))
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert_equal(twin.state_dict(), frozen.state_dict())


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}], ids=str)
def test_a_layer_without_scale_or_shift_computes_shows_and_refuses_as_such(options: dict[str, bool]) -> None:
    plain, layer = filled(nk.BatchNorm2d(5, eps=1e-2, **options)), nk.FrozenBatchNorm2d(5, eps=1e-2, **options)
    layer.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(layer.train()(x), plain.eval()(x))
    assert repr(layer).endswith(f", {next(iter(options))}=False)")
    whole = filled(nk.FrozenBatchNorm2d(5)).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        layer.load_state_dict(whole)
    for name, value in {"weight": 1, "bias": 0}.items():  # as older files hold it
        whole[name].fill_(value)
    layer.load_state_dict(whole if options == {"affine": False} else {**whole, "weight": plain.weight})
    assert layer.bias is None


@pytest.mark.parametrize("names", [["running_mean"], ["running_mean", "running_var"], ["weight"], ["bias"]], ids=str)
def test_what_a_partial_state_lacks_is_left_as_it_was(names: list[str]) -> None:
    layer, given = filled(nk.FrozenBatchNorm2d(5)), dict.fromkeys(names, torch.ones(5))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict(given, strict=False)
    assert_equal(layer.state_dict(), {**before, **given})


def test_a_file_in_parts_loads_wherever_it_is_cut() -> None:
    source = filled(nn.BatchNorm2d(5)).state_dict()
    for cut in range(1, len(source)):
        for names in (sorted(source), sorted(source, reverse=True)):
            layer = nk.FrozenBatchNorm2d(5)
            for part in (names[:cut], names[cut:]):
                layer.load_state_dict({name: source[name] for name in part}, strict=False)
            assert_equal(dict(sorted(layer.state_dict().items())), dict(sorted(source.items())))


def test_a_pickle_of_the_former_form_loads() -> None:
    layer = nk.FrozenBatchNorm2d(5)
    del layer._buffers["num_batches_tracked"], layer.__dict__["_holds"]
    twin = copy.deepcopy(layer)
    twin.load_state_dict(nn.BatchNorm2d(5).state_dict(), strict=True)
    nn.BatchNorm2d(5).load_state_dict(twin.state_dict(), strict=True)


def test_a_scale_is_not_dropped_for_a_file_that_has_none() -> None:
    layer = filled(nk.FrozenBatchNorm2d(5))
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight", "bias"'):
        layer.load_state_dict(nn.BatchNorm2d(5, affine=False).state_dict())


def test_torchvisions_layer_and_ours_load_each_other() -> None:
    theirs = filled(library("torchvision").ops.FrozenBatchNorm2d(5))
    ours = filled(nk.FrozenBatchNorm2d(5), seed=1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.num_batches_tracked == 11  # theirs counts nothing: ours stays
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    other = filled(library("torchvision").ops.FrozenBatchNorm2d(5), seed=2)
    other.load_state_dict(ours.state_dict(), strict=True)
    assert_equal(other.state_dict(), theirs.state_dict())


def test_a_file_of_the_former_form_loads() -> None:
    """Four tensors and version 3, which is what the frozen layer saved before it carried the counter."""
    state: OrderedDict[str, Tensor] = OrderedDict(filled(nk.FrozenBatchNorm2d(5)).state_dict())
    del state["num_batches_tracked"]
    state._metadata = OrderedDict({"": {"version": 3}})  # type: ignore[attr-defined]  # what state_dict() attaches
    layer = nk.FrozenBatchNorm2d(5)
    layer.load_state_dict(state, strict=True)
    assert torch.equal(layer.running_var, state["running_var"])
    assert layer.num_batches_tracked == 0


def test_a_foreign_frozen_layer_becomes_one_that_loads_its_files() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), filled(FrozenBN(5)))
    ours = nk.freeze(model)
    assert type(ours[1]) is nk.FrozenBatchNorm2d
    ours.load_state_dict(model.state_dict(), strict=True)
    nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)).load_state_dict(ours.state_dict(), strict=True)


def test_under_a_prefix_of_a_wrapper() -> None:
    saved = {f"_fsdp_wrapped_module.{k}": v for k, v in nk.freeze(net(filled(nn.BatchNorm2d(5)))).state_dict().items()}
    wrapper = nn.Module()
    wrapper._fsdp_wrapped_module = net(nn.BatchNorm2d(5))
    wrapper.load_state_dict(saved, strict=True)
    assert wrapper._fsdp_wrapped_module[1].num_batches_tracked == 11


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("old", [False, True], ids=["", "without a counter"])
def test_a_frozen_layer_that_was_made_on_meta_becomes_real(how: str, old: bool) -> None:
    source = filled(nn.BatchNorm2d(5))
    state = source.state_dict()
    if old:
        del state["num_batches_tracked"]
    with torch.device("meta"):
        model = nk.freeze(net(nn.BatchNorm2d(5)))
    layer = model[1]
    assert all(buffer.is_meta for buffer in layer.buffers())
    if how == "assign":
        layer.load_state_dict(state, assign=True)
    else:
        layer.to_empty(device="cpu").load_state_dict(state)
    assert {b.device.type for b in layer.buffers()} == {"cpu"}
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(layer(x), source.eval()(x))
    if not (old and how == "to_empty"):  # there the counter is whatever lay in memory, as torch's is
        assert layer.num_batches_tracked == (0 if old else 11)


def test_a_layer_without_memory_is_initialized_by_reset_parameters() -> None:
    with torch.device("meta"):
        layer = nk.FrozenBatchNorm2d(5, dtype=torch.bfloat16, affine=False)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert_equal(layer.state_dict(), nk.FrozenBatchNorm2d(5, affine=False).state_dict())


NARROW: dict[str, Callable[[nn.Module, str, Tensor], None]] = {
    "setattr": setattr,
    "_buffers": lambda layer, name, value: layer._buffers.__setitem__(name, value),  # as accelerate's loaders write
}


@pytest.mark.parametrize("meta", [False, True], ids=["cpu", "meta"])
@pytest.mark.parametrize("place", NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("kind", [nk.FrozenBatchNorm2d, nk.BatchNorm2d, nk.InstanceNorm2d, nk.BatchRenorm2d])
def test_statistics_that_a_loader_puts_in_place_do_not_stay_narrow(
    kind: type[nn.Module], place: Callable[[nn.Module, str, Tensor], None], meta: bool
) -> None:
    options = {"track_running_stats": True} if kind is nk.InstanceNorm2d else {}
    layer = kind(5, device="meta" if meta else None, **options).eval()
    wanted = filled(kind(5, **options)).bfloat16()
    for name, value in wanted.state_dict().items():
        if name in layer._buffers:
            place(layer, name, value.bfloat16() if value.is_floating_point() else value)
        else:
            layer._parameters[name] = nn.Parameter(value)
    x = torch.randn(2, 5, 3, 3).bfloat16()
    layer(x)
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
    assert torch.equal(layer.running_var, wanted.running_var.bfloat16().float())


def test_setting_the_mode_makes_them_wide_before_a_training_call_moves_them() -> None:
    layer = nk.BatchNorm2d(5)
    layer._buffers["running_mean"] = torch.full((5,), 1 / 3).bfloat16()
    layer.train()
    layer(torch.randn(2, 5, 3, 3))
    assert layer.running_mean.dtype == torch.float32


def test_narrow_statistics_on_meta_become_wide_empty_ones() -> None:
    layer = nk.FrozenBatchNorm2d(5, device="meta")
    layer._buffers["running_mean"] = torch.empty(5, dtype=torch.bfloat16, device="meta")
    assert layer.to_empty(device="cpu").running_mean.dtype == torch.float32


def test_a_functional_call_moves_the_statistics_that_it_was_given() -> None:
    """They stand in the layer's `_buffers` meanwhile: a copy made wide would move instead of them."""
    layer = nk.BatchNorm2d(5)
    state = {name: value.detach().bfloat16() for name, value in layer.state_dict().items() if "running" in name}
    torch.func.functional_call(layer, state, (torch.randn(2, 5, 3, 3) + 4,))
    assert (state["running_mean"] > 0.1).all()
