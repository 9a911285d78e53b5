"""The examples of many processes: two ranks train the model that one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import needs_fsdp2

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT = 240  # seconds for one run; a start under load takes twenty

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's ranks are started by torchrun on POSIX")


def trained(script: str, ranks: int, folder: Path) -> dict[str, torch.Tensor]:
    out = folder / f"{script}.{ranks}.pt"
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*start, str(EXAMPLES / script), "--float64", "--out", str(out)],
        capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{ranks} rank" in done.stdout
    assert "of the unseen digits are right" in done.stdout
    return torch.load(out, weights_only=True)  # type: ignore[no-any-return]  # a state dict


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return trained("ddp_train.py", 1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("script", ["ddp_train.py", pytest.param("fsdp2_train.py", marks=needs_fsdp2)])
def test_two_ranks_train_the_model_of_one(script: str, alone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    together = trained(script, 2, tmp_path)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        # 63 steps, each with sums in another order: roundings of 1e-16, which the steps magnify a million times at most
        # (float32's 6e-8 came out as 3e-2); another loss or other statistics on one rank would be apart by 1e-2 or more
        apart = (together[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert apart < 1e-8, name


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ddp_train.py")], capture_output=True, text=True, timeout=LIMIT,
        env={**os.environ, "WORLD_SIZE": "3", "RANK": "0"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == "the number of ranks must divide the batch of 64, got 3"
