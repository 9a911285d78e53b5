"""torchinfo's summary of a model with our layers is that of torch's, line by line."""

from __future__ import annotations

import pytest
from torch import nn
from torchinfo import summary

from tests.ecosystem.nets import OURS, images, net

COLUMNS = ("input_size", "output_size", "num_params", "kernel_size", "mult_adds", "trainable")


def shown(model: nn.Module, mode: str) -> str:
    return str(summary(model, input_data=images(), col_names=COLUMNS, depth=5, verbose=0, mode=mode))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", OURS)
def test_the_summary_is_the_same(name: str, mode: str) -> None:
    expected = shown(net(nn), mode)
    assert shown(OURS[name](), mode) == expected
    assert expected.count("BatchNorm2d") == 2
