"""recalibrate under torchrun, whose workers start again when one dies: the statistics are those of all data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import normkit as nk
from tests.parallel.elastic import SIZES
from tests.processes import ROOT
from tests.statistics.nets import data, net

LIMIT = 300  # seconds for both lives; alone they take fifteen

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's ranks are started by torchrun on POSIX")


def test_a_rank_that_dies_in_recalibrate_costs_a_restart_and_no_data(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "model.pt")
    start = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "tests.parallel.elastic"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *start, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.glob("life*")} == {f"life{n}.rank{rank}" for n in (0, 1) for rank in (0, 1)}
    model = net()
    nk.recalibrate(model, data(SIZES))
    found = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in model.state_dict().items():
        # another order of merges in float64, then the rounding to float32
        torch.testing.assert_close(found[name], value, rtol=2.4e-7, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
