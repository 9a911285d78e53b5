"""Run what a plan asks and the store lacks, on every core, one thread a run.

One thread a worker makes a run's numbers independent of the machine's core count and is faster for small networks than
two threads on one run. Finished runs are stored as they come; an interrupt loses only those in flight.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from ..errors import UsageError
from .store import Store
from .study import Params, Preset, Run, Study

Advance = Callable[[str], None]  # called with the study's name once a run


def run_studies(studies: Sequence[Study], preset: Preset, store: Store, advance: Advance, workers: int) -> None:
    """Finish every planned run of `studies`; afterwards `store.find` has each of them."""
    missing = [
        (study, params) for study in studies for params in study.plan(preset) if store.find(study.name, params) is None
    ]
    if workers <= 1:
        for study, params in missing:
            store.add(study.name, timed(study.name, params))
            advance(study.name)
    elif missing:
        _in_pool(missing, store, advance, min(workers, len(missing)))


def finished(study: Study, preset: Preset, store: Store) -> list[Run]:
    """The runs of a study's plan that are done, in the plan's order."""
    return [run for params in study.plan(preset) if (run := store.find(study.name, params)) is not None]


def cores() -> int:
    """The cores this process may use, at most 8: memory, not speed, is the limit beyond."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def timed(name: str, params: Params) -> Run:
    """One run of the study called `name` (looked up here, so that only plain data crosses to a worker)."""
    from . import find

    start = time.process_time()  # of this one thread: a busy machine does not change it
    result = find(name).run(params)
    return Run(params, result, time.process_time() - start)


def _in_pool(missing: Sequence[tuple[Study, Params]], store: Store, advance: Advance, workers: int) -> None:
    # spawn, not fork: a forked child inherits torch's thread pool in an unusable state
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        futures: dict[Future[Run], str] = {
            pool.submit(timed, study.name, params): study.name for study, params in missing
        }
        for future in as_completed(futures):
            store.add(futures[future], future.result())
            advance(futures[future])
    except BrokenProcessPool:
        raise UsageError(
            "a worker was ended from outside (out of memory?); finished runs are kept, start again to go on"
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    pool.shutdown()


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    torch.set_num_threads(1)
