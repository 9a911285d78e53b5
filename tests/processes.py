"""Ranks over gloo as processes of their own, bounded in time.

`python -m MODULE FOLDER RANK RANKS` computes one rank and writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]


def start(module: str, *arguments: str | Path, errors: int = subprocess.STDOUT) -> subprocess.Popen[str]:
    """One process with one thread; its errors are in its output, or in a pipe of their own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True, stdout=subprocess.PIPE, stderr=errors,
    )  # fmt: skip


def end(started: list[subprocess.Popen[str]]) -> None:
    for process in started:
        process.kill()
        process.communicate()


def results(module: str, folder: Path, ranks: int, limit: float) -> list[Any]:
    """Start all ranks and read what they wrote, by rank. limit: seconds that a rank may go on behind the one before."""
    started = [start(module, folder, str(rank), str(ranks)) for rank in range(ranks)]
    try:
        for process in started:
            output, _ = process.communicate(timeout=limit)
            assert process.returncode == 0, output
    finally:
        end(started)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def join(folder: Path, rank: int, ranks: int, limit: float) -> None:
    """In a rank: meet the others. limit: seconds that a collective waits for them."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=limit)
    )


# FSDP2 is private in torch 2.4, stops on the CPU in 2.6, and in 2.8 trains two linear layers otherwise than DDP does
FSDP2 = torch.__version__ >= (2, 10)  # type: ignore[operator]
needs_fsdp2 = pytest.mark.skipif(not FSDP2, reason="FSDP2 of this torch does not serve the CPU, or not as DDP does")
