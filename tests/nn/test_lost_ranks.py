"""A rank that dies or hangs: the other one gets an error within the group's timeout, and never a wrong number."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import normkit as nk
from tests import processes

TIMEOUT = 20.0  # seconds of the group
LIMIT = 150.0  # seconds for a case; a start under load takes twenty

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store is for POSIX here")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nk.SyncBatchNorm(5))


def lose(how: str) -> None:
    """What the lost rank does: it ends at once, or says nothing until long after the timeout."""
    if how == "dies":
        os._exit(1)
    time.sleep(LIMIT)


def forward(rank: int, how: str) -> None:
    model, x = net(), torch.randn(4, 3)
    model(x)
    if rank == 1:
        lose(how)
    model(x)


def backward(rank: int, how: str) -> None:
    loss = net()(torch.randn(4, 3)).square().sum()
    if rank == 1:
        lose(how)
    loss.backward()


def recalibrate(rank: int, how: str) -> None:
    def batches() -> object:
        yield torch.randn(4, 3)
        if rank == 1:
            lose(how)
        yield torch.randn(4, 3)

    model = net()
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        nk.recalibrate(model, batches())  # type: ignore[arg-type]  # a generator of batches
    finally:
        assert all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True)), "the model changed"


def join(rank: int, how: str) -> None:
    """Rank 1 has run out of data, and answers the wrapper's collectives alone."""
    model = DistributedDataParallel(net())
    with Join([model]):
        for _ in range(2 - rank):
            model(torch.randn(4, 3)).square().sum().backward()


WHERE = {"forward": forward, "backward": backward, "recalibrate": recalibrate, "join": join}


CASES = [
    pytest.param(where, how, marks=pytest.mark.nightly if (how == "hangs" and where != "forward") else ())
    for where in WHERE
    for how in ("dies", "hangs")
    if where != "join"
]


@pytest.mark.parametrize(("where", "how"), [*CASES, pytest.param("join", "hangs", marks=pytest.mark.nightly)])
def test_the_other_rank_gets_an_error_in_time(where: str, how: str, tmp_path: Path) -> None:
    module = "tests.nn.test_lost_ranks"
    started = [processes.start(module, tmp_path, str(n), where, how, errors=subprocess.PIPE) for n in range(2)]
    try:
        said, errors = started[0].communicate(timeout=LIMIT)
    finally:
        processes.end(started)
    found = re.search(r"^RuntimeError (\S+) s", said, re.MULTILINE)  # gloo of torch 2.10 prints a line of its own first
    assert found, f"{said}\n{errors[-2000:]}"
    assert float(found[1]) < TIMEOUT + 10, "seconds until the error"


if __name__ == "__main__":
    folder, number, case, manner = sys.argv[1:]
    processes.join(Path(folder), int(number), 2, TIMEOUT)
    start = time.monotonic()
    try:
        WHERE[case](int(number), manner)
    except RuntimeError as error:
        print(f"RuntimeError {time.monotonic() - start:.1f} s: {error}", flush=True)
    else:
        print("no error", flush=True)
    os._exit(0)  # the group has lost a rank: nothing is to be waited for
