"""Ending on SIGTERM or Ctrl-C between two steps, so that what the last step made is written first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Asked:
    """What was asked of this process: the signal that waits for the end of a step, and how many wait for it."""

    def __init__(self) -> None:
        self.waiting: int | None = None
        self.depth = 0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The first signal waits where somebody said that it may; a second one, or one that nobody defers, ends at once."""
        del frame
        if self.depth and self.waiting is None:
            self.waiting = number
            return
        raise Stopped(number)


_asked = _Asked()


@contextmanager
def listening() -> Iterator[None]:
    """While this is open, SIGTERM and Ctrl-C raise `Stopped`, at once or, within `deferred`, when asked for.

    Python lets the main thread alone hear of signals; on any other thread nothing changes. A signal that whoever started the process told
    it to ignore, as `nohup` and a shell's `&` do, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _asked.hear) for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    _asked.waiting = None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """While this is open, the first signal waits; what is given says which one does, and whoever asks raises `Stopped` when it is time.

    One that nobody asked for any more is raised in the end: none is lost.

    Examples:
        >>> with deferred() as asked:
        ...     asked() is None
        True
    """
    _asked.depth += 1
    try:
        yield lambda: _asked.waiting
    finally:
        _asked.depth -= 1
        late = None if _asked.depth else _asked.waiting
        _asked.waiting = _asked.waiting if _asked.depth else None
    if late is not None:
        raise Stopped(late)
