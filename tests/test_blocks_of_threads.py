"""Blocks of nk.backend and nk.domain that several threads enter and leave at once: at each step of one on what is
entered, another thread enters or leaves a block."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import pytest

import normkit as nk
from normkit.functional import choose
from normkit.nn import domain_call

LIMIT = 30.0  # seconds: a thread that takes so long hangs

# The module, its global that says what holds, and three blocks' names.
BLOCKS: dict[str, tuple[ModuleType, str, Callable[[Any], AbstractContextManager[None]], tuple[Any, ...]]] = {
    "backend": (choose, "_requested", nk.backend, ("composed", "aten", "native")),
    "domain": (domain_call, "_current", nk.domain, (0, 1, 2)),
}
ENTER, LEAVE = "__enter__", "__exit__"
# Which blocks are entered at first; what the one thread does to which block, and what the other; which are left.
MEETINGS: dict[str, tuple[tuple[int, ...], tuple[str, int], tuple[str, int], set[int]]] = {
    "leaves while another enters": ((0,), (LEAVE, 0), (ENTER, 1), {1}),
    "enters while another leaves": ((1,), (ENTER, 0), (LEAVE, 1), {0}),
    "leaves while another leaves": ((2, 0, 1), (LEAVE, 0), (LEAVE, 1), {2}),
    "enters while another enters": ((), (ENTER, 0), (ENTER, 1), {0, 1}),
}


class Watched(list[Any]):
    """What is entered; `step` is called before and after whatever is asked of it."""

    step: Callable[[], None] = staticmethod(lambda: None)


def watched(name: str) -> Callable[..., Any]:
    def method(self: Watched, *arguments: Any) -> Any:
        self.step()
        found = getattr(list, name)(self, *arguments)
        self.step()
        return found

    return method


for name in ("append", "remove", "pop", "__iter__", "__len__", "__getitem__", "__setitem__", "__delitem__"):
    setattr(Watched, name, watched(name))


class Told:
    """A lock that says when another thread than `first` asks for it."""

    def __init__(self, first: threading.Thread, asked: threading.Event) -> None:
        self.lock, self.first, self.asked = threading.RLock(), first, asked

    def __enter__(self) -> None:
        if threading.current_thread() is not self.first:
            self.asked.set()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def act(block: AbstractContextManager[None], action: str) -> None:
    getattr(block, action)(*((None,) * 3 if action == LEAVE else ()))


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_what_holds_is_what_the_latest_entered_block_asks_for(
    kind: str, meeting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, current, make, names = BLOCKS[kind]
    before, (action, which), (others, other), remain = MEETINGS[meeting]
    for at in itertools.count():
        entered, came, steps = Watched(), threading.Event(), itertools.count()
        first = threading.current_thread()
        monkeypatch.setattr(module, "_entered", entered)
        monkeypatch.setattr(choose, "_changing", Told(first, came), raising=False)
        blocks = [make(name) for name in names]
        for number in before:
            act(blocks[number], ENTER)

        def whole(block: AbstractContextManager[None] = blocks[other], came: threading.Event = came) -> None:
            act(block, others)
            came.set()

        thread = threading.Thread(target=whole, daemon=True)

        def step(at: int = at, steps: Any = steps, thread: Any = thread, came: Any = came, first: Any = first) -> None:
            if threading.current_thread() is first and next(steps) == at:
                thread.start()
                assert came.wait(LIMIT)

        entered.step = step  # type: ignore[method-assign]
        act(blocks[which], action)
        entered.step = lambda: None  # type: ignore[method-assign]
        reached = thread.ident is not None
        if not reached:
            thread.start()
        thread.join(LIMIT)
        assert not thread.is_alive()
        assert {block[0] for block in entered} == {names[number] for number in remain}, at
        assert getattr(module, current) == entered[-1][0], at
        for number in remain:
            act(blocks[number], LEAVE)
        assert not entered
        assert getattr(module, current) is None
        if not reached:
            assert at >= 2  # before and after one step at least
            return
