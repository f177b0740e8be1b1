"""Shards by address: what a server may do, and that nothing but the whole file it now has gets into the cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_shards import picture, shard

from surefoot.data import downloads
from surefoot.data.downloads import download
from surefoot.errors import DataError

Serve = Callable[..., "Server"]


class Server(ThreadingHTTPServer):
    """Serves the files of a folder; the first answers to each path break off, as often as `breaks` says."""

    def __init__(self, folder: Path, *, breaks: int = 0, ranges: bool = True, length: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.breaks, self.ranges, self.length, self.asked = folder, breaks, ranges, length, list[str]()

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
        content = path.read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        times = sum(asked.startswith(path.name) for asked in self.server.asked)
        self.wfile.write(content[start : start + 700] if times <= self.server.breaks else content[start:])

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
