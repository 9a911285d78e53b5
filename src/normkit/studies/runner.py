"""Run what a plan asks and the store lacks, on every core, one thread a run.

One thread a worker makes a run's numbers independent of the machine's core count and is faster for small networks than
two threads on one run. Finished runs are stored as they come; an interrupt loses only those in flight.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from ..errors import UsageError
from .store import Store
from .study import Params, Preset, Run, Study

Advance = Callable[[str], None]  # called with the study's name once a run


def run_studies(
    studies: Sequence[Study], presets: Sequence[Preset], store: Store, advance: Advance, workers: int
) -> None:
    """Finish every planned run of `studies` under each of `presets`; afterwards `store.find` has each of them."""
    missing = [
        (study, params)
        for study in studies
        for preset in presets
        for params in study.plan(preset)
        if store.find(study.name, params) is None
    ]
    if workers <= 1:
        with _one_thread():
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """In this process as in a worker: the numbers of a run do not depend on where it is made."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_pool(missing: Sequence[tuple[Study, Params]], store: Store, advance: Advance, workers: int) -> None:
    # spawn, not fork: a forked child inherits torch's thread pool in an unusable state
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    futures: dict[Future[Run], str] = {}
    try:
        with _interrupts_held():
            for study, params in missing:
                futures[pool.submit(timed, study.name, params)] = study.name
        for future in as_completed(list(futures)):
            name = futures[future]
            store.add(name, future.result())
            del futures[future]
            advance(name)
    except BrokenProcessPool:
        raise UsageError(
            "a worker was ended from outside (out of memory?); finished runs are kept, start again to go on"
        ) from None
    except BaseException as error:
        # a pool that is shut down forgets them
        processes = list((pool._processes or {}).values())
        manager: Any = getattr(pool, "_executor_manager_thread", None)
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        if manager is not None:  # at Python's exit it would find its pipe half closed and print a traceback
            manager.join(timeout=10)
        if isinstance(error, KeyboardInterrupt):
            _keep_finished(futures, store)
        raise
    pool.shutdown()


def _keep_finished(futures: Mapping[Future[Run], str], store: Store) -> None:
    """Store what the workers finished and nobody took yet."""
    for future, name in futures.items():
        if future.done() and not future.cancelled() and future.exception() is None:
            store.add(name, future.result())


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of this block, and never reaches a process that starts in it: its parent ends it.

    A worker that is still importing could not ignore the signal by itself yet, and would print its traceback.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield  # only the main thread is interrupted; Windows has no mask
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))  # other threads take it too
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a new process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A worker of a parent that was killed would wait for its next run for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
