"""The averaging helpers that docs/statistics.md names are served."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import normkit as nk
from tests.statistics.nets import BATCH_NORMS, assert_statistics, data, net


@pytest.mark.parametrize("norm", BATCH_NORMS.values(), ids=BATCH_NORMS)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model(norm, use_buffers):
    averaged = AveragedModel(net(norm), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    averaged.update_parameters(net(norm))
    x = torch.cat(data()).double()
    report = nk.recalibrate(averaged, data())
    assert_statistics(averaged.module[0], x.mean((0, 2, 3)), x.var((0, 2, 3)))
    assert [layer.name for layer in report.recalibrated] == ["module.0", "module.2"]
    assert averaged.n_averaged == 1


def test_of_a_wrapper_the_mode_of_its_module_counts():
    """AveragedModel is in train mode whatever it averages: that must not read as "these layers are frozen"."""
    averaged = AveragedModel(net().eval())
    assert averaged.training
    assert len(nk.recalibrate(averaged, data()).recalibrated) == 2
    averaged.module.train()
    averaged.module[0].eval()
    assert [layer.name for layer in nk.recalibrate(averaged, data()).recalibrated] == ["module.2"]


def test_timms_ema():
    package = importlib.util.find_spec("timm")
    if package is None:
        pytest.skip("timm is not installed (pip install --no-deps timm)")
    path = Path(next(iter(package.submodule_search_locations or []))) / "utils" / "model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)  # by itself: timm wants torchvision
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = net()
    ema = module.ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model[1].weight.mul_(3.0)
    ema.update(model)
    nk.recalibrate(ema.module, data())
    x = torch.cat(data()).double()
    assert_statistics(ema.module[0], x.mean((0, 2, 3)), x.var((0, 2, 3)))
    reached = copy.deepcopy(net())
    with torch.no_grad():
        reached[1].weight.mul_(2.0)  # the average of 1 and 3
    nk.recalibrate(reached, data())
    torch.testing.assert_close(ema.module[2].running_var, reached[2].running_var, rtol=1e-5, atol=0)
