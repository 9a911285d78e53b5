"""Haiku: a transform of the real library, trained a little, on the CPU. `test_real_libraries` runs this file."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.frameworks.facts import FACTS
from tests.frameworks.flax_cases import drawn, first, last
from tests.frameworks.nets import images

jax = pytest.importorskip("jax")
hk = pytest.importorskip("haiku")
pytestmark = pytest.mark.filterwarnings("ignore")  # what JAX warns of itself


def test_haikus_real_transform_evaluates_as_there() -> None:
    def forward(x: Any, train: bool) -> Any:
        x = hk.BatchNorm(True, True, 0.9, name="bn")(x, is_training=train)
        return hk.LayerNorm(-1, True, True, name="ln")(x)

    net = hk.transform_with_state(forward)
    params, state = net.init(jax.random.PRNGKey(0), last(images()), True)
    params = drawn(params)
    for seed in range(3):
        _, state = net.apply(params, state, None, last(images(seed)), True)
    mine, x = nn.ModuleDict({"bn": nn.BatchNorm2d(6), "ln": nk.LayerNorm2d(6)}), images(9)
    report = nk.load_norm_state(mine, (params, state), "haiku")
    assert report.missing == report.unused == ()
    with torch.no_grad():
        y = mine.eval().ln(mine.bn(x))
    torch.testing.assert_close(y, first(net.apply(params, state, None, last(x), False)[0]), rtol=1e-4, atol=1e-4)
    assert int(mine.bn.num_batches_tracked) == 3
    assert inspect.signature(hk.BatchNorm).parameters["eps"].default == FACTS["haiku"].eps["batch"]
