"""The next batches are made in a thread of their own while the model trains on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_DEPTH = 2
_PATIENCE = 0.1  # seconds until a waiting thread looks whether it is still wanted


def prefetched(items: Iterator[_Item], depth: int = _DEPTH) -> Generator[_Item, None, None]:
    """The same items in the same order, made up to `depth` ahead in another thread.

    What the thread raises is raised here, at the place of the item that failed. Closing the iterator ends the thread.
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
    thread.start()
    try:
        while True:
            last, item = made.get()
            if not last:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        unwanted.set()
        thread.join()
