"""Runs are finished once, whatever interrupts them, and give the same numbers wherever they run."""

from dataclasses import replace
from pathlib import Path

import pytest

from normkit.studies import Preset, find
from normkit.studies.runner import finished, run_studies, timed
from normkit.studies.store import Store

PRESET = Preset(quick=True, seeds=5, data="digits")
CHAIN = find("step_sign")
STUDY = replace(CHAIN, plan=lambda preset: [params | {"draws": 1} for params in CHAIN.plan(preset)])


def test_an_interrupt_keeps_finished_runs_and_the_next_start_goes_on(tmp_path: Path) -> None:
    advanced: list[str] = []

    def interrupt(name: str) -> None:
        advanced.append(name)
        if len(advanced) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_studies([STUDY], [PRESET], Store(tmp_path, "v"), interrupt, workers=1)
    assert len(finished(STUDY, PRESET, Store(tmp_path, "v"))) == 3
    advanced.clear()
    store = Store(tmp_path, "v")
    run_studies([STUDY], [PRESET], store, advanced.append, workers=1)
    assert len(advanced) == len(STUDY.plan(PRESET)) - 3
    assert len(finished(STUDY, PRESET, store)) == len(STUDY.plan(PRESET))


def test_a_run_has_one_thread_wherever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from normkit.studies import STUDIES

    threads = replace(STUDY, run=lambda params: {"threads": torch.get_num_threads()})
    monkeypatch.setitem(STUDIES, STUDY.name, threads)
    torch.set_num_threads(2)
    store = Store(tmp_path, "v")
    run_studies([threads], [PRESET], store, lambda name: None, workers=1)
    assert [run.result["threads"] for run in finished(threads, PRESET, store)] == [1] * 5
    assert torch.get_num_threads() == 2


def test_workers_give_the_numbers_of_the_process_itself(tmp_path: Path) -> None:
    store, advanced = Store(tmp_path, "v"), list[str]()
    run_studies([STUDY], [PRESET], store, advanced.append, workers=2)
    assert [run.params for run in finished(STUDY, PRESET, store)] == STUDY.plan(PRESET)
    assert finished(STUDY, PRESET, store)[0].result == timed("step_sign", STUDY.plan(PRESET)[0]).result
