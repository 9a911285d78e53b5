"""The suite's shapes are those that real networks have."""

from __future__ import annotations

import torch
from torch import nn

from normkit.bench.resnet import ResNet50
from normkit.bench.suite import FAMILIES, OPS, SUITES, cases, resnet50


def test_resnet50_shapes_are_the_distinct_inputs_of_its_batch_norms() -> None:
    shapes = set()
    with torch.device("meta"):
        model, images = ResNet50(), torch.empty(8, 3, 224, 224)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: shapes.add(tuple(inputs[0].shape)))
    model(images)
    assert shapes == set(resnet50(8))


def test_no_case_comes_twice() -> None:
    for preset in SUITES:
        planned = cases(FAMILIES, preset, ["float32", "bfloat16"], 2)
        assert len(planned) == len(set(planned))


def test_every_operation_is_in_both_presets() -> None:
    for preset in SUITES:
        assert {case.op for case in cases(FAMILIES, preset, ["float32"], 2)} == set(OPS)
