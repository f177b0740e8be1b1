"""Streamed shards that are fetched before their turn."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_downloads import Server, served  # noqa: F401 - a fixture
from test_sharded import folders, packed, remote  # noqa: F401 - fixtures
from test_shards import cache  # noqa: F401 - the cache is every test's
from torch import Tensor

from surefoot.data import open_dataset, read_image, shard_cache, shards
from surefoot.train import ahead
from surefoot.train.ahead import fetched_ahead

Serve = Callable[..., Server]
STAMP = (10, 0)


class Away:
    """A shard of ten bytes that notes when it is fetched."""

    stamp = STAMP

    def __init__(self, number: int, fetched: list[int], error: OSError | None = None) -> None:
        self.number, self.fetched, self.error = number, fetched, error

    def open(self) -> int:
        self.fetched.append(self.number)
        if self.error:
            raise self.error
        return os.open(os.devnull, os.O_RDONLY)


@pytest.fixture
def fetched() -> list[int]:
    """Six shards, and the numbers of those that were fetched, in their order."""
    seen: list[int] = []
    for number in range(6):
        shards.lies_at(Path(f"train/{number}.tar"), Path(f"cache/{number}.tar"))
        shards.comes_from(Path(f"cache/{number}.tar"), Away(number, seen))
    return seen


def steps_of(numbers: Tensor, order: list[int], size: int) -> Iterator[tuple[Tensor]]:
    """Steps of `size` rows, of shards in that order."""
    rows = torch.cat([(numbers == number).nonzero().squeeze(1) for number in order])
    return ((part,) for part in torch.split(rows, size))


def settled(fetched: list[int], wanted: list[int]) -> list[int]:
    """What was fetched once as many as wanted are, or nothing comes any more; a moment longer, so that one too many shows."""
    until = time.monotonic() + 10
    while len(fetched) < len(wanted) and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.02)
    return list(fetched)


@pytest.mark.parametrize("room", [1, 2, 3, 6])
def test_shards_that_fit_beside_those_in_use_come_before_their_turn(room: int, fetched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shard_cache.LIMIT, str(10 * room))
    numbers, order = torch.arange(24) // 4, [3, 0, 5, 1, 4, 2]
    paths = [Path(f"train/{int(number)}.tar/{row}.png") for row, number in enumerate(numbers)]
    taken = fetched_ahead(steps_of(numbers, order, 2), numbers, paths)
    for turn in range(6):
        for half in range(2):
            (rows,) = next(taken)
            assert rows.tolist() == [4 * order[turn] + 2 * half, 4 * order[turn] + 2 * half + 1]
            last = turn + room  # the shard of this turn, and as many behind it as there is room for
            assert settled(fetched, order[:last]) == order[:last]
    assert next(taken, None) is None


def test_steps_are_the_same_where_nothing_is_streamed_and_without_a_limit(fetched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(8) // 2
    away = [Path(f"train/{int(number)}.tar/{row}.png") for row, number in enumerate(numbers)]
    here = [Path(f"train/a/{row}.png") for row in range(8)]
    for paths, most in ((here, "10"), (away, "")):
        monkeypatch.setenv(shard_cache.LIMIT, most)
        found = list(fetched_ahead(steps_of(numbers, [1, 0, 3, 2], 3), numbers, paths))
        assert [rows.tolist() for (rows,) in found] == [[2, 3, 0], [1, 6, 7], [4, 5]]
    assert fetched == []


def test_a_step_whose_shards_do_not_fit_together_is_taken_all_the_same(fetched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shard_cache.LIMIT, "20")
    numbers = torch.arange(6)
    paths = [Path(f"train/{row}.tar/a.png") for row in range(6)]
    found = list(fetched_ahead(steps_of(numbers, [5, 4, 3, 2, 1, 0], 3), numbers, paths))
    assert [rows.tolist() for (rows,) in found] == [[5, 4, 3], [2, 1, 0]]


def test_no_more_steps_are_looked_at_than_stated(fetched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shard_cache.LIMIT, "60")
    monkeypatch.setattr(ahead, "MOST_STEPS", 3)
    looked: list[int] = []

    def endless() -> Iterator[tuple[Tensor]]:
        for number in range(10**9):
            looked.append(number)
            yield (torch.tensor([number % 6]),)

    taken = fetched_ahead(endless(), torch.arange(6), [Path(f"train/{row}.tar/a.png") for row in range(6)])
    for number in range(4):
        assert next(taken)[0].tolist() == [number]
        assert len(looked) == number + 4


def test_a_transfer_that_fails_is_no_error_before_its_image_is_read(fetched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shard_cache.LIMIT, "60")
    shards.comes_from(Path("cache/1.tar"), Away(1, fetched, OSError("no route")))
    numbers = torch.arange(3)
    taken = fetched_ahead(steps_of(numbers, [1, 0, 2], 1), numbers, [Path(f"train/{row}.tar/a.png") for row in range(3)])
    assert next(taken)[0].tolist() == [1]
    assert settled(fetched, [1, 0, 2]) == [1, 0, 2], "the thread goes on with the others"
    taken.close()
    until = time.monotonic() + 10
    while any(thread.name == "shards" for thread in threading.enumerate()):
        assert time.monotonic() < until, "the thread ends with the steps"
        time.sleep(0.005)


def test_real_shards_come_ahead_and_are_read_from_the_disk(
    packed: Path,  # noqa: F811
    tmp_path: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tars = sorted((packed / "train").glob("*.tar"))
    monkeypatch.setenv(shard_cache.LIMIT, str(sum(sorted(tar.stat().st_size for tar in tars)[-3:])))
    server = serve(packed)
    paths = open_dataset(remote(packed, tmp_path / "remote", server.address)).split("train").paths
    tar_of = [path.parents[len(path.parts) - 1 - path.parts.index("train") - 2] for path in paths]
    numbers = torch.tensor([sorted(set(tar_of)).index(tar) for tar in tar_of])
    order = list(range(len(tars)))[::-1]
    taken = fetched_ahead(steps_of(numbers, order, 4), numbers, paths)
    next(taken)
    first = [next(path for path, number in zip(paths, numbers.tolist(), strict=True) if number == one) for one in order[:3]]
    lie = [found[1].file for path in first if (found := shards.remote_of(path)) and isinstance(found[1], shard_cache.Remote)]
    until = time.monotonic() + 20
    while not all(file.is_file() for file in lie):
        assert time.monotonic() < until, "the next two shards come without being read"
        time.sleep(0.01)
    asked = len(server.asked)
    assert len(lie) == 3 and all(read_image(path).size for path in first) and len(server.asked) == asked
    taken.close()
