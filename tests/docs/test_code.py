"""Every Python block of every page runs as pasted: those of one page top to bottom, in one namespace.

A block that only shows a signature has another language after its fence (```text).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.docs.pages import PAGES, code_of

LIMIT = 60  # seconds for one page
WITH_CODE = [name for name, path in PAGES.items() if code_of(path).strip()]
NEEDS = {"docs/ecosystem.md": "safe_globals"}  # what of torch.serialization a page shows: in 2.6, not in 2.4
LAYER_PAGES = [name for name in PAGES if name.startswith("docs/layers/")]


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """TimeoutError in the block after so many seconds."""

    def end(*_: object) -> None:
        raise TimeoutError(f"the code of a page takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="without SIGALRM nothing ends a page that does not")
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs_as_pasted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS and not hasattr(torch.serialization, NEEDS[name]):
        pytest.skip(f"torch {torch.__version__} has no {NEEDS[name]}")
    monkeypatch.chdir(tmp_path)  # whatever it writes is gone afterwards
    with torch.random.fork_rng(), at_most(LIMIT):
        torch.manual_seed(0)
        exec(compile(code_of(PAGES[name]), str(PAGES[name]), "exec"), {"__name__": "page"})


def test_the_readme_and_every_page_of_a_layer_have_code() -> None:
    assert {"README.md", *LAYER_PAGES} <= set(WITH_CODE)
    assert LAYER_PAGES


def test_code_is_compiled_on_the_lines_where_it_stands() -> None:
    page = PAGES["README.md"]
    first = page.read_text(encoding="utf-8").splitlines().index("```python")
    lines = code_of(page).splitlines()
    assert not any(lines[: first + 1])
    assert lines[first + 1]
