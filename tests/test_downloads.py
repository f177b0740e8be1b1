"""Shards by address: what a server may do, and that nothing but the whole file it now has gets into the cache."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import pytest
from test_shards import picture, shard

from surefoot.data import downloads
from surefoot.data.downloads import download
from surefoot.errors import DataError

Serve = Callable[..., "Server"]


class Server(ThreadingHTTPServer):
    """Serves the files of a folder; the first answers to each path break off, as often as `breaks` says.

    `tag` is what tells one state of a file from another; a server that is `careless` sends a part whatever the state, and one that is
    `wrong` another part than was asked for. `pause` is waited for, in seconds, before an answer breaks off.
    """

    def __init__(self, folder: Path, **given: object) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, list[str]()
        self.breaks, self.ranges, self.length, self.tag, self.careless, self.wrong, self.pause = 0, True, True, "ETag", False, False, 0.0
        self.__dict__.update(given)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        path, wanted = self.server.folder / unquote(self.path).lstrip("/"), self.headers.get("Range", "")
        self.server.asked.append(f"{path.name} {wanted}".strip())
        if not path.is_file():
            self.send_error(404)
            return
        content, times = path.read_bytes(), sum(asked.startswith(path.name) for asked in self.server.asked)
        tag = f'"{hashlib.sha256(content).hexdigest()}"' if self.server.tag == "ETag" else f"Thu, {len(content) % 28 + 1:02d} Jan 1970 GMT"
        same = self.server.careless or self.headers.get("If-Range") == tag
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges and same else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            start -= 100 if self.server.wrong else 0
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.tag and not (start and self.server.careless):
            self.send_header(self.server.tag, tag)
        if self.server.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if times > self.server.breaks:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[start : start + 700])
        self.wfile.flush()
        time.sleep(self.server.pause)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(name="serve")
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(downloads, "PAUSE", 0)
    started: list[Server] = []

    def start(folder: Path, **given: object) -> Server:
        started.append(Server(folder, **given))  # type: ignore[arg-type]
        threading.Thread(target=started[-1].serve_forever, args=(0.01,), daemon=True).start()
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A shard of two samples, on the server's disk."""
    return shard(
        tmp_path / "away" / "0.tar", {f"{k}.{end}": picture(k) if end == "png" else b"0" for k in (1, 2) for end in ("png", "cls")}
    )


def test_a_full_disk_is_told_and_the_transfer_goes_on_when_there_is_room(
    tar: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, keep = serve(tar.parent), downloads._received

    def full(response: http.client.HTTPResponse, file: BinaryIO, *_: object) -> object:
        file.write(response.read(1500))
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloads, "_received", full)
    with pytest.raises(DataError) as told:
        download(f"{server.address}/0.tar", tmp_path / "cache")
    wanted = ("0.tar.part cannot be written (No space left on device)", f"{server.address}/0.tar", "SUREFOOT_CACHE", "1500 bytes are kept")
    for words in wanted:
        assert words in str(told.value)
    monkeypatch.setattr(downloads, "_received", keep)
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", "0.tar bytes=1500-"]
    (tmp_path / "a file").write_text("")
    with pytest.raises(DataError, match=r"a file.* cannot be written \((Not a directory|File exists)\).* 0 bytes are kept"):
        download(f"{server.address}/0.tar", tmp_path / "a file")


def test_nobody_writes_into_a_shard_that_another_process_has_finished(
    tar: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, rename = serve(tar.parent, ranges=False), Path.replace

    def slowly(self: Path, target: Path) -> Path:
        time.sleep(0.3)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes(), range(4)))
    assert found == [tar.read_bytes()] * 4
    assert len(server.asked) == 1


