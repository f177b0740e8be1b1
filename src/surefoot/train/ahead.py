"""Shards that are streamed come to the disk before their turn, while the model trains on those before."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from surefoot.data.shard_cache import limit
from surefoot.data.shards import Remote, remote_of
from surefoot.distributed import share
from surefoot.errors import DataError

log = logging.getLogger(__name__)

MOST_STEPS = 4096
"""How many steps ahead are looked at."""
_Step = TypeVar("_Step", bound=tuple[Any, ...])


def fetched_ahead(steps: Iterator[_Step], shards: Tensor, paths: Sequence[Path]) -> Iterator[_Step]:
    """The same steps; the shards of those to come are fetched in a thread, as many as the cache has room for beside those in use.

    A transfer that fails is not told here: whoever reads an image of that shard tries it again, and is told.

    Args:
        steps: each begins with its rows [B] of the training images.
        shards: the number of the shard of each training image, [N].
        paths: of the training images.
    """
    first = {number: row for row, number in reversed(list(enumerate(shards.tolist())))}
    remotes = {number: found[1] for number, row in first.items() if (found := remote_of(paths[row]))}
    if not remotes or (most := limit()) is None:
        yield from steps
        return
    wanted: queue.SimpleQueue[Remote | None] = queue.SimpleQueue()
    ended = threading.Event()
    threading.Thread(target=_fetch, args=(wanted, ended), name="shards", daemon=True).start()
    try:
        for step, new in _in_room(steps, shards, {number: remote.stamp[0] for number, remote in remotes.items()}, most):
            for number in new:
                wanted.put(remotes[number])
            if step is not None:
                yield step
    finally:
        ended.set()
        wanted.put(None)


def _in_room(steps: Iterator[_Step], shards: Tensor, sizes: Mapping[int, int], most: int) -> Iterator[tuple[_Step | None, list[int]]]:
    """Each step in turn, or None, and the shards that are wanted from now on: those of steps ahead that fit beside those in use.

    A step is in use until the next one is asked for.
    """
    ahead: deque[tuple[_Step, Counter[int]]] = deque()
    inside: Counter[int] = Counter()
    for step in itertools.chain(steps, [None]):
        rows = Counter() if step is None else _shards_of(step[0], shards, sizes)
        while ahead and (step is None or len(ahead) >= MOST_STEPS or sum(sizes[n] for n in inside | rows) > most):
            done, own = ahead.popleft()
            yield done, []
            inside -= own
        if step is not None:
            yield None, [number for number in rows if number not in inside]
            ahead.append((step, rows))
            inside += rows


def _shards_of(rows: Tensor, shards: Tensor, sizes: Mapping[int, int]) -> Counter[int]:
    """How many of this process's images of a step lie in each shard that is fetched."""
    return Counter(number for number in shards[rows[share(len(rows))]].tolist() if number in sizes)


def _fetch(wanted: queue.SimpleQueue[Remote | None], ended: threading.Event) -> None:
    """Get each shard that is wanted, and give it free at once."""
    while (remote := wanted.get()) is not None and not ended.is_set():
        try:
            os.close(remote.open())
        except (DataError, OSError) as error:
            log.debug("A shard did not come ahead of its turn: %s", error)
