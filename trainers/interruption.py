"""Stopping politely: the first SIGINT or SIGTERM is noted, the second one kills as usual."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Stop:
    """Which signal has asked for an end, if any.

    Example:
        >>> Stop().signal_number is None
        True
    """

    signal_number: int | None = None


@contextlib.contextmanager
def polite_stop() -> Iterator[Stop]:
    """Notes SIGINT and SIGTERM instead of dying of them, inside the `with` block.

    Outside the main thread, where Python allows no handlers, it changes nothing.

    Example:
        >>> import signal
        >>> with polite_stop() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop.signal_number == signal.SIGTERM
        True
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def restore():
        while before:
            signal.signal(*before.popitem())

    def note(number, frame):
        del frame
        stop.signal_number = number
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
