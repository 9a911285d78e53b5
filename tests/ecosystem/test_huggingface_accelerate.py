"""Hugging Face's accelerate: models made empty, dispatched, offloaded and prepared for training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.surgery.row_norms import RowForward
from tests.ecosystem.nets import OURS, assert_same_state, images, labels, net
from tests.surgery.transformers_models import model_of

pytestmark = pytest.mark.filterwarnings("ignore")  # accelerate's own deprecations


@pytest.mark.parametrize("name", OURS)
def test_prepared_for_training(name: str) -> None:
    from accelerate import Accelerator

    def trained(model: nn.Module) -> nn.Module:
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for step in range(3):
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(images(seed=step)), labels()))
            optimizer.step()
        return accelerator.unwrap_model(model)

    assert_same_state(trained(OURS[name]()), trained(net(nn)))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("buffers", [False, True])
def test_offloaded_weights_come_back_for_each_call(name: str, buffers: bool) -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    model, expected = OURS[name]().eval(), net(nn).eval()(images())
    with torch.no_grad():
        model = cpu_offload(model, torch.device("cpu"), offload_buffers=buffers)
        assert model.bn1.weight.is_meta
        torch.testing.assert_close(model(images()), expected)
        torch.testing.assert_close(model(images()), expected)
        assert model.bn1.weight.is_meta
        remove_hook_from_submodules(model)
        torch.testing.assert_close(model(images()), expected)


def test_made_empty_and_loaded(tmp_path: Path) -> None:
    from accelerate import Accelerator, init_empty_weights, load_checkpoint_and_dispatch

    whole = net(nn)
    Accelerator(cpu=True).save_model(whole, tmp_path)
    with init_empty_weights(include_buffers=True):
        model = net(nk)
    assert model.bn1.running_var.is_meta
    model = load_checkpoint_and_dispatch(model, tmp_path, device_map={"": "cpu"})
    assert_same_state(model, whole)
    torch.testing.assert_close(model.eval()(images()), whole.eval()(images()))


def test_sizes_and_device_maps_are_those_of_torchs_layers() -> None:
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes

    assert compute_module_sizes(net(nk)) == compute_module_sizes(net(nn))
    memory = {"cpu": 2000, "disk": 10**9}
    assert infer_auto_device_map(net(nk), memory) == infer_auto_device_map(net(nn), memory)


HOOKED = "its forward was replaced on the instance by a hook of Hugging Face's accelerate: change the model before"
CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "accelerate": lambda model: nk.accelerate(model, images(), inplace=True),
    "convert": lambda model: nk.convert(model, "batch", only="bn*", inplace=True),
    "freeze": lambda model: nk.freeze(model, inplace=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_dispatched_model_is_left_as_it_is_and_says_why(change: str) -> None:
    """Its layers have a forward of their own, and it a `to` that would move the original of any copy."""
    from accelerate import dispatch_model

    model = dispatch_model(net(nn).eval(), device_map={"": "cpu"}, force_hooks=True)
    expected = model(images())
    with pytest.raises(RuntimeError, match=r"cannot be copied.*pass inplace=True"):
        nk.convert(model, "batch", only="bn*")
    changed = CHANGES[change](model)
    torch.testing.assert_close(changed(images()), expected)
    assert nk.changes(changed)["bn1"].reason.startswith(HOOKED)


@pytest.mark.parametrize("change", CHANGES)
def test_once_the_hooks_are_gone_it_is_changed(change: str) -> None:
    """They leave the class's own forward on every module."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    model = cpu_offload(net(nn).eval(), torch.device("cpu"))
    remove_hook_from_submodules(model)
    expected = model(images())
    assert "forward" in vars(model.bn1)
    changed = CHANGES[change](model)
    torch.testing.assert_close(changed(images()), expected)
    assert nk.changes(changed)["bn1"].action == "replaced"
    if change == "accelerate":
        assert "relu" in nk.changes(changed)["bn1"].reason


def llama() -> nn.Module:
    torch.manual_seed(0)
    return model_of("Llama").eval()


def tokens() -> Tensor:
    return torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(0))


DISPATCHED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "device map": lambda model: accelerate().dispatch_model(model, device_map={"": "cpu"}, force_hooks=True),
    "offloaded": lambda model: accelerate().cpu_offload(model, torch.device("cpu")),
}


def accelerate() -> Any:
    import accelerate

    return accelerate


@pytest.mark.parametrize("how", DISPATCHED)
def test_norms_of_other_classes_that_are_dispatched_say_what_to_do(how: str) -> None:
    model = DISPATCHED[how](llama())
    with pytest.raises(ValueError, match=rf"as model.layers.0.input_layernorm \(LlamaRMSNorm\): {HOOKED}"):
        nk.accelerate(model, tokens(), inplace=True)


@pytest.mark.parametrize("how", DISPATCHED)
@torch.no_grad()
def test_an_accelerated_model_is_dispatched_and_its_hooks_taken_off(how: str) -> None:
    from accelerate.hooks import remove_hook_from_submodules

    expected, fast = llama()(tokens()).logits, nk.accelerate(llama(), tokens())
    assert len(nk.changes(fast).replaced) == 5
    calls: list[int] = []
    own = RowForward.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowForward, "__call__", lambda *args, **kwargs: (calls.append(1), own(*args, **kwargs))[1])
        patch.setattr(RowForward, "added", lambda *_: None)  # the addition in front and the norm one by one
        fast = DISPATCHED[how](fast)
        torch.testing.assert_close(fast(tokens()).logits, expected)
        assert len(calls) == 5  # our kernels, under the hooks
        fast = remove_hook_from_submodules(fast) or fast
        torch.testing.assert_close(fast(tokens()).logits, expected)
        assert len(calls) == 10


@torch.no_grad()
def test_a_model_loaded_with_a_device_map_is_accelerated(tmp_path: Path) -> None:
    whole = llama()
    whole.save_pretrained(tmp_path)
    loaded = type(whole).from_pretrained(tmp_path, device_map="auto").eval()
    fast = nk.accelerate(loaded, tokens())
    assert len(nk.changes(fast).replaced) == 5
    torch.testing.assert_close(fast(tokens()).logits, whole(tokens()).logits)
