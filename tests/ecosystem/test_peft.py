"""peft: adapters beside our layers, norms that are trained with them, merging and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.ecosystem.nets import OURS, assert_same_state, images, net, train
from tests.surgery.foreign import library

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own deprecations

NORMS = ["bn1", "bn2", "group", "instance", "layer", "rms"]


@pytest.fixture(autouse=True)
def _transformers() -> None:
    library("transformers")  # peft imports it, and it asks for a newer torch than peft does


def lora(model: nn.Module) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["conv1", "conv2", "head"], modules_to_save=NORMS))


@pytest.mark.parametrize("name", OURS)
def test_adapters_with_norms_trained_beside_them(name: str, tmp_path: Path) -> None:
    mine, theirs = lora(OURS[name]()), lora(net(nn))
    train(mine), train(theirs)
    assert_same_state(mine, theirs)
    torch.testing.assert_close(mine.eval()(images()), theirs.eval()(images()), rtol=1e-4, atol=1e-5)

    from peft import PeftModel

    mine.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(OURS[name](), tmp_path).eval()
    torch.testing.assert_close(loaded(images()), mine(images()))
    merged = mine.merge_and_unload()
    assert type(merged.get_submodule("bn1")) is nk.BatchNorm2d
    torch.testing.assert_close(merged(images()), loaded(images()), rtol=1e-4, atol=1e-5)


def test_the_norms_alone_are_tuned() -> None:
    from peft import LNTuningConfig, get_peft_model

    def tuned(model: nn.Module) -> Any:
        return get_peft_model(model, LNTuningConfig(target_modules=NORMS))

    mine, theirs = tuned(net(nk)), tuned(net(nn))
    train(mine), train(theirs)
    assert_same_state(mine, theirs)
    torch.testing.assert_close(mine.merge_and_unload().eval()(images()), theirs.merge_and_unload().eval()(images()))


@pytest.mark.parametrize("change", ["convert", "accelerate", "recalibrate"])
def test_surgery_on_a_model_with_adapters(change: str) -> None:
    theirs = lora(net(nn))
    train(theirs)
    theirs.eval()
    before = theirs(images())
    if change == "recalibrate":
        nk.recalibrate(theirs, [images()])
        assert not torch.allclose(theirs(images()), before)
        return
    changed = {
        "convert": lambda: nk.convert(theirs, "batch", only="*bn*"),
        "accelerate": lambda: nk.accelerate(theirs, images()),
    }[change]()
    torch.testing.assert_close(changed(images()), before, rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, nk.BatchNorm2d) for module in changed.modules())

    def outputs(model: nn.Module) -> Tensor:
        with model.disable_adapter():
            return model(images())

    torch.testing.assert_close(outputs(changed), outputs(theirs), rtol=1e-4, atol=1e-5)
