"""A program without the core that starts a process: `python -m tests.hidden_core.spawns`."""

from __future__ import annotations

import multiprocessing

import normkit as nk


def work() -> None:
    nk.BatchNorm2d(3)


if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join(60)
    raise SystemExit(process.exitcode)
