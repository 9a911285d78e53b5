"""Exported programs hold PyTorch's operations alone, run without normkit and compute the same."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS, MOMENTUM

LAYERS: dict[str, Any] = {
    "batch": lambda: nk.BatchNorm2d(6, EPS, MOMENTUM, activation="relu"),
    "batch_plain": lambda: nk.BatchNorm2d(6, EPS, MOMENTUM, affine=False),
    "batch_cumulative": lambda: nk.BatchNorm2d(6, EPS, None),
    "instance": lambda: nk.InstanceNorm2d(6, EPS, affine=True),
    "instance_tracked": lambda: nk.InstanceNorm2d(6, EPS, MOMENTUM, affine=True, track_running_stats=True),
    "group": lambda: nk.GroupNorm(3, 6, EPS, activation="silu"),
    "layer": lambda: nk.LayerNorm(5, EPS, activation="tanh"),
    "rms": lambda: nk.RMSNorm(5, EPS),
    "layer_2d": lambda: nk.LayerNorm2d(6, EPS),
}
WITH_RESIDUAL = ["batch", "instance", "group"]
each_layer = pytest.mark.parametrize("name", LAYERS)
# the exporters warn about themselves: deprecated internals, constant folding, training flags
pytestmark = pytest.mark.filterwarnings("ignore")


def example(seed: int = 0) -> Tensor:
    return torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(seed))


def layer_of(name: str) -> nn.Module:
    """The layer with parameters and statistics that show when one of them is lost."""
    layer = LAYERS[name]()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in layer.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=g) + 0.5)
    return layer


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # float32 kernels of PyTorch or ONNX Runtime


@each_layer
def test_an_exported_program_is_plain_aten_and_equal(name: str) -> None:
    layer = layer_of(name).eval()
    sizes = ({0: torch.export.Dim("n", min=2, max=64)},)
    if name == "rms":
        exported_or_skip(nn.RMSNorm(layer.normalized_shape), sizes)
    program = torch.export.export(layer, (example(),), dynamic_shapes=sizes)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets
    assert all(target.startswith(("aten.", "<built-in function getitem>")) for target in targets)
    larger = torch.cat([example(), example(2)])
    assert_close(program.module()(larger), layer(larger))


def exported_or_skip(theirs: nn.Module, sizes: Any) -> None:
    """torch's own operation is what is exported: skip where this torch cannot export it."""
    try:
        torch.export.export(theirs, (example(),), dynamic_shapes=sizes)
    except Exception as error:
        pytest.skip(f"torch cannot export {type(theirs).__name__} with a batch of any size ({type(error).__name__})")


@each_layer
def test_an_exported_training_program_moves_the_statistics_alike(name: str) -> None:
    layer = layer_of(name)
    program = torch.export.export(copy.deepcopy(layer), (example(),)).module()
    for seed in (0, 1):
        assert_close(program(example(seed)), layer(example(seed)))
    exported = dict(program.named_buffers())
    for key, value in layer.named_buffers():
        assert_close(exported[key], value)


@pytest.mark.parametrize("name", WITH_RESIDUAL)
def test_a_residual_and_a_mask_are_exported_too(name: str) -> None:
    layer = layer_of(name).eval()
    extras = {"residual": example(4), "mask": torch.rand(3, 4, 5) > 0.3}
    program = torch.export.export(layer, (example(),), extras)
    assert_close(program.module()(example(), **extras), layer(example(), **extras))


def test_an_exported_program_runs_where_normkit_is_not_importable(tmp_path: Path) -> None:
    model = nn.Sequential(*(layer_of(name) for name in LAYERS)).eval()
    torch.export.save(torch.export.export(model, (example(),)), tmp_path / "model.pt2")
    torch.save((example(), model(example())), tmp_path / "case.pt")
    script = (
        "import sys, torch; sys.modules['normkit'] = None\n"
        f"x, expected = torch.load({str(tmp_path / 'case.pt')!r})\n"
        f"y = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()(x)\n"
        "torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


@each_layer
def test_a_trace_computes_the_same(name: str) -> None:
    layer = layer_of(name).eval()
    traced = torch.jit.trace(layer, (example(),))
    assert_close(traced(example(2)), layer(example(2)))


@cache
def why_not_onnx(dynamo: bool) -> str | None:
    """Why torch exports not even a layer of its own, beside the onnxscript that is installed."""
    try:
        torch.onnx.export(nn.BatchNorm2d(6).eval(), (example(),), io.BytesIO(), dynamo=dynamo)
    except Exception as error:
        return f"torch.onnx.export(dynamo={dynamo}) fails on a layer of torch ({type(error).__name__})"
    return None


def onnx_output(layer: nn.Module, x: Tensor, dynamo: bool) -> Tensor:
    """What ONNX Runtime computes from the exported layer."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    if (reason := why_not_onnx(dynamo)) is not None:
        pytest.skip(reason)
    if dynamo:
        model = torch.onnx.export(layer, (example(),), dynamo=True, verbose=False).model_proto.SerializeToString()
    else:
        stream = io.BytesIO()
        torch.onnx.export(layer, (example(),), stream, dynamo=False)
        model = stream.getvalue()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


each_exporter = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "tracing"])


@each_exporter
def test_onnx_runtime_computes_the_same_through_all_layers(dynamo: bool) -> None:
    model = nn.Sequential(*(layer_of(name) for name in LAYERS)).eval()
    # nine norms on end, each of float32 kernels, some dividing by a small deviation
    torch.testing.assert_close(onnx_output(model, example(3), dynamo), model(example(3)), rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
@each_exporter
@each_layer
def test_onnx_runtime_computes_the_same(name: str, dynamo: bool) -> None:
    layer = layer_of(name).eval()
    assert_close(onnx_output(layer, example(3), dynamo), layer(example(3)))


class Rms(nn.Module):
    """An RMS norm of somebody else, as transformers writes them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return self.weight * wide.to(x.dtype)


class Blocks(nn.Module):
    """A residual block of batch norms, then a pre-norm block: every fusion that accelerate makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, EPS)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, EPS)
        self.group, self.mix, self.rms, self.out = nn.GroupNorm(2, 6), nn.Linear(5, 5), Rms(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(y)) + x)
        x = torch.nn.functional.silu(self.group(x))
        x = x + self.mix(x)
        return self.out(self.rms(x))


@each_exporter
def test_onnx_runtime_computes_what_an_accelerated_model_does(dynamo: bool) -> None:
    torch.manual_seed(0)
    model = Blocks()
    model(example(1))
    fast = nk.accelerate(model.eval(), example())
    reasons = {entry.name: entry.reason for entry in nk.changes(fast)}
    assert "fused with the addition and relu" in reasons["bn2"]
    assert "fused with the addition in front of it" in reasons["rms"]
    plain = model(example(3))
    assert_close(fast(example(3)), plain)
    assert_close(onnx_output(fast, example(3), dynamo), plain)
