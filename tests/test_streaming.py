"""Shards that are streamed: a bounded place on the disk, an order that suits them, and the weights of the data that lie here."""

from __future__ import annotations

import importlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fresh
from test_downloads import Server, served  # noqa: F401 - a fixture
from test_sharded import folders, packed, remote  # noqa: F401 - fixtures
from test_shards import cache, picture, shard  # noqa: F401 - the cache is every test's

from surefoot.anchors.pool import open_pool
from surefoot.data import Dataset, open_dataset, read_image, shard_cache, shards
from surefoot.data.digest import digests
from surefoot.data.packing import pack
from surefoot.data.shard_cache import Remote, limit
from surefoot.data.shards import content
from surefoot.data.survey import verified
from surefoot.errors import DataError, SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.protocols import Judge
from surefoot.train import Training, fit
from surefoot.train.preflight import preflight
from surefoot.train.settings import stated

Serve = Callable[..., Server]
batches = importlib.import_module("surefoot.train.batches")  # the package has a function of that name


def on_disk(cache: Path) -> int:  # noqa: F811
    """Bytes of shards, whole or half, in the cache, at a moment at which nothing changes."""
    while (found := sizes_in(cache)) != sizes_in(cache):
        continue  # what is renamed or given up between two looks would be counted twice
    return sum(found.values())


def sizes_in(cache: Path) -> dict[Path, int]:  # noqa: F811
    found = {}
    for path in (cache / "shards").rglob("*"):
        try:
            found |= {path: path.stat().st_size} if path.suffix in (".tar", ".part") else {}
        except FileNotFoundError:  # given up at this moment
            continue
    return found


def sizes(folder: Path) -> list[int]:
    return sorted(path.stat().st_size for path in folder.rglob("*.tar"))


def allow(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> int:
    """Room for some of the largest shards of a folder."""
    most = sum(sizes(folder)[-number:])
    monkeypatch.setenv(shard_cache.LIMIT, str(most))
    return most


def forget() -> None:
    """As a new process begins."""
    for known in (shards._places, shards._elsewhere, shards._open, shards._remote):
        known.clear()


@pytest.mark.parametrize(
    ("text", "size"), [("", None), ("20GB", 20 * 10**9), ("1.5 m", 1_500_000), ("700", 700), ("2T", 2 * 10**12), (" 3kb ", 3000)]
)
def test_the_limit_is_a_size(text: str, size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shard_cache.LIMIT, text)
    assert limit() == size


@pytest.mark.parametrize("text", ["much", "0", "-3GB", "5 GiB", "0.0K"])
def test_a_limit_that_is_none_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shard_cache.LIMIT, text)
    with pytest.raises(SettingError, match=r"SUREFOOT_SHARD_CACHE is .* Write a size such as 20GB"):
        limit()


