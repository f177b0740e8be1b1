"""IconCap: the small captioner of icons that comes with Surefoot; IconCLIP's frozen image tower and a trained word decoder.

ARF needs a caption of every training image from "a pretrained image captioner, such as BLIP2" (section 4.2.1). IconCap is built like
one: the image tower stays as it is, a small causal transformer looks at its tokens by cross-attention and writes the caption word by
word. It sees pixels only, never a label or a file's name. `benchmarks/iconcap/` holds how it was trained, `embedded/iconcap.md` how
good it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.errors import DataError, MissingDataError, ModelError, SettingError
from surefoot.guard import parse_json
from surefoot.identity import weights_hash
from surefoot.model import ImageTextModel, load_model
from surefoot.towers import whole

FOLDER = Path(__file__).parent.parent / "embedded" / "iconcap"
CONFIG, WEIGHTS = "iconcap.json", "iconcap.safetensors"
BATCH_SIZE = 64
Cache = list[tuple[Tensor, Tensor]]  # keys and values of the words so far, of every layer


@dataclass(frozen=True)
class Shape:
    """The decoder's size.

    Attributes:
        words: the vocabulary; word 0 starts and ends a caption, some are phrases ("an outline icon of").
        tower: `weights_hash` of the model whose image tower feeds the decoder.
        blocks: the tower's blocks whose outputs are looked at, counted from 0.
        token_width: their width.
        width: of the decoder.
        heads: of every attention.
        layers: of the decoder.
        context: the longest caption, in words.
    """

    words: tuple[str, ...]
    tower: str
    blocks: tuple[int, ...] = (2, 4)
    token_width: int = 192
    width: int = 192
    heads: int = 4
    layers: int = 3
    context: int = 24


class Attention(nn.Module):
    """Multi-head attention of queries [B, L, W] to keys and values that `memory` gives."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.memory, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def keys_and_values(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, M, W / H] of what is looked at, [B, M, W]."""
        key, value = self._split(self.memory(seen), 2 * self.heads).chunk(2, dim=1)
        return key, value

    def forward(self, x: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """What each of `x` [B, L, W] reads, [B, L, W]."""
        read = F.scaled_dot_product_attention(self._split(self.query(x), self.heads), key, value, is_causal=causal)
        return self.out(read.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    @staticmethod
    def _split(x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class Layer(nn.Module):
    """One layer of the decoder: the words before, the image's tokens, a perceptron; each normalised before and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.words, self.image = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, image: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(output [B, L, W], keys and values of all words): `past` are those of the words before `x`, in which case L is 1."""
        normed = self.norms[0](x)
        key, value = self.words.keys_and_values(normed)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        x = x + self.words(normed, key, value, causal=past is None)
        x = x + self.image(self.norms[1](x), *image, causal=False)
        return x + self.mlp(self.norms[2](x)), (key, value)


class Decoder(nn.Module):
    """The trained part of IconCap: a causal transformer over words that looks at the tokens of an image."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Linear(len(shape.blocks) * shape.token_width, shape.width)
        self.embedding = nn.Embedding(len(shape.words), shape.width)
        self.places = nn.Parameter(torch.zeros(shape.context, shape.width))
        self.layers = nn.ModuleList(Layer(shape.width, shape.heads) for _ in range(shape.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(2))
        nn.init.normal_(self.embedding.weight, std=shape.width**-0.5)
        nn.init.normal_(self.places, std=0.01)

    def look(self, tokens: Tensor) -> Cache:
        """Keys and values of an image's tokens [B, M, blocks * token width], of every layer."""
        image = self.norms[0](self.tokens(tokens))
        return [layer.image.keys_and_values(image) for layer in self.layers]  # type: ignore[union-attr, operator]

    def forward(self, image: Cache, words: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """(logits of the next word [B, L, V], keys and values of all words).

        Args:
            image: what `look` gave.
            words: word numbers [B, L]; L is 1 when there is a past.
            past: what this gave for the words before.
        """
        start = 0 if past is None else past[0][0].shape[2]
        x = self.embedding(words) + self.places[start : start + words.shape[1]]
        seen: Cache = []
        for number, layer in enumerate(self.layers):
            x, known = layer(x, image[number], None if past is None else past[number])
            seen.append(known)
        return self.norms[1](x) @ self.embedding.weight.T, seen


@torch.no_grad()
def image_tokens(model: ImageTextModel, image: Tensor, blocks: Sequence[int]) -> Tensor:
    """The outputs of some blocks of a ViT image tower, each token normalised, side by side.

    Several blocks, since the last one is trained to sum the image up in its class token and keeps less of where things are.

    Args:
        model: its image tower is open_clip's ViT.
        image: preprocessed, [B, 3, H, W].
        blocks: which, counted from 0.

    Returns:
        [B, 1 + patches, len(blocks) * width], the class token first.
    """
    kept: dict[int, Tensor] = {}
    found: Any = model.clip.visual.transformer.resblocks  # type: ignore[union-attr]
    hooks = [found[n].register_forward_hook(lambda _m, _i, output, n=n: kept.__setitem__(n, output)) for n in blocks]
    try:
        with whole():
            model.encode_image(image)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([F.layer_norm(kept[n].float(), kept[n].shape[-1:]) for n in blocks], dim=-1)


class IconCap:
    """A captioner of icons: images in, one sentence each out.

    Attributes:
        identity: name, hash of weights and vocabulary, and how words are chosen; captions of equal identity are equal.
    """

    def __init__(self, model: ImageTextModel, decoder: Decoder, digest: str, num_beams: int = 1) -> None:
        """See `load_iconcap`; `num_beams` 1 takes the likeliest word each time, more keep that many sentences alive."""
        if num_beams < 1:
            raise SettingError(f"num_beams is {num_beams}. It must be at least 1, which takes the likeliest word each time. Use 1 or 4.")
        self.model, self.decoder, self.num_beams = model.eval(), decoder.eval(), num_beams
        self.identity = f"iconcap-{digest[:12]}" + (f"-beam{num_beams}" if num_beams > 1 else "")

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each of `images`, whatever their size or colours; on which others are in the list it does not depend.

        Raises:
            DataError: something that is no image.
        """
        captions: list[str] = []
        for start in range(0, len(images), BATCH_SIZE):
            captions += self._captions([_prepared(self.model, image) for image in images[start : start + BATCH_SIZE]])
        return captions

    @torch.no_grad()
    def _captions(self, images: list[Tensor]) -> list[str]:
        device = next(self.decoder.parameters()).device
        tokens = image_tokens(self.model, torch.stack(images).to(device), self.decoder.shape.blocks)
        found = generate(self.decoder, tokens, self.num_beams)
        return [" ".join(self.decoder.shape.words[n] for n in row).replace(" ,", ",") for row in found]


def generate(decoder: Decoder, tokens: Tensor, num_beams: int = 1) -> list[list[int]]:
    """Word numbers of a caption of each image, without start and end.

    Beam search: of all continuations of the `num_beams` best sentences the `num_beams` best are kept, by the mean log-probability of
    their words; a sentence that has ended stays as it is. One beam is greedy search.

    Args:
        decoder: in evaluation mode.
        tokens: of the images [B, M, blocks * token width].
        num_beams: sentences that are kept alive.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> decoder = Decoder(Shape(words=("", "a", "cat"), tower="", blocks=(0,), token_width=8, width=8, heads=2, layers=1, context=4))
        >>> [len(words) <= 4 for words in generate(decoder.eval(), torch.zeros(2, 3, 8), num_beams=2)]
        [True, True]
    """
    size, vocabulary = len(tokens), len(decoder.shape.words)
    image = [(key.repeat_interleave(num_beams, 0), value.repeat_interleave(num_beams, 0)) for key, value in decoder.look(tokens)]
    words = torch.zeros(size * num_beams, 1, dtype=torch.long, device=tokens.device)
    # beams start equal, so all but the first begin with no chance
    total = torch.tensor([0.0] + [-torch.inf] * (num_beams - 1), device=tokens.device).repeat(size, 1)  # [B, beams]
    length, ended = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool)
    past: Cache | None = None
    for _ in range(decoder.shape.context):
        logits, past = decoder(image, words[:, -1:], past)
        chance = logits[:, -1].log_softmax(1).view(size, num_beams, vocabulary)
        only_end = torch.full_like(chance, -torch.inf)
        only_end[..., 0] = 0.0
        chance = torch.where(ended[..., None], only_end, chance)
        longer = length + ~ended
        _, best = ((total[..., None] + chance) / longer[..., None]).flatten(1).topk(num_beams, dim=1)
        beam, word = best // vocabulary, best % vocabulary
        total = (total[..., None] + chance).flatten(1).gather(1, best)
        length, ended = longer.gather(1, beam), ended.gather(1, beam) | (word == 0)
        rows = (torch.arange(size, device=tokens.device)[:, None] * num_beams + beam).flatten()
        words = torch.cat([words[rows], word.view(-1, 1)], dim=1)
        past = [(key[rows], value[rows]) for key, value in past]
        if bool(ended.all()):
            break
    return [_until_end(row) for row in words[::num_beams, 1:].tolist()]


def _until_end(row: list[int]) -> list[int]:
    return row[: row.index(0)] if 0 in row else row


def _prepared(model: ImageTextModel, image: object) -> Tensor:
    if not isinstance(image, Image.Image):
        raise DataError(f"A {type(image).__name__} was given to IconCap. It captions PIL images. Open the file with PIL.Image.open first.")
    if image.has_transparency_data:  # icons are drawn on paper: what shines through is white, not black
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return model.preprocess(image.convert("RGB"))


def load_iconcap(device: str | torch.device = "cpu", *, num_beams: int = 1, folder: Path = FOLDER) -> IconCap:
    """IconCap as it comes with Surefoot.

    Args:
        device: where it computes.
        num_beams: 1 for greedy search.
        folder: one that `benchmarks/iconcap/train.py` wrote.

    Raises:
        MissingDataError: its files are not there.
        ModelError: they cannot be read, do not belong together, or were trained on another image tower than IconCLIP's.
        SettingError: fewer than one beam.
    """
    shape, weights, digest = read(folder)
    model, decoder = load_model("iconclip", device=device), Decoder(shape)
    if (found := weights_hash(model)) != shape.tower:
        raise ModelError(
            f"IconCap was trained on the image tower of weights {shape.tower}, but IconCLIP here has {found}. "
            "Install Surefoot again, or train IconCap anew with benchmarks/iconcap/train.py."
        )
    try:
        decoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{folder / WEIGHTS} does not belong to {CONFIG} beside it: {error}. Install Surefoot again.") from error
    return IconCap(model, decoder.to(device), digest, num_beams)


def read(folder: Path) -> tuple[Shape, dict[str, Tensor], str]:
    """(shape, float32 weights, SHA-256 of both files) of a folder that holds IconCap.

    Raises:
        MissingDataError, ModelError: as `load_iconcap`.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingDataError(f"{folder / name} is not there; IconCap is {CONFIG} and {WEIGHTS}. Install Surefoot again.")
    try:
        config, packed = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in parse_json(config).items()}
        shape = Shape(**values)
        weights = {name: tensor.float() for name, tensor in load(packed).items()}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(f"IconCap in {folder} could not be read ({error}). Install Surefoot again.") from error
    return shape, weights, hashlib.sha256(config + packed).hexdigest()
