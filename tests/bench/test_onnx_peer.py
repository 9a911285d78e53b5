"""ONNX Runtime beside normkit: checked against float64 as every peer, in inference, on the two norms of rows."""

from __future__ import annotations

import pytest

from normkit.bench.measure import measure
from normkit.bench.problem import Case


@pytest.mark.parametrize("shape", [(5, 33), (2, 3, 64)], ids=str)
@pytest.mark.parametrize("op", ["layer_norm_inference", "rms_norm_inference"])
def test_it_is_checked_and_timed(op: str, shape: tuple[int, ...]) -> None:
    row = measure(Case(op, shape, "rows"), ("torch", "onnx"), 0.0)
    assert row.absent == {}
    assert set(row.peers) == {"torch", "onnx"}
    assert row.peers["onnx"].total > 0
    assert row.peers["onnx"].backward is None


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("layer_norm", (5, 33), "rows"), "compared in inference, on layer norm and RMS norm"),
        (Case("inference", (2, 3, 4, 4), "NCHW"), "compared in inference, on layer norm and RMS norm"),
        (Case("rms_norm_inference", (5, 33), "rows", "bfloat16"), "compared in float32"),
    ],
    ids=["training", "batch_norm", "bfloat16"],
)
def test_what_it_does_not_serve_has_a_reason(case: Case, reason: str) -> None:
    row = measure(case, ("onnx",), 0.0)
    assert reason in row.absent["onnx"]
