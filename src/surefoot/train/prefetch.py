"""The next batches are made in a thread of their own while the model trains on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

from surefoot.errors import TrainingError

_Item = TypeVar("_Item")
_DEPTH = 2
_PATIENCE = 0.1  # seconds until a waiting thread looks whether it is still wanted


_AGAIN = "run the same command again; it goes on from its last checkpoint."


def prefetched(items: Iterator[_Item], depth: int = _DEPTH) -> Generator[_Item, None, None]:
    """The same items in the same order, made up to `depth` ahead in another thread.

    What the thread raises is raised here, at the place of the item that failed. Closing the iterator ends the thread.

    Raises:
        TrainingError: no thread can be started, or it ended without a word.
    """
    made: queue.Queue[tuple[bool, _Item | BaseException | None]] = queue.Queue(depth)
    unwanted = threading.Event()

    def put(last: bool, item: _Item | BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                made.put((last, item), timeout=_PATIENCE)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put(False, item)
                if unwanted.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - handed on to whoever takes the items
            put(True, error)
        else:
            put(True, None)

    thread = threading.Thread(target=make, name="batches", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise TrainingError(f"No thread that reads images can be started ({error}). End other programs, and {_AGAIN}") from error
    try:
        while True:
            last, item = _taken(made, thread)
            if not last:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        unwanted.set()
        thread.join()


def _taken(made: queue.Queue[_Item], thread: threading.Thread) -> _Item:
    """What comes next, as long as there is somebody to make it."""
    while True:
        alive = thread.is_alive()
        try:
            return made.get(timeout=_PATIENCE)
        except queue.Empty:
            if not alive:
                raise TrainingError(f"The thread that reads images ended without a word. End other programs, and {_AGAIN}") from None
