"""ARF's image-text pairs: which are found, what may not be among them, what an interruption costs, and bad pools."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import draw, typed
from test_downloads import Server, served  # noqa: F401 - a fixture
from torch.nn import functional as F

from surefoot.anchors import pairs as pairs_module
from surefoot.anchors import pool as pool_module
from surefoot.anchors import retrieval
from surefoot.anchors.attach import attach
from surefoot.anchors.pairs import read_pairs, write_pairs
from surefoot.anchors.pool import Place, Pool, open_pool
from surefoot.anchors.retrieval import Retrieved, embed_images, embed_texts, nearest, recall, retrieve_pairs
from surefoot.data import Dataset, open_dataset
from surefoot.data.digest import digests
from surefoot.errors import DataError, MissingDataError, SettingError
from surefoot.model import ImageTextModel

Run = Callable[..., tuple[int, str]]
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


@pytest.mark.parametrize("installed", [True, False], ids=["faiss", "torch"])
def test_of_equally_near_keys_the_lower_row_comes_first(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "faiss", None)
    distinct, query = unit(7, 1), unit(40, 0)
    keys = distinct[torch.arange(210) % 7]  # each of them thirty times, more than are looked at in one go
    _, rows = nearest(query, keys, 3)
    best = (query.double() @ distinct.double().T).argmax(1)
    assert torch.equal(rows, torch.stack([best, best + 7, best + 14], dim=1))


def test_an_inverted_file_finds_most_and_tells_how_much() -> None:
    query, keys = unit(200, 0), unit(4000, 1)
    exact, scores = nearest(query, keys, 2)[1], nearest(query, keys, 2, "ivf")[0]
    assert (exact == nearest(query, keys, 2, "ivf")[1]).float().mean() == pytest.approx(recall(query, keys, scores), abs=0.06)
    assert recall(query, keys, scores) > 0.5
    assert recall(query, keys, nearest(query, keys, 2)[0]) == 1.0
    assert recall(query, keys, scores - 1.0) == 0.0


def test_an_inverted_file_gives_k_pairs_even_where_it_holds_fewer() -> None:
    scores, rows = nearest(unit(50, 0), unit(3000, 1), 2990, "ivf")
    assert (rows >= 0).all()
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_more_pairs_than_candidates_are_refused() -> None:
    with pytest.raises(SettingError, match="Ask for 1 to 3"):
        nearest(unit(2, 0), unit(3, 1), 4)
    with pytest.raises(SettingError, match=r"Unknown index 'ivff'\. Did you mean 'ivf'"):
        nearest(unit(2, 0), unit(3, 1), 1, "ivff")


def test_folder_and_shards_are_one_pool(folder: Path, shards: Path) -> None:
    pools = [open_pool(str(place)) for place in (folder, shards, f"{shards}/{{000..001}}.tar", f"{shards}/*.tar")]
    for pool in pools:
        assert pool.texts == tuple(text for text in TEXTS if text)
        assert [place.read() for place in pool.places] == [image_bytes(number) for number, text in enumerate(TEXTS) if text]
        assert any("1 candidates without a text" in note for note in pool.notes)


def test_a_pool_may_lie_elsewhere(folder: Path, shards: Path, tmp_path: Path, serve: Callable[..., Server]) -> None:
    whole, server = open_pool(str(folder)), serve(shards, breaks=1)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "shards.txt").write_text(f"# two\n{server.address}/000.tar\n../shards/001.tar\n")
    for place in (f"{server.address}/{{000..001}}.tar", str(tmp_path / "far"), str(tmp_path / "far" / "shards.txt")):
        pool = open_pool(place, allow_outside=True)
        assert (pool.name, pool.texts, pool.rows) == (place, whole.texts, whole.rows)
        assert [one.read() for one in pool.places] == [one.read() for one in whole.places]
    with pytest.raises(DataError, match=r"far leads to 1 file outside of .*001\.tar.*--allow-outside"):
        open_pool(str(tmp_path / "far"))
    assert open_pool(f"{server.address}/000.tar").texts == whole.texts[:3]
    assert [asked for asked in server.asked if "=" not in asked] == ["000.tar", "001.tar"], "once, though opened often"
    with pytest.raises(MissingDataError, match=rf"{server.address}/002\.tar cannot be had"):
        open_pool(f"{server.address}/{{000..002}}.tar")
    with pytest.raises(DataError, match=r"000\.tar\.gz is no \.tar file"):
        open_pool(f"{server.address}/000.tar.gz")
    with pytest.raises(DataError, match="neither a path nor an http address"):
        open_pool("s3://bucket/000.tar")
    (shards / "shards.txt").write_text("000.tar\n")
    with pytest.raises(DataError, match=r"001\.tar, which shards\.txt beside it does not name"):
        open_pool(str(shards))


def test_pairs_that_name_a_class_are_left_out(folder: Path) -> None:
    pool = open_pool(str(folder)).without(("cross", "ring thing"))
    assert pool.texts == ("a red disc", "a box, closed")
    assert [place.read() for place in pool.places] == [image_bytes(0), image_bytes(3)]
    assert pool.notes[-1] == "3 of 5 candidates name one of the 2 classes left out."
    assert pool.rows == (0, 3)
    with pytest.raises(DataError, match="All 2 candidates"):
        pool.without(("disc", "box"))
    with pytest.raises(SettingError, match="No class is named"):
        pool.without((" ",))


@pytest.mark.parametrize(
    ("name", "named", "other"),
    [
        ("box", ("a box", "BOXES", "box-shaped", "box_2", "a big box."), ("a boxer", "inbox")),
        ("sea wolf", ("Sea wolf", "sea-wolves", "seawolf", "two sea  wolfs"), ("a wolf at sea", "sea", "wolf")),
        ("butterfly", ("butterflies", "a butterfly"), ("butter", "fly", "butterflying")),
        ("knife", ("knives", "knife", "Knifes"), ("knight",)),
        ("coins", ("a coin", "coins"), ("coinage", "bitcoin")),
        ("glass", ("glasses", "glass"), ("glassy",)),
        ("bus", ("buses", "a bus"), ("bu", "busy")),
        ("paintbrush", ("paint brush", "paint-brushes"), ("paint", "brush", "a can of paint, brushes")),
        ("hand", ("hands",), ("h and m", "handle")),
        ("c++ (book)", ("a c++ (book)", "C++ (book)s"), ("cpp book", "c++")),
    ],
)
def test_a_class_is_named_in_singular_or_plural_as_a_whole_word(name: str, named: tuple[str, ...], other: tuple[str, ...]) -> None:
    place = Place(Path("x.png"), ".png")
    pool = Pool(name="p", texts=(*named, *other), places=(place,) * len(named + other), rows=tuple(range(len(named + other))))
    assert pool.without((name, "no such")).texts == other


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
    for number in (1, 2, 3, 5):
        (folder / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="Only 0 of the 5 candidates nearest to an image can be read; 2 are needed"):
        retrieve_pairs(pool, query, keys, 2)


def written(out: Path, pool: Pool, keys: list[str], found: Retrieved, k: int) -> int:
    return write_pairs(out, pool, keys, found.rows, found.scores, {"pool": "p", "weights": "w", "model": "m", "k": k})


def test_what_is_written_is_what_training_reads(folder: Path, tmp_path: Path, tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    train, out = tiny_data.split("train"), tmp_path / "anchors"
    (folder / "3.png").write_bytes(train.paths[0].read_bytes())
    pool = open_pool(str(folder))
    query, keys = embed_images(tiny_model, train.paths), embed_texts(tiny_model, pool.texts)
    found = retrieve_pairs(pool, query, keys, 5)
    assert written(out, pool, digests(train.paths), found, 5) == 1, "the pair that holds a training image"
    anchors = attach(tiny_data, out).anchors
    assert (anchors.weights, anchors.pool) == ("w", "p")
    for row, path in enumerate(train.paths):
        ranked = sorted(range(len(pool)), key=lambda key: -float(query[row] @ keys[key]))
        assert [anchors.texts[pair] for pair in anchors.pairs[path]] == [pool.texts[key] for key in ranked]
        assert [anchors.images[pair].read_bytes() for pair in anchors.pairs[path]] == [pool.places[key].read() for key in ranked]
    own = out / "pairs" / "notes.txt"
    own.write_text("the user's")
    written(out, pool, digests(train.paths), retrieve_pairs(pool, query, keys, 1), 1)
    again = read_pairs(out)
    assert again.k == 1
    assert sorted((out / "pairs").iterdir()) == sorted([*again.images, own]), "old pairs go, and nothing else"


def test_an_interruption_at_any_moment_leaves_old_or_new_pairs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, keys = open_pool(str(folder)), ["x", "y"]
    old, new = (Retrieved(rows=rows, scores=[[0.5]] * 2, num_unreadable=0) for rows in ([[0], [1]], [[1], [4]]))
    replace = pairs_module._replace
    for moment in range(5):
        out, calls = tmp_path / f"anchors-{moment}", list[Path]()
        written(out, pool, keys, old, 1)
        before = read_pairs(out)

        def stops(path: Path, content: bytes, calls: list[Path] = calls, moment: int = moment) -> None:
            if len(calls) == moment:
                raise KeyboardInterrupt
            calls.append(path)
            replace(path, content)

        monkeypatch.setattr(pairs_module, "_replace", stops)
        with pytest.raises(KeyboardInterrupt):
            written(out, pool, keys, new, 1)
        monkeypatch.setattr(pairs_module, "_replace", replace)
        found = read_pairs(out)
        chosen = [[found.texts[row] for row in found.of[key]] for key in keys]
        rows = new.rows if moment == 4 else old.rows  # two images, then the texts of both, then what refers to them
        assert chosen == [[pool.texts[row] for row in wanted] for wanted in rows]
        assert [found.images[row].read_bytes() for row in found.of["y"]] == [pool.places[rows[1][0]].read()]
        assert before.of.keys() == found.of.keys()


def test_damaged_pairs_are_named_and_made_anew(folder: Path, tmp_path: Path) -> None:
    pool, out = open_pool(str(folder)), tmp_path / "anchors"
    with pytest.raises(MissingDataError, match="surefoot retrieve DATA --candidates POOL"):
        read_pairs(out)
    found = retrieve_pairs(pool, torch.eye(8)[:2], torch.eye(8)[: len(pool)], 1)
    written(out, pool, ["x", "y"], found, 1)
    whole = {name: (out / name).read_bytes() for name in ("pairs.jsonl", "pairs.csv")}
    lines = whole["pairs.jsonl"].splitlines(keepends=True)
    for name, content, message in (
        ("pairs.jsonl", b"".join([*lines[:2], lines[2][:20]]), r"pairs\.jsonl, line 3 is damaged"),
        ("pairs.jsonl", b"\xff\n", r"pairs\.jsonl, line 1 is damaged"),
        ("pairs.jsonl", b"[" * 100_000, r"pairs\.jsonl, line 1 is damaged"),
        ("pairs.jsonl", whole["pairs.jsonl"].replace(b'"k": 1', b'"k": 2'), r"line 2 is damaged .*1 pairs instead of 2"),
        ("pairs.csv", b"name,text\r\nalone", r"pairs\.csv is damaged: the pair alone has no text"),
        ("pairs.csv", b"name,text\r\n\xff,x", r"pairs\.csv cannot be read"),
        ("pairs.csv", b"text\r\nx", r"pairs\.csv cannot be read"),
    ):
        (out / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_pairs(out)
        written(out, pool, ["x", "y"], found, 1)
        assert {name: (out / name).read_bytes() for name in whole} == whole
    gone = next((out / "pairs").iterdir())
    gone.unlink()
    with pytest.raises(DataError, match=f"The image of the pair {gone.stem} is not"):
        read_pairs(out)


def test_a_place_that_may_not_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pool = open_pool(str(folder))
    with pytest.raises(DataError, match=r"cannot be written .* by --anchors"):
        written(tmp_path / "file" / "anchors", pool, ["x"], Retrieved(rows=[[0]], scores=[[1.0]], num_unreadable=0), 1)


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


def garbage_between_members(shards: Path) -> str:
    path = shards / "001.tar"
    content = bytearray(path.read_bytes())
    place = content.index(b"4.json")
    content[place : place + 512] = b"z" * 512
    path.write_bytes(content)
    return str(shards)


def claims_a_petabyte(shards: Path) -> str:
    header = tarfile.TarInfo("a")
    header.size, header.type = 10**15, tarfile.GNUTYPE_LONGNAME
    content = (shards / "001.tar").read_bytes()
    (shards / "001.tar").write_bytes(content[: content.index(b"4.json")] + header.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)
    return str(shards)


def sparse_map_without_end(shards: Path) -> str:
    """The map of a sparse file, which tarfile reads number by number, goes on behind the end."""
    header = tarfile.TarInfo("4.png")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "4.png", "GNU.sparse.realsize": "9"}
    content = (shards / "001.tar").read_bytes()
    (shards / "001.tar").write_bytes(content[: content.index(b"4.json")] + header.tobuf(tarfile.PAX_FORMAT) + b"9" * 512)
    return str(shards)


@pytest.mark.parametrize(
    "damage",
    [broken_tar, cut_between_members, not_a_tar, garbage_between_members, claims_a_petabyte, sparse_map_without_end],
)
def test_a_broken_shard_is_named_and_may_be_skipped(damage: Callable[[Path], str], shards: Path) -> None:
    place = damage(shards)
    with pytest.raises(DataError, match=r"001\.tar is broken .*--skip-broken"):
        open_pool(place)
    pool = open_pool(place, skip_broken=True)
    assert pool.texts[:3] == TEXTS[:3]
    assert [place.read() for place in pool.places[:3]] == [image_bytes(number) for number in range(3)]
    assert any("001.tar is broken" in note for note in pool.notes)


def test_members_are_never_written_and_half_samples_are_counted(tmp_path: Path) -> None:
    evil = {"../../evil.png": image_bytes(0), "../../evil.txt": b"a trap", "half.png": image_bytes(1), "text.txt": b"alone"}
    pool = open_pool(str(shard(tmp_path / "a.tar", evil)))
    assert pool.texts == ("a trap",)
    assert any("2 samples" in note for note in pool.notes)
    assert not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"odd.txt": b"x" * 100_000}, r"odd\.txt \(odd\.txt has 100000 bytes, too many for a caption\)"),
        ({"odd.txt": "Käse".encode("latin-1")}, r"odd\.txt \('utf-8' codec"),
        ({"odd.json": b"[" * 60_000}, r"odd\.json \(it is nested deeper"),
        ({"odd.json": b'{"caption": "x'}, r"odd\.json \(Unterminated string"),
    ],
)
def test_an_odd_sample_is_left_out_and_named(files: dict[str, bytes], reason: str, shards: Path) -> None:
    before = open_pool(str(shards))
    images = [place.read() for place in before.places]
    shard(shards / "001.tar", {"odd.png": image_bytes(9), **files, **_members(shards / "001.tar")})
    pool = open_pool(str(shards))
    assert pool.texts == before.texts
    assert [place.read() for place in pool.places] == images
    assert [note for note in pool.notes if re.search(rf"^1 samples cannot be read, .* first: {reason}.* in .*001\.tar\.$", note)], (
        pool.notes
    )


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def test_odd_metadata_beside_a_caption_do_not_matter(tmp_path: Path) -> None:
    pool = open_pool(str(shard(tmp_path / "a.tar", {"a.png": image_bytes(0), "a.json": b"{" * 99_999, "a.txt": b"a caption"})))
    assert (pool.texts, pool.notes) == (("a caption",), ())


def test_a_name_that_comes_twice_is_told_and_the_first_stays(tmp_path: Path) -> None:
    tar = shard(tmp_path / "a.tar", {"a.png": image_bytes(0), "a.txt": b"the first", "b.png": image_bytes(1), "b.txt": b"b"})
    again = shard(tmp_path / "again.tar", {"a.png": image_bytes(2), "a.jpg": image_bytes(2), "a.txt": b"the second"})
    content = tar.read_bytes()
    tar.write_bytes(content[: content.index(b"b.txt") + 1024] + again.read_bytes())
    pool = open_pool(str(tar))
    assert pool.texts == ("the first", "b")
    assert [place.read() for place in pool.places] == [image_bytes(0), image_bytes(1)]
    assert pool.notes == (f"3 files stand in samples that had such a file before, and are left out. The first: a.png of {tar}.",)


def test_a_shard_that_is_replaced_after_its_texts_were_read_is_told(shards: Path) -> None:
    pool = open_pool(str(shards))
    shard(shards / "001.tar", {"0.png": image_bytes(8), **_members(shards / "001.tar")})
    with pytest.raises(DataError, match=r"001\.tar has changed since its texts were read"):
        pool.places[3].read()
    with pytest.raises(DataError, match=r"001\.tar has changed since its texts were read"):
        retrieve_pairs(pool, torch.eye(8)[3:4], torch.eye(8)[: len(pool)], 1)


def test_what_macos_leaves_beside_shards_is_not_read(shards: Path) -> None:
    (shards / "._000.tar").write_bytes(b"Mac OS X        ")
    assert open_pool(str(shards)).texts == tuple(text for text in TEXTS if text)


def test_images_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MOST_IMAGE", 100)
    with pytest.raises(DataError, match=r"holds no image with a text.*too many for an image"):
        open_pool(str(shard(tmp_path / "c.tar", {"a.png": image_bytes(0), "a.txt": b"x"})))
    (tmp_path / "large.png").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match="too large for an image"):
        Place(tmp_path / "large.png", ".png").read()


def test_bad_pools_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="is no pool of image-text pairs"):
        open_pool(str(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match=r"3 of 3 shards are not there, the first is .*x-07\.tar"):
        open_pool(f"{tmp_path}/x-{{07..09}}.tar")
    with pytest.raises(SettingError, match=r"\{9\.\.7\} in .* is no range of shards"):
        open_pool(f"{tmp_path}/x-{{9..7}}.tar")
    (folder / "2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 6 images .* such as .*2\.png"):
        open_pool(str(folder))
    (folder / "manifest.jsonl").write_text('{"path": "0.png"}\n')
    with pytest.raises(DataError, match="line 1 has not got a path and a caption"):
        open_pool(str(folder))
    (folder / "manifest.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="cannot be read as a manifest"):
        open_pool(str(folder))


@pytest.fixture
def run(tiny_root: Path, folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command on the tiny data: what it ends with, and everything that it prints."""

    def retrieved(*options: str, candidates: Path = folder) -> tuple[int, str]:
        given = [tiny_root, "--candidates", candidates, "--model", f"local-dir:{tiny_folder}", *options]
        return typed(monkeypatch, capsys, "retrieve", *given)

    return retrieved


