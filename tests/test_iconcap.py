"""IconCap: its size, captions from pixels alone that do not depend on the batch, and what it says of real icons."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from surefoot.anchors import iconcap as iconcaps
from surefoot.anchors.iconcap import CONFIG, FOLDER, WEIGHTS, Decoder, IconCap, Shape, generate, image_tokens, load_iconcap
from surefoot.data import load
from surefoot.errors import DataError, MissingDataError, ModelError, SettingError

LARGEST = 12_000_000  # bytes


@pytest.fixture(scope="module")
def iconcap() -> IconCap:
    return load_iconcap()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Every hundredth training image of IconShift, converted as data sets are read."""
    return [Image.open(path).convert("RGB") for path in load("iconshift").split("train").paths[::100]]


@pytest.fixture(scope="module")
def captions(iconcap: IconCap, pictures: list[Image.Image]) -> list[str]:
    return iconcap(pictures)


def small_decoder(vocabulary: int = 7, context: int = 5) -> Decoder:
    torch.manual_seed(0)
    words = ("", *(f"word{n}" for n in range(1, vocabulary)))
    shape = Shape(words=words, tower="", blocks=(0,), token_width=8, width=16, heads=2, layers=2, context=context)
    decoder = Decoder(shape).eval()
    for parameter in decoder.parameters():  # far from even chances, and from heeding the last word only
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return decoder


def test_it_fits_into_twelve_megabytes_of_half_precision() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= LARGEST
    _, weights, _ = iconcaps.read(FOLDER)
    assert (FOLDER / WEIGHTS).stat().st_size < 2.1 * sum(tensor.numel() for tensor in weights.values())


def test_captions_are_deterministic(iconcap: IconCap, pictures: list[Image.Image], captions: list[str]) -> None:
    assert load_iconcap()(pictures) == captions


def test_captions_do_not_depend_on_the_other_images(iconcap: IconCap, pictures: list[Image.Image], captions: list[str]) -> None:
    assert [iconcap([picture])[0] for picture in pictures[:8]] == captions[:8]
    assert iconcap(pictures[::-1]) == captions[::-1]


def test_more_images_than_a_batch_keep_their_order(
    iconcap: IconCap, pictures: list[Image.Image], captions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iconcaps, "BATCH_SIZE", 5)
    assert iconcap(pictures[:12]) == captions[:12]
    assert iconcap([]) == []


def test_captions_tell_images_apart(captions: list[str]) -> None:
    assert len(set(captions)) > 0.8 * len(captions)


@pytest.mark.parametrize("class_name", ["rocket", "calendar", "hourglass"])
def test_it_names_what_is_drawn(iconcap: IconCap, class_name: str) -> None:
    split = load("iconshift").split("train")
    rows = [row for row, label in enumerate(split.labels) if split.class_names[label] == class_name]
    found = iconcap([Image.open(split.paths[row]) for row in rows])
    assert sum(class_name in caption for caption in found) > 0.75 * len(rows)
    assert sum(caption.startswith("an outline icon of a") for caption in found) > 0.75 * len(rows)


def test_any_image_gets_a_sentence(iconcap: IconCap) -> None:
    blank, large, grey = Image.new("RGB", (48, 48), "white"), Image.new("RGB", (300, 90), "red"), Image.new("L", (7, 9))
    found = iconcap([blank, large, grey])
    assert all(" of a" in caption for caption in found)
    assert not any("  " in caption or " ," in caption or caption != caption.strip() for caption in found)


def test_what_shines_through_is_paper(iconcap: IconCap) -> None:
    drawn = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    ImageDraw.Draw(drawn).ellipse((6, 6, 42, 42), outline="black", width=4)
    paper = Image.new("RGB", (48, 48), "white")
    ImageDraw.Draw(paper).ellipse((6, 6, 42, 42), outline="black", width=4)
    assert iconcap([drawn]) == iconcap([paper])


def test_identity_names_weights_and_search(iconcap: IconCap) -> None:
    _, _, digest = iconcaps.read(FOLDER)
    assert iconcap.identity == f"iconcap-{digest[:12]}"
    assert IconCap(iconcap.model, iconcap.decoder, digest, num_beams=3).identity == f"iconcap-{digest[:12]}-beam3"


