"""ARF's image-text pairs: which are found, what may not be among them, what an interruption costs, and bad pools."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import draw
from torch.nn import functional as F

from surefoot import cli
from surefoot.anchors import retrieval
from surefoot.anchors.attach import attach
from surefoot.anchors.pairs import read_pairs
from surefoot.anchors.pool import Pool, open_pool
from surefoot.anchors.retrieval import embed_images, embed_texts, nearest, retrieve_pairs, write_pairs
from surefoot.data import Dataset, open_dataset
from surefoot.data.digest import digests
from surefoot.errors import DataError, MissingDataError, SettingError
from surefoot.identity import weights_hash
from surefoot.model import ImageTextModel

TEXTS = ("a red disc", "two crosses on paper", "a cross", "a box, closed", "", "a ring thing")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))


def image_bytes(number: int) -> bytes:
    stream = io.BytesIO()
    draw(("disc", "cross", "box")[number % 3], number, "blue").save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pool"
    place.mkdir()
    for number in range(len(TEXTS)):
        (place / f"{number}.png").write_bytes(image_bytes(number))
    rows = [json.dumps({"path": f"{number}.png", "caption": text}) for number, text in enumerate(TEXTS)]
    (place / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    return place


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    place = tmp_path / "shards"
    place.mkdir()
    for part in range(2):
        members: dict[str, bytes] = {}
        for number in range(3 * part, 3 * part + 3):
            members[f"{number}.png"] = image_bytes(number)
            as_text = {f"{number}.txt": TEXTS[number].encode()}
            members |= as_text if number % 2 else {f"{number}.json": json.dumps({"caption": TEXTS[number]}).encode()}
        shard(place / f"{part:03d}.tar", members)
    return place


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_nearest_is_equation_4() -> None:
    query, keys = unit(20, 0), unit(50, 1)
    scores, rows = nearest(query, keys, 2)
    for image, own, found in zip(query, scores, rows, strict=True):
        products = [float(sum(a * b for a, b in zip(image.tolist(), key.tolist(), strict=True))) for key in keys]
        ranked = sorted(range(50), key=lambda row: -products[row])[:2]
        assert found.tolist() == ranked
        assert own.tolist() == pytest.approx([products[row] for row in ranked], abs=1e-5)


def test_torch_finds_what_faiss_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys = unit(300, 0), unit(400, 1)
    with_faiss = nearest(query, keys, 5)
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = nearest(query, keys, 5)
    assert torch.equal(with_faiss[1], without[1])
    torch.testing.assert_close(with_faiss[0], without[0])
    with pytest.raises(SettingError, match=r"surefoot\[retrieval\]"):
        nearest(query, keys, 5, "ivf")


def test_an_inverted_file_finds_most(recall: float = 0.9) -> None:
    query, keys = unit(200, 0), unit(1000, 1)
    exact, approximate = nearest(query, keys, 1)[1], nearest(query, keys, 1, "ivf")[1]
    assert (exact == approximate).float().mean() > recall


def test_more_pairs_than_candidates_are_refused() -> None:
    with pytest.raises(SettingError, match="Ask for 1 to 3"):
        nearest(unit(2, 0), unit(3, 1), 4)


def test_folder_and_shards_are_one_pool(folder: Path, shards: Path) -> None:
    pools = [open_pool(str(place)) for place in (folder, shards, f"{shards}/{{000..001}}.tar", f"{shards}/*.tar")]
    for pool in pools:
        assert pool.texts == tuple(text for text in TEXTS if text)
        assert [place.read() for place in pool.places] == [image_bytes(number) for number, text in enumerate(TEXTS) if text]
        assert any("1 candidates without a text" in note for note in pool.notes)


def test_pairs_that_name_a_class_are_left_out(folder: Path) -> None:
    pool = open_pool(str(folder)).without(("cross", "ring thing"))
    assert pool.texts == ("a red disc", "a box, closed")
    assert [place.read() for place in pool.places] == [image_bytes(0), image_bytes(3)]
    assert pool.notes[-1] == "3 of 5 candidates name one of the 2 classes left out."
    kept = Pool(name="p", texts=("a boxer", "BOXES", "inbox", "a box"), places=pool.places * 2).without(("box",))
    assert kept.texts == ("a boxer", "inbox")


def test_embeddings_follow_weights_and_texts(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = tiny_model.encode_text
    monkeypatch.setattr(tiny_model, "encode_text", lambda tokens: (calls.append(len(tokens)), encode(tokens))[1])
    texts = ["a b", "c", "a b"]
    first = embed_texts(tiny_model, texts)
    torch.testing.assert_close(first, encode(tiny_model.tokenize(texts)).detach())
    assert calls == [2], "each distinct text once"
    assert torch.equal(embed_texts(tiny_model, texts), first)
    assert calls == [2], "from the cache"
    embed_texts(tiny_model, ["a b", "d"])
    assert calls == [2, 2]
    with torch.no_grad():
        tiny_model.clip.text_projection[0] += 1.0
    assert not torch.allclose(embed_texts(tiny_model, texts), first)
    assert calls == [2, 2, 2]


def test_an_interruption_costs_one_chunk(tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", 8)
    paths, seen = tiny_data.split("train").paths, list[int]()
    encode = tiny_model.encode_image

    def stops(image: torch.Tensor) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(image))
        return encode(image)

    monkeypatch.setattr(tiny_model, "encode_image", stops)
    with pytest.raises(KeyboardInterrupt):
        embed_images(tiny_model, paths)
    again: list[int] = []
    monkeypatch.setattr(tiny_model, "encode_image", lambda image: (again.append(len(image)), encode(image))[1])
    found = embed_images(tiny_model, paths)
    assert again == [8]
    assert len(found) == 24


def test_a_damaged_cache_is_made_anew(tiny_model: ImageTextModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = embed_texts(tiny_model, ["a", "b"])
    file = next((tmp_path / "cache" / "embeddings").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(embed_texts(tiny_model, ["a", "b"]), first)
    assert "made anew" in caplog.text


def test_a_pair_that_cannot_be_read_gives_way_to_the_next(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"no image")
    pool = open_pool(str(folder))
    keys = torch.eye(8)[: len(pool)]
    query = F.normalize(torch.tensor([[1.0, 0.5, 0.2, 0.1, 0, 0, 0, 0]]), dim=-1)
    found = retrieve_pairs(pool, query, keys, 2)
    assert found.rows == [[1, 2]]
    assert found.scores[0] == pytest.approx(query[0, 1:3].tolist())
    assert found.num_unreadable == 1
    assert found.images == {1: image_bytes(1), 2: image_bytes(2)}


def test_what_is_written_is_what_training_reads(folder: Path, tmp_path: Path, tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    pool, train, out = open_pool(str(folder)), tiny_data.split("train"), tmp_path / "anchors"
    query, keys = embed_images(tiny_model, train.paths), embed_texts(tiny_model, pool.texts)
    found = retrieve_pairs(pool, query, keys, 2)
    about = {"pool": "p", "weights": weights_hash(tiny_model), "model": "tiny", "k": 2, "num_candidates": len(pool)}
    write_pairs(out, pool, found, digests(train.paths), about)
    anchors = attach(tiny_data, out).anchors
    assert anchors.weights == weights_hash(tiny_model)
    for row, path in enumerate(train.paths):
        ranked = sorted(range(len(pool)), key=lambda key: -float(query[row] @ keys[key]))[:2]
        assert [anchors.texts[pair] for pair in anchors.pairs[path]] == [pool.texts[key] for key in ranked]
        assert [anchors.images[pair].read_bytes() for pair in anchors.pairs[path]] == [pool.places[key].read() for key in ranked]
    assert not list(out.glob("*.part"))
    write_pairs(out, pool, retrieve_pairs(pool, query, keys, 1), digests(train.paths), {**about, "k": 1})
    assert read_pairs(out).k == 1


def test_damaged_pairs_are_named(folder: Path, tmp_path: Path) -> None:
    pool, out = open_pool(str(folder)), tmp_path / "anchors"
    with pytest.raises(MissingDataError, match="surefoot retrieve DATA --candidates POOL"):
        read_pairs(out)
    found = retrieve_pairs(pool, torch.eye(8)[:2], torch.eye(8)[: len(pool)], 1)
    write_pairs(out, pool, found, ["x", "y"], {"pool": "p", "weights": "w", "model": "m", "k": 1})
    lines = (out / "pairs.jsonl").read_text().splitlines()
    (out / "pairs.jsonl").write_text("\n".join([*lines[:2], lines[2][:20]]) + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 3 is damaged"):
        read_pairs(out)
    (out / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    gone = next((out / "pairs").iterdir())
    gone.unlink()
    with pytest.raises(DataError, match=f"The image of the pair {gone.stem} is not"):
        read_pairs(out)


def broken_tar(shards: Path) -> str:
    path = shards / "001.tar"
    path.write_bytes(path.read_bytes()[:1500])
    return str(shards)


def cut_between_members(shards: Path) -> str:
    path = shards / "001.tar"
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"4.png")])
    return str(shards)


def not_a_tar(shards: Path) -> str:
    (shards / "001.tar").write_bytes(b"x" * 2048)
    return str(shards)


@pytest.mark.parametrize("damage", [broken_tar, cut_between_members, not_a_tar])
def test_a_broken_shard_is_named_and_may_be_skipped(damage: Callable[[Path], str], shards: Path) -> None:
    place = damage(shards)
    with pytest.raises(DataError, match=r"001\.tar is broken .*--skip-broken"):
        open_pool(place)
    pool = open_pool(place, skip_broken=True)
    assert pool.texts[:3] == TEXTS[:3]
    assert any("001.tar is broken" in note for note in pool.notes)


def test_members_are_never_written_and_long_texts_are_refused(tmp_path: Path) -> None:
    evil = {"../../evil.png": image_bytes(0), "../../evil.txt": b"a trap", "half.png": image_bytes(1)}
    pool = open_pool(str(shard(tmp_path / "a.tar", evil)))
    assert pool.texts == ("a trap",)
    assert any("1 samples" in note for note in pool.notes)
    assert not list(tmp_path.parent.glob("evil*"))
    with pytest.raises(DataError, match="too many for a caption"):
        open_pool(str(shard(tmp_path / "b.tar", {"a.png": image_bytes(0), "a.txt": b"x" * 100_000})))


def test_bad_pools_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="is no pool of image-text pairs"):
        open_pool(str(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match=r"3 of 3 shards are not there, the first is .*x-07\.tar"):
        open_pool(f"{tmp_path}/x-{{07..09}}.tar")
    (folder / "2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 6 images .* such as .*2\.png"):
        open_pool(str(folder))
    (folder / "manifest.jsonl").write_text('{"path": "0.png"}\n')
    with pytest.raises(DataError, match="line 1 has not got a path and a caption"):
        open_pool(str(folder))
    (folder / "manifest.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="cannot be read as a manifest"):
        open_pool(str(folder))


def test_the_command(
    folder: Path, tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "anchors"
    given = [
        "surefoot",
        "retrieve",
        str(tiny_root),
        "--candidates",
        str(folder),
        "--model",
        f"local-dir:{tiny_folder}",
        "--anchors",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", [*given, "--without", "unseen", "--k", "2"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown
    assert "24 training images retrieved 2 distinct pairs of 2 candidates" in shown.out.replace("\n", " ")
    assert "surefoot compare" in shown.out
    assert "3 of 5 candidates name one of the 2 classes" in shown.err
    pairs = read_pairs(out)
    assert set(pairs.texts) == {"a red disc", "a box, closed"}
    assert len(attach(open_dataset(tiny_root), out).anchors.pairs) == 24
