"""Ctrl-C and SIGTERM: the first asks, the second interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from facemetric.training.loop import stop_signals


@pytest.fixture
def python_s_own_sigint() -> Iterator[Any]:
    """The handler of Ctrl-C that Python starts with; a shell's background jobs begin without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_second_ctrl_c_interrupts_at_once(python_s_own_sigint: Any) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
        with stop_signals() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert stopped.is_set()
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is python_s_own_sigint


def test_a_thread_leaves_the_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def in_thread() -> None:
        with stop_signals() as stopped:
            seen.append((stopped.is_set(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
