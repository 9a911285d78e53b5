"""PyTorch Lightning trains a model with our layers as it trains torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normkit as nk
from tests.ecosystem.nets import OURS, assert_same_state, images, labels, net

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own advice and deprecations


def module(model: nn.Module) -> Any:
    from pytorch_lightning import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.example_input_array = images()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def fitted(model: nn.Module, folder: Path, **options: Any) -> Any:
    """(the module after two epochs of two steps, its trainer)."""
    from pytorch_lightning import Trainer

    data = DataLoader(TensorDataset(images(12), labels(12)), batch_size=6)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), **options,
    )  # fmt: skip
    made = module(model)
    trainer.fit(made, data)
    return made, trainer


@pytest.mark.parametrize("name", OURS)
def test_a_fit_ends_in_the_same_state_and_its_checkpoint_loads(name: str, tmp_path: Path) -> None:
    (mine, trainer), (theirs, _) = (fitted(model, tmp_path) for model in (OURS[name](), net(nn)))
    assert_same_state(mine.model, theirs.model)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    other = module(net(nn))
    other.load_state_dict(state)
    assert_same_state(other.model, mine.model)


@pytest.mark.parametrize("name", OURS)
def test_averaged_weights_get_their_statistics_from_lightning(name: str, tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import StochasticWeightAveraging

    def averaged(model: nn.Module) -> nn.Module:
        swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
        return fitted(model, tmp_path, callbacks=[swa], enable_checkpointing=False)[0].model

    assert_same_state(averaged(OURS[name]()), averaged(net(nn)))


@pytest.mark.parametrize("name", OURS)
def test_mixed_precision(name: str, tmp_path: Path) -> None:
    model, _ = fitted(OURS[name](), tmp_path, precision="bf16-mixed", enable_checkpointing=False)
    theirs, _ = fitted(net(nn), tmp_path, precision="bf16-mixed", enable_checkpointing=False)
    for key, value in theirs.model.state_dict().items():
        found = model.model.state_dict()[key]
        assert found.dtype == value.dtype
        torch.testing.assert_close(found, value, rtol=0.1, atol=0.05)  # eight bits of mantissa, four steps


@pytest.mark.parametrize("name", OURS)
def test_frozen_by_a_finetuning_callback(name: str) -> None:
    from pytorch_lightning.callbacks import BaseFinetuning

    model, theirs = OURS[name](), net(nn)
    for each in (model, theirs):
        BaseFinetuning.freeze(each, train_bn=False)
        each.train()
    torch.testing.assert_close(model(images()), theirs(images()))
    assert_same_state(model, theirs)


@pytest.mark.parametrize("name", OURS)
def test_the_summary_is_the_same(name: str) -> None:
    from pytorch_lightning.utilities.model_summary import ModelSummary

    assert str(ModelSummary(module(OURS[name]()), max_depth=-1)) == str(ModelSummary(module(net(nn)), max_depth=-1))


@pytest.mark.parametrize("name", OURS)
def test_synchronised_batch_norm_keeps_the_function(name: str) -> None:
    """What Trainer(sync_batchnorm=True) does to a model."""
    from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm

    model, theirs = TorchSyncBatchNorm().apply(OURS[name]()), net(nn)
    assert type(model.bn1) is nn.SyncBatchNorm
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(images()), theirs.train(training)(images()))
    assert type(TorchSyncBatchNorm().apply(nk.SyncBatchNorm(4))) in (nk.SyncBatchNorm, nn.SyncBatchNorm)