def test_words_read_one_by_one_are_as_read_at_once() -> None:
    """The cache of keys and values changes nothing, and no word sees a later one."""
    decoder, words = small_decoder(), torch.tensor([[0, 3, 1, 5], [0, 2, 2, 6]])
    image = decoder.look(torch.randn(2, 3, 8))
    whole, _ = decoder(image, words)
    past = None
    for place in range(4):
        step, past = decoder(image, words[:, place : place + 1], past)
        torch.testing.assert_close(step[:, 0], whole[:, place])


def test_greedy_search_takes_the_likeliest_word_each_time() -> None:
    decoder, tokens = small_decoder(), torch.randn(6, 3, 8)
    for row, found in enumerate(generate(decoder, tokens)):
        words = [0]
        while len(words) <= decoder.shape.context:
            logits, _ = decoder(decoder.look(tokens[row : row + 1]), torch.tensor([words]))
            words.append(int(logits[0, -1].argmax()))
            if words[-1] == 0:
                break
        assert found == [word for word in words[1:] if word]


def test_enough_beams_find_the_likeliest_caption_of_all() -> None:
    decoder, tokens = small_decoder(vocabulary=4, context=4), torch.randn(30, 3, 8)
    open_ended = [list(words) for length in range(5) for words in itertools.product((1, 2, 3), repeat=length)]
    every = [words if len(words) == 4 else [*words, 0] for words in open_ended]
    read = torch.tensor([[0, *words, 0, 0, 0][:4] for words in every])
    lengths = set()
    for row, found in enumerate(generate(decoder, tokens, num_beams=128)):
        logits, _ = decoder(decoder.look(tokens[row : row + 1].expand(len(every), -1, -1)), read)
        chance = logits.log_softmax(2).detach()
        score = [float(chance[n, range(len(words)), words].mean()) for n, words in enumerate(every)]
        assert found == [word for word in every[score.index(max(score))] if word]
        lengths.add(len(found))
    assert len(lengths) > 1


def test_tokens_are_the_normalised_outputs_of_the_blocks(iconcap: IconCap) -> None:
    tokens = image_tokens(iconcap.model, torch.randn(2, 3, 48, 48), (2, 4))
    assert tokens.shape == (2, 37, 384)
    torch.testing.assert_close(tokens[..., 192:].mean(-1), torch.zeros(2, 37), atol=1e-5, rtol=0)
    assert not any(block._forward_hooks for block in iconcap.model.clip.visual.transformer.resblocks)  # type: ignore[union-attr]


def test_bad_input_is_said_plainly(iconcap: IconCap, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"A str was given to IconCap.*PIL\.Image\.open"):
        iconcap(["a.png"])  # type: ignore[list-item]
    with pytest.raises(SettingError, match="num_beams is 0"):
        IconCap(iconcap.model, iconcap.decoder, "", num_beams=0)
    with pytest.raises(MissingDataError, match="is not there"):
        load_iconcap(folder=tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (WEIGHTS, b"nothing", "could not be read"),
        (CONFIG, b"{", "could not be read"),
        (CONFIG, b'{"words": ["", "a"], "tower": "", "colour": 1}', "could not be read"),
        (CONFIG, b'{"words": ["", "a"], "tower": "0"}', "trained on the image tower of weights 0"),
        (CONFIG, None, "does not belong to iconcap.json"),
    ],
)
def test_damaged_files_are_said_plainly(
    iconcap: IconCap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    monkeypatch.setattr(iconcaps, "load_model", lambda _name, **_: iconcap.model)  # loading takes seconds
    folder = Path(shutil.copytree(FOLDER, tmp_path / "iconcap"))
    tower = json.loads((FOLDER / CONFIG).read_text())["tower"]
    (folder / file).write_bytes(content or json.dumps({"words": ["", "a"], "tower": tower}).encode())
    with pytest.raises(ModelError, match=message):
        load_iconcap(folder=folder)