def test_an_answer_without_a_length_that_is_cut_off_goes_on(tar: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(tar.parent, breaks=2, length=False)
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", "0.tar bytes=700-", "0.tar bytes=1400-"]


def test_an_answer_that_is_always_cut_off_never_gets_into_the_cache(tar: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(tar.parent, breaks=99, length=False, ranges=False)
    with pytest.raises(DataError, match=r"/0\.tar could not be downloaded"):
        download(f"{server.address}/0.tar", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tar"))
    server.breaks = 0
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()


def test_a_file_that_is_no_whole_tar_is_told_by_its_address_and_not_kept(tar: Path, tmp_path: Path, serve: Serve) -> None:
    server, whole = serve(tar.parent), tar.read_bytes()
    for content, words in ((b"<html>Log in, please.</html>" * 40, "is no whole tar file"), (whole[:1500], "is no whole tar file")):
        tar.write_bytes(content)
        with pytest.raises(DataError, match=words) as error:
            download(f"{server.address}/0.tar", tmp_path / "cache")
        assert str(error.value).startswith(f"{server.address}/0.tar")
        assert not [path for path in (tmp_path / "cache").rglob("0.tar*") if path.suffix != ".lock"]
    tar.write_bytes(whole)
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == whole


@pytest.mark.parametrize("tag", ["ETag", "Last-Modified"])
def test_a_transfer_does_not_go_on_in_another_file(
    tag: str, tar: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TRIES", 1)
    server = serve(tar.parent, breaks=1, tag=tag)
    with pytest.raises(DataError, match="700 bytes are kept"):
        download(f"{server.address}/0.tar", tmp_path / "cache")
    shard(tar, {"1.png": picture(7), "1.cls": b"1", "2.png": picture(8), "2.cls": b"1", "3.cls": b"1" * 512 * (tag != "ETag")})
    tar.write_bytes(tar.read_bytes() + b"\0" * 512 * (tag != "ETag"))
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", "0.tar bytes=700-"]
    assert [path.name for path in (tmp_path / "cache").rglob("0.tar*") if path.suffix not in (".lock", ".json")] == ["0.tar"]


def test_what_tells_nothing_of_its_state_begins_anew(tar: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(tar.parent, breaks=1, tag="")
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", "0.tar"]


def test_a_part_of_another_file_is_not_appended(tar: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores If-Range and tells the other file's tag."""
    monkeypatch.setattr(Handler, "parse_request", _without_if_range(Handler.parse_request))
    server = serve(tar.parent, breaks=1)
    monkeypatch.setattr(downloads, "TRIES", 1)
    with pytest.raises(DataError, match="700 bytes are kept"):
        download(f"{server.address}/0.tar", tmp_path / "cache")
    shard(tar, {"1.png": picture(7), "1.cls": b"1", "2.png": picture(8), "2.cls": b"1"})
    monkeypatch.setattr(downloads, "TRIES", 2)
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", "0.tar bytes=700-", "0.tar"]


def _without_if_range(parse: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    def parsed(self: Handler) -> bool:
        found = parse(self)
        del self.headers["If-Range"]
        if self.headers.get("Range"):
            content = (self.server.folder / self.path.lstrip("/")).read_bytes()
            self.headers["If-Range"] = f'"{hashlib.sha256(content).hexdigest()}"'
        return found

    return parsed


def test_another_part_than_was_asked_for_is_not_appended(tar: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(tar.parent, breaks=1, wrong=True)
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", "0.tar bytes=700-", "0.tar"]


def test_a_transfer_that_had_all_is_not_repeated(tar: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(tar.parent)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            download(f"{server.address}/0.tar", tmp_path / "cache")
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", f"0.tar bytes={tar.stat().st_size}-"]


def test_a_transfer_that_stalls_is_taken_up_again(tar: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    server, begun = serve(tar.parent, breaks=2, pause=5.0), time.monotonic()
    assert download(f"{server.address}/0.tar", tmp_path / "cache").read_bytes() == tar.read_bytes()
    assert server.asked == ["0.tar", "0.tar bytes=700-", "0.tar bytes=1400-"], "what came before is kept"
    assert time.monotonic() - begun < 4.0


def test_a_transfer_that_drips_is_told(tar: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def dripping(self: Handler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "9000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.1)

    monkeypatch.setattr(Handler, "do_GET", dripping)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    monkeypatch.setattr(downloads, "TRIES", 1)
    with pytest.raises(DataError, match=r"only [3-9] bytes came in 0 seconds.*0 bytes are kept"):
        download(f"{serve(tar.parent).address}/0.tar", tmp_path / "cache")
