"""One worker under torchrun: it recalibrates a saved model; in its first life rank 1 dies between two batches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import normkit as nk
from tests.statistics.nets import data, net

SIZES = (4, 7, 2, 5)


def mine(rank: int, dies: bool) -> Iterator[Tensor]:
    for index, batch in enumerate(data(SIZES)[rank::2]):
        if dies and index == 1:
            os._exit(7)
        yield batch


def join(timeout: timedelta) -> int:
    """Meet the others of this life, and say which it is.

    The store of torchrun outlives a restart with the addresses of the ranks that are dead: gloo would call those, and
    fail or wait (torch 2.13). Under a name of its own each life finds its own.
    """
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    shared = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timeout)
    store = dist.PrefixStore(f"life {life}", shared)
    rank, ranks = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)
    return life


def main(folder: Path) -> None:
    life = join(timedelta(seconds=60))
    rank = dist.get_rank()
    (folder / f"life{life}.rank{rank}").touch()
    model = net()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    nk.recalibrate(model, mine(rank, dies=life == 0 and rank == 1))
    if rank == 0:  # under a new name first: the saved model is whole at every moment
        torch.save(model.state_dict(), folder / "new.pt")
        os.replace(folder / "new.pt", folder / "model.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
