"""Checkpoints as the released code of WiSE-FT and FLYP writes them: live objects of classes in modules that are gone afterwards."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torchvision import transforms

WIDTH, TEXT, EMBED, SIZE, PATCH = 128, 16, 16, 32, 16


@contextmanager
def modules(**classes: type) -> Iterator[None]:
    """Let classes belong to the modules that the releases define them in, for as long as they are pickled."""
    homes = {"QuickGELU": "clip.model", "CLIP": "clip.model", "ResidualAttentionBlock": "clip.model", "Transformer": "clip.model",
             "VisionTransformer": "clip.model", "LayerNorm": "clip.model"}  # fmt: skip
    made: set[str] = set()
    for name, kind in classes.items():
        home = homes.get(name, "src.models.modeling")
        for part in (home.rpartition(".")[0].partition(".")[0], home.rpartition(".")[0], home):
            if part not in sys.modules:
                sys.modules[part] = ModuleType(part)
                made.add(part)
        kind.__module__, kind.__qualname__, kind.__name__ = home, name, name
        setattr(sys.modules[home], name, kind)
    try:
        yield
    finally:
        for part in made:
            del sys.modules[part]


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict([("c_fc", nn.Linear(width, 4 * width)), ("gelu", activation), ("c_proj", nn.Linear(4 * width, width))])
        )


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*[ResidualAttentionBlock(width, heads, activation()) for _ in range(layers)])


class VisionTransformer(nn.Module):
    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, 4, 3, activation)  # 32 a head: no number that shapes alone could tell
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED))


class CLIP(nn.Module):
    def __init__(self, activation: type[nn.Module] = QuickGELU, *, text: bool = True) -> None:
        super().__init__()
        self.visual = VisionTransformer(activation)
        if text:
            self.transformer = Transformer(TEXT, 2, 2, activation)
        self.token_embedding = nn.Embedding(49408, TEXT)
        self.positional_embedding = nn.Parameter(torch.randn(77, TEXT))
        self.ln_final = nn.LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.randn(TEXT, EMBED))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("attn_mask", torch.zeros(77, 77), persistent=False)
        self.context_length = 77


def preprocess(size: int = SIZE) -> transforms.Compose:
    return transforms.Compose([
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size), transforms.ToTensor(),
        transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ])  # fmt: skip


class CLIPEncoder(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model, self.train_preprocess, self.val_preprocess = model, preprocess(), preprocess()
        self.cache_dir = "/somewhere"


class ImageEncoder(CLIPEncoder):
    pass


class ClassificationHead(nn.Linear):
    def __init__(self, *, normalize: bool) -> None:
        super().__init__(EMBED, 3)
        self.normalize = normalize


class ImageClassifier(nn.Module):
    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.classification_head, self.process_images = encoder, head, True
        self.train_preprocess, self.val_preprocess = encoder.train_preprocess, encoder.val_preprocess


def save(path: Path, model: object) -> Path:
    """torch.save as the releases call it; the classes' modules are gone when it returns."""
    kinds = (QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer, CLIP, CLIPEncoder, ImageEncoder, ClassificationHead,
             ImageClassifier)  # fmt: skip
    own = {kind: (kind.__module__, kind.__qualname__) for kind in kinds}
    try:
        with modules(**{kind.__name__: kind for kind in kinds}):
            torch.save(model, path)
    finally:
        for kind, (module, name) in own.items():
            kind.__module__, kind.__qualname__ = module, name
    return path


def flyp(activation: type[nn.Module] = QuickGELU) -> CLIPEncoder:
    """What FLYP saves: both towers."""
    torch.manual_seed(1)
    return CLIPEncoder(CLIP(activation))


def wise_ft(*, normalize: bool = True) -> ImageClassifier:
    """What WiSE-FT saves: no text transformer, and a head."""
    torch.manual_seed(2)
    return ImageClassifier(ImageEncoder(CLIP(text=False)), ClassificationHead(normalize=normalize))