def test_the_command(run: Run, tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "anchors"
    code, shown = run("--anchors", str(out), "--without", "unseen", "--k", "2")
    assert code == 0, shown
    assert "24 training images retrieved 2 distinct pairs of 2 candidates" in shown
    assert "3 of 5 candidates name one of the 2 classes" in shown
    assert f"surefoot compare {tiny_root} --methods flyp,arf --model local-dir:{tiny_folder} --anchors {out}" in shown
    pairs = read_pairs(out)
    assert set(pairs.texts) == {"a red disc", "a box, closed"}
    assert len(attach(open_dataset(tiny_root), out).anchors.pairs) == 24
    about = json.loads((out / "pairs.jsonl").read_text().splitlines()[0])
    assert (about["without"], about["num_candidates"], about["k"]) == (["cross", "ring thing"], 2, 2)


def test_what_is_left_out_costs_no_embedding_anew(run: Run, tmp_path: Path) -> None:
    assert run("--anchors", str(tmp_path / "all"))[0] == 0
    embedded = sorted((tmp_path / "cache" / "embeddings").iterdir())
    assert run("--anchors", str(tmp_path / "some"), "--without", "unseen/other", "--batch-size", "2")[0] == 0
    assert sorted((tmp_path / "cache" / "embeddings").iterdir()) == embedded
    names, some = ({path.stem for path in (tmp_path / folder / "pairs").iterdir()} for folder in ("all", "some"))
    kept = {name for name in names if name.startswith(("00000000", "00000003"))}
    assert kept <= some, "named after their rows in the whole pool"
    assert {name[:8] for name in some} <= {"00000000", "00000003"}


def test_folder_and_shards_give_the_same_pairs(run: Run, shards: Path, tmp_path: Path) -> None:
    assert run("--anchors", str(tmp_path / "a"))[0] == run("--anchors", str(tmp_path / "b"), candidates=shards)[0] == 0
    first, second = read_pairs(tmp_path / "a"), read_pairs(tmp_path / "b")
    assert (first.of, first.texts, first.names) == (second.of, second.texts, second.names)
    assert [path.read_bytes() for path in first.images] == [path.read_bytes() for path in second.images]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "0"], "0 pairs for each image were asked for"),
        (["--k", "6"], "6 pairs for each image were asked for, and there are 5 candidates. Ask for 1 to 5"),
        (["--index", "flat"], "Unknown index 'flat'"),
        (["--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
        (["--without", ","], "No class is named"),
        (["--without", "disc,cross,box,ring"], "All 5 candidates"),
    ],
)
def test_bad_options_are_refused_before_anything_is_embedded(run: Run, options: list[str], message: str, tmp_path: Path) -> None:
    code, shown = run(*options)
    assert (code, message in shown) == (2, True), shown
    assert not (tmp_path / "cache" / "embeddings").exists()