@pytest.mark.parametrize(
    "server", [{}, {"ranges": False}, {"breaks": 2}, {"tag": "Last-Modified"}, {"tag": ""}, {"length": False}], ids=str
)
def test_a_data_set_that_does_not_fit_is_the_same_and_never_takes_more_room(
    server: dict[str, object],
    folders: Path,  # noqa: F811
    tmp_path: Path,
    serve: Serve,
    cache: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack(open_dataset(folders), where := tmp_path / "shards", per_shard=9)
    running, most, seen = serve(where, **server), allow(monkeypatch, where, 3), list[int]()
    fill = shard_cache.fill

    def watched(*given: object) -> None:
        fill(*given)  # type: ignore[arg-type]
        seen.append(on_disk(cache))

    monkeypatch.setattr(shard_cache, "fill", watched)
    one, other = open_dataset(where), open_dataset(remote(where, tmp_path / "remote", running.address))
    assert len(seen) == len(sizes(where)) > 3, "each shard came once"
    assert other.fingerprint() == one.fingerprint() and verified(other, skip_unreadable=False) == other
    assert len(seen) == len(sizes(where)), "what is known of its images was found out while it was there"
    for name, split in one.splits.items():
        again = other.split(name)
        assert (split.labels, split.captions) == (again.labels, again.captions)
        assert [read_image(path).tobytes() for path in split.paths] == [read_image(path).tobytes() for path in again.paths]
    assert len(seen) < 3 * len(sizes(where)), "images that are read in order do not fetch their shard each"
    assert max(seen) <= most < sum(sizes(where))
    assert not any(str(cache) in file for file, _ in shards._open), "a file that stays open takes room though it is given up"
    forget()
    asked = len(running.asked)
    assert open_dataset(tmp_path / "remote").fingerprint() == one.fingerprint()
    assert len(running.asked) == asked, "a second time nothing is fetched to know them"
    monkeypatch.delenv(shard_cache.LIMIT)
    forget()
    assert open_dataset(tmp_path / "remote").fingerprint() == one.fingerprint()
    assert on_disk(cache) == sum(sizes(where)), "without a limit all of them are kept"
    asked = len(running.asked)
    allow(monkeypatch, where, 99)
    forget()
    again = open_dataset(tmp_path / "remote")
    assert again.fingerprint() == one.fingerprint() and len(running.asked) == asked
    assert [content(path) for path in again.split("train").paths] == [content(path) for path in one.split("train").paths]
    assert len(running.asked) == asked, "what was kept without a limit is taken as it is"


@pytest.mark.parametrize(("shuffle", "server"), [("shards:2", {}), ("shards:2", {"ranges": False, "breaks": 1}), ("all", {})], ids=str)
def test_folders_shards_and_streamed_shards_give_the_same_weights(
    server: dict[str, object],
    shuffle: str,
    tiny_model: ImageTextModel,
    tiny_data: Dataset,
    tmp_path: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = replace(tiny_data, anchors=type(tiny_data.anchors)())
    pack(plain, tmp_path / "shards", per_shard=5)
    monkeypatch.setattr(batches, "PER_SHARD", 5)
    allow(monkeypatch, tmp_path / "shards", 2 if shuffle == "shards:2" else 99)
    away = open_dataset(remote(tmp_path / "shards", tmp_path / "remote", serve(tmp_path / "shards", **server).address))
    training, ends, right = Training(epochs=1 if server else 2, batch_size=8, learning_rate=1e-2, shuffle=shuffle), [], []
    for data in (plain, open_dataset(tmp_path / "shards"), away):
        model = fresh(tiny_model)
        ends.append(fit(get("flyp"), model, data, training).state)
        right.append(Judge(model, data, ends[-1]).judge(get("flyp"), ends[-1]).correct)
    assert all(torch.equal(ends[0][key], end[key]) for end in ends[1:] for key in ends[0])
    assert all(right[0][name].tolist() == one[name].tolist() for one in right[1:] for name in right[0])
    if shuffle != "all" and not server:
        other = fit(get("flyp"), fresh(tiny_model), plain, replace(training, shuffle="all")).state
        assert not all(torch.equal(ends[0][key], other[key]) for key in other), "the orders differ"


def test_an_epoch_by_shards_holds_every_image_once_and_few_shards_at_a_time() -> None:
    numbers = torch.tensor([row % 7 if row < 40 else row // 13 for row in range(60)])

    def epoch(seed: int, at_a_time: int) -> list[int]:
        order: list[int] = batches._by_shards(numbers, at_a_time, torch.Generator().manual_seed(seed)).tolist()
        return order

    for seed, at_a_time in ((0, 1), (0, 2), (1, 3), (2, 7), (3, 50)):
        order = epoch(seed, at_a_time)
        assert Counter(order) == Counter(range(60)) and order == epoch(seed, at_a_time)
        of, left = [int(numbers[row]) for row in order], Counter(numbers.tolist())
        active: set[int] = set()
        for number in of:  # a shard is done before more than `at_a_time` are begun
            active.add(number)
            left[number] -= 1
            assert len(active) <= at_a_time
            active = active if any(left[one] for one in active) else set()
    assert epoch(0, 2) != epoch(1, 2)
    assert epoch(3, 50) != sorted(epoch(3, 50)), "the images of shards that are read together are shuffled"
    assert len({tuple(dict.fromkeys(int(numbers[row]) for row in epoch(seed, 1))) for seed in range(9)}) > 3, "shards are shuffled too"


def test_epochs_and_seeds_differ_and_a_run_goes_on_where_it_stood() -> None:
    labels, numbers = torch.zeros(24, dtype=torch.long), torch.arange(24) // 5

    def steps(seed: int) -> list[list[int]]:
        drawn = batches._draws(labels, (), numbers, 2, Training(batch_size=8, shuffle="shards:2", seed=seed))
        return [next(drawn)[0].tolist() for _ in range(6)]

    first = steps(0)
    assert sorted(itertools.chain(*first[:3])) == sorted(itertools.chain(*first[3:])) == list(range(24))
    assert first[:3] != first[3:] and first != steps(1) and first == steps(0)


def test_images_in_folders_count_to_the_shards_they_would_be_packed_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PER_SHARD", 2)
    assert batches.shard_numbers([Path(f"a/{k}.png") for k in range(5)]).tolist() == [0, 0, 1, 1, 2]
    assert batches.shard_numbers([Path(f"a/{tar}.tar/{k}.png") for tar, k in ((7, 0), (7, 1), (7, 2), (3, 0))]).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("given", ["shards", "shards:0", "shards:x", "none", "shards:-1"])
def test_an_order_that_is_none_is_named(given: str) -> None:
    with pytest.raises(SettingError, match=f"shuffle is {given}; it must be all, or shards:B"):
        Training(shuffle=given)


def test_the_usual_order_is_not_stated_and_another_one_is() -> None:
    assert "shuffle" not in stated(Training()) and stated(Training(shuffle="shards:4"))["shuffle"] == "shards:4"
    with pytest.raises(SettingError, match="shuffle is shards:4; it must be all where sampling is balanced"):
        Training(shuffle="shards:4", sampling="balanced")


def test_an_order_that_would_fetch_each_image_is_refused_before_training(
    packed: Path,  # noqa: F811
    tmp_path: Path,
    serve: Serve,
    tiny_model: ImageTextModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = allow(monkeypatch, packed, 2)
    data = open_dataset(remote(packed, tmp_path / "remote", serve(packed).address))
    total = sum(path.stat().st_size for path in (packed / "train").glob("*.tar"))
    told = rf"7 shards of {total} bytes are read in turns, and SUREFOOT_SHARD_CACHE allows {most}: .*shuffle=shards:B"
    with pytest.raises(SettingError, match=told):
        preflight(get("flyp"), tiny_model, data, Training())
    with pytest.raises(SettingError, match="3 shards of"):
        preflight(get("flyp"), tiny_model, data, Training(shuffle="shards:3"))
    preflight(get("flyp"), tiny_model, data, Training(shuffle="shards:2"))
    preflight(get("lp"), tiny_model, data, Training())
    preflight(get("flyp"), tiny_model, open_dataset(packed), Training())


def labelled(number: int, ending: str, *texts: str) -> dict[str, bytes]:
    """Pictures with a text each."""
    return {
        name: content
        for k, text in enumerate(texts)
        for name, content in ((f"{k}.png", picture(10 * number + k)), (f"{k}.{ending}", text.encode()))
    }


def test_room_is_asked_for_the_largest_shards_whichever_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, size in enumerate((3, 9, 5)):
        shards.lies_at(Path(f"train/{number}.tar"), Path(f"cache/{number}.tar"))
        shards.comes_from(Path(f"cache/{number}.tar"), SimpleNamespace(stamp=(size, 0)))
    paths = [Path(f"train/{number}.tar/{k}.png") for number in range(3) for k in range(4)]
    monkeypatch.setenv(shard_cache.LIMIT, "13")
    assert shard_cache.too_little(paths, 2).startswith("2 shards of 14 bytes are read in turns")
    assert shard_cache.too_little(paths).startswith("3 shards of 17 bytes")
    monkeypatch.setenv(shard_cache.LIMIT, "14")
    assert shard_cache.too_little(paths, 2) == "" == shard_cache.too_little([Path("train/a/1.png")])


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """Six shards of the same size, on the server's disk."""
    for number in range(6):
        shard(tmp_path / f"away/{number}.tar", {f"{k}.png": picture(10 * number + k) for k in range(5)})
    assert len(set(sizes(tmp_path / "away"))) == 1
    return tmp_path / "away"


def remotes(away: Path, server: Server, cache: Path, most: int) -> list[Remote]:  # noqa: F811
    return [Remote(f"{server.address}/{path.name}", cache / "shards", most) for path in sorted(away.glob("*.tar"))]


def test_what_is_read_is_not_given_up_and_the_one_used_longest_ago_is(
    away: Path,
    serve: Serve,
    cache: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_cache, "PATIENCE", 0.2)
    one = sizes(away)[0]
    first, second, third, fourth, *_ = remotes(away, serve(away), cache, 2 * one)
    os.close(first.open())
    time.sleep(0.02)
    held = second.open()
    time.sleep(0.02)
    os.close(first.open())  # used last now
    os.close(third.open())
    assert [each.file.is_file() for each in (first, second, third)] == [False, True, True], "the other one was used longer ago, but is read"
    also = third.open()
    with pytest.raises(
        DataError, match=rf"no room for .*/3\.tar \({one} bytes\): .* {2 * one} bytes, and SUREFOOT_SHARD_CACHE allows {2 * one}"
    ):
        fourth.open()
    os.close(held)
    os.close(fourth.open())
    assert not second.file.is_file() and third.file.is_file()
    os.close(also)
    with pytest.raises(DataError, match=rf"has {one} bytes, and SUREFOOT_SHARD_CACHE allows 700 for all shards. Allow more"):
        remotes(away, serve(away), cache, 700)[5].open()


def test_the_shard_used_longest_ago_is_given_up_first(away: Path, serve: Serve, cache: Path) -> None:  # noqa: F811
    first, second, third, fourth, *_ = each = remotes(away, serve(away), cache, 3 * sizes(away)[0])
    for remote_one in (first, second, third, first, fourth):
        os.close(remote_one.open())
        time.sleep(0.02)
    assert [one.file.is_file() for one in each] == [True, False, True, True, False, False]
    os.close(second.open())
    assert [one.file.is_file() for one in each] == [True, True, False, True, False, False]


def test_a_shard_that_is_another_one_by_now_is_told_and_known_the_next_time(
    away: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, away, 1)
    root = tmp_path / "data/train"
    root.mkdir(parents=True)
    (root / "shards.txt").write_text(f"{serve(away).address}/{{0..5}}.tar\n")
    (tmp_path / "data/classnames.txt").write_text("a\nb\n")
    for number in range(6):
        shard(away / f"{number}.tar", labelled(number, "cls", "0", "1", "0", "1"))
    data = open_dataset(tmp_path / "data")
    path = next(path for path in data.split("train").paths if "0.tar" in str(path))
    shard(away / "0.tar", {"0.png": picture(99), "0.cls": b"1"})
    with pytest.raises(DataError, match=r"/0\.tar has changed on its server since the data were opened.* Run the command again"):
        content(path)
    forget()
    again = open_dataset(tmp_path / "data").split("train")
    assert len(again) == len(data.split("train")) - 3 and content(again.paths[0]) == picture(99)


def read_at_random(seed: int, each: list[Remote], expected: list[bytes]) -> None:
    draw = random.Random(seed)
    for _ in range(12):
        number = draw.randrange(len(each))
        with os.fdopen(each[number].open(), "rb") as file:
            assert file.read() == expected[number]


def test_processes_and_threads_share_a_small_cache(away: Path, serve: Serve, cache: Path) -> None:  # noqa: F811
    server, most, expected = serve(away), 4 * sizes(away)[0], [path.read_bytes() for path in sorted(away.glob("*.tar"))]
    context, seen = multiprocessing.get_context("fork"), list[int]()
    started = [context.Process(target=read_at_random, args=(seed, remotes(away, server, cache, most), expected)) for seed in range(2)]
    for process in started:
        process.start()
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read_at_random, 9 + k, remotes(away, server, cache, most), expected) for k in range(2)]
        while any(process.is_alive() for process in started) or not all(one.done() for one in reading):
            seen.append(on_disk(cache))
            time.sleep(0.002)
        for one in reading:
            one.result()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    assert max(seen) <= most
    assert len(server.asked) > 6, "some were given up and fetched again"


def test_a_process_that_is_killed_leaves_nothing_that_is_in_the_way(away: Path, serve: Serve, cache: Path) -> None:  # noqa: F811
    slow, one = serve(away, breaks=1, pause=30.0), sizes(away)[0]
    first, second, *_ = remotes(away, slow, cache, one)
    process = multiprocessing.get_context("fork").Process(target=first.open)
    process.start()
    partial = first.file.with_name("0.tar.part")
    until = time.monotonic() + 20
    while not (partial.is_file() and partial.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert partial.stat().st_size == 700 and first._wanted.is_file()
    os.close(Remote(first.address, cache / "shards", one).open())
    assert slow.asked == ["0.tar", "0.tar bytes=700-"], "it goes on where the other was killed"
    assert first.file.read_bytes() == (away / "0.tar").read_bytes() and not first._wanted.exists()
    slow.breaks = 0
    first.file.rename(partial)  # as if it had been killed at the very end
    first._wanted.write_text(str(one))
    os.close(second.open())
    assert not partial.exists() and on_disk(cache) == one, "what a killed process left is given up when its room is needed"


def test_pools_are_streamed_too(away: Path, tmp_path: Path, serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for number in range(6):
        shard(away / f"{number}.tar", labelled(number, "txt", "a thing", "a place"))
    most = allow(monkeypatch, away, 2)
    local = open_pool(str(away))
    pool = open_pool(f"{serve(away).address}/{{0..5}}.tar")
    assert pool.texts == local.texts
    assert [place.read() for place in pool.places] == [place.read() for place in local.places]
    assert on_disk(cache) <= most


def test_facts_do_not_depend_on_when_a_shard_came(away: Path, serve: Serve, cache: Path) -> None:  # noqa: F811
    first, *_, last = remotes(away, serve(away), cache, sizes(away)[0])
    os.close(first.open())
    before = first.file.stat().st_mtime_ns, digests([first.file])
    os.close(last.open())
    assert not first.file.exists()
    time.sleep(0.02)
    os.close(first.open())
    assert (first.file.stat().st_mtime_ns, digests([first.file])) == before
    assert json.loads(first.file.with_name("0.tar.json").read_text()) == list(first.stamp)


@pytest.fixture(name="_unused", autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the user's environment says."""
    monkeypatch.delenv(shard_cache.LIMIT, raising=False)
    yield
