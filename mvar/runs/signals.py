"""What a command that makes runs does when it is asked to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled(stop: Callable[[int], None], hang_up: Callable[[int], None]) -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM call `stop`, a terminal that closes (SIGHUP) `hang_up`, with the number.

    SIGHUP stays ignored where it is (nohup). It comes more than once, from the shell and from the kernel: after the
    first it is ignored behind the block too, so that what is still to be said and written is. Only the main thread may
    handle signals; elsewhere nothing changes.
    """
    numbers = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers[signal.SIGHUP] = hang_up
    if threading.current_thread() is not threading.main_thread():
        numbers = {}

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            previous[number] = signal.SIG_IGN
        numbers[signal.Signals(number)](number)

    previous: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def collected() -> Iterator[list[int]]:
    """Inside the block SIGINT, SIGTERM and SIGHUP are collected instead of obeyed; a second of them ends at once."""
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) > 1:  # asked twice: at once
            raise KeyboardInterrupt

    with handled(stop, received.append):
        yield received
