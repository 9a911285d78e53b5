"""Ghost batch norm in training can be traced and exported: the slices of the example batch are part of the program."""

from __future__ import annotations

import io

import pytest
import torch

import normkit as nk
from tests.test_export import why_not_onnx


def layer() -> nk.GhostBatchNorm1d:
    return nk.GhostBatchNorm1d(3, eps=4e-4, virtual_batch_size=4, track_running_stats=False)


X = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_computes_the_slices() -> None:
    torch.testing.assert_close(torch.jit.trace(layer(), X)(X), layer()(X))


def test_an_exported_program_computes_the_slices_and_says_that_the_batch_is_a_constant() -> None:
    torch.testing.assert_close(torch.export.export(layer(), (X,)).module()(X), layer()(X))
    words = r"(specialized it|was inferred) to be a constant"
    if torch.__version__ < (2, 8):  # type: ignore[operator]
        words = "Observed exception|list index out of range"  # all that 2.4 and 2.6 say
    with pytest.raises(Exception, match=words):
        torch.export.export(layer(), (X,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))


@pytest.mark.filterwarnings("ignore")  # the exporters' own deprecations
@pytest.mark.parametrize("dynamo", [False, True], ids=["tracing", "dynamo"])
def test_onnx_exporters_take_it(dynamo: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if (reason := why_not_onnx(dynamo)) is not None:
        pytest.skip(reason)
    file = io.BytesIO()
    training = torch.onnx.TrainingMode.TRAINING
    torch.onnx.export(layer(), (X,), file, dynamo=dynamo, training=training, verbose=False)
    session = runtime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer()(X).detach(), rtol=1e-5, atol=1e-5)
