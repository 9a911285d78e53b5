"""Signals wait while something is given back, and a guard gives back once, whatever keeps out one of its exits."""

import contextlib
import signal
import threading

import pytest

from normkit.model.interrupts import Guard, HeldBack, UserBlock


class Noted(Guard):
    def __init__(self, fails=0):
        self.notes, self.fails = [], fails

    def begin(self):
        self.notes.append("begin")

    def give_back(self):
        if self.fails:
            self.fails -= 1
            raise KeyboardInterrupt
        self.notes.append("back")


@pytest.fixture
def arrived():
    """The signals that a handler of the user has seen."""
    seen = []
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    for number in before:
        signal.signal(number, lambda number, frame: seen.append(number))
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_wait_and_are_delivered_in_order(arrived):
    handler = signal.getsignal(signal.SIGUSR1)
    with HeldBack() as held, held:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR1)
        assert arrived == []
    assert arrived == [signal.SIGUSR2, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_signals_within_wait_for_the_outermost(arrived):
    with HeldBack() as outer, outer:
        with HeldBack() as inner, inner:
            signal.raise_signal(signal.SIGUSR1)
        assert arrived == []
    assert arrived == [signal.SIGUSR1]


def test_ctrl_c_is_raised_behind_the_block_with_everything_done():
    done = []
    with pytest.raises(KeyboardInterrupt), HeldBack() as held, held:
        done.append(signal.raise_signal(signal.SIGINT))
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with HeldBack() as held, held:
            signal.raise_signal(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_another_thread_holds_nothing_back_and_works():
    failures = []

    def run():
        try:
            with Noted() as noted, noted:
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert noted.notes == ["begin", "back"]
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


def test_a_guard_begins_at_the_second_entry_and_gives_back_once():
    noted = Noted()
    with noted:
        assert noted.notes == []
        with noted:
            assert noted.notes == ["begin"]
        assert noted.notes == ["begin", "back"]
    assert noted.notes == ["begin", "back"]


def test_giving_back_is_done_by_the_other_exit_where_one_is_cut_short():
    noted = Noted(fails=1)
    with pytest.raises(KeyboardInterrupt), noted, noted:
        pass
    assert noted.notes == ["begin", "back"]


def test_a_guard_that_is_entered_once_is_a_bug_that_shows():
    with pytest.raises(AssertionError, match="Noted has to be entered twice"), Noted():
        pass


class Block(UserBlock):
    def __init__(self, fails=False):
        super().__init__()
        self.notes, self.fails = [], fails

    def begin(self):
        self.notes.append("begin")
        if self.fails:
            raise KeyError

    def leave(self):
        self.notes.append("leave")


def test_a_users_block_is_left_after_a_beginning_that_fails_and_may_be_entered_again():
    block = Block(fails=True)
    with contextlib.suppress(KeyError), block:
        pass
    assert block.notes == ["begin", "leave", "leave"]
    block.fails = False
    with block:
        pass
    assert block.notes[3:] == ["begin", "leave", "leave"]
