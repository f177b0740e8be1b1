"""Image-text models behind one face; the only module that imports open_clip.

A model is named by a string:

    iconclip                        the small model that comes with Surefoot
    ViT-B-32:laion2b_s34b_b79k      an open_clip architecture and a pretrained tag
    ViT-B-32:/path/model.pt@openai  an architecture and a checkpoint file, preprocessed as the tag behind @ says
    local-dir:/path/folder          a folder with open_clip_config.json and open_clip_model.safetensors
    hf-hub:organisation/name        a repository of the Hugging Face Hub
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from surefoot.errors import MissingDataError, ModelError, SettingError, unknown_name

EMBEDDED = Path(__file__).parent / "embedded"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
Precision = Literal["fp32", "bf16"]
ImageTransform = Callable[[Any], Tensor]


class ImageTextModel(nn.Module):
    """An image tower and a text tower with one feature space.

    Attributes:
        name: the string it was loaded by.
        preprocess: PIL image -> tensor [3, H, W], the checkpoint's own preprocessing.
        preprocess_train: the same with the random crop of the released codes (scale 0.9 to 1, no flip).
        precision: what the towers compute in; features, losses and weights are float32 always.
    """

    def __init__(
        self,
        name: str,
        clip: nn.Module,
        transforms: tuple[ImageTransform, ImageTransform],
        tokenizer: Any,  # noqa: ANN401
        model_cfg: Mapping[str, Any],
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        if precision not in get_args(Precision):
            raise unknown_name("precision", precision, get_args(Precision))
        self.precision: Precision = precision
        self.name = name
        self.clip = clip
        self.preprocess_train, self.preprocess = transforms
        self._tokenizer = tokenizer
        self._model_cfg = dict(model_cfg)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar: what every loss takes."""
        return self.clip.logit_scale.exp().reshape(())  # type: ignore[operator]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers [N, context length]."""
        return self._tokenizer(list(texts))  # type: ignore[no-any-return]

    def encode_image(self, image: Tensor) -> Tensor:
        """l2-normalised image features, float32 [B, D], of preprocessed images [B, 3, H, W]."""
        with precision_context(self.precision, image.device):
            features = self.clip.encode_image(image)  # type: ignore[operator]
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """l2-normalised text features, float32 [B, D], of token numbers [B, L].

        Where the tower is causal and reads its feature off the end-of-text token, later positions cannot change the result: they
        are cut off, which is exact and saves most of the work for short prompts. Other towers get the whole context length.
        """
        with precision_context(self.precision, tokens.device):
            features = self._text_features(tokens)
        return F.normalize(features.float(), dim=-1)

    def _text_features(self, tokens: Tensor) -> Tensor:
        clip = self.clip
        tower = clip if isinstance(clip, open_clip.CLIP) else getattr(clip, "text", None)
        pool = getattr(clip, "text_pool_type", None) or getattr(tower, "pool_type", None)
        mask = getattr(tower, "attn_mask", None)
        exact = isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP) and pool == "argmax" and mask is not None
        if not exact or getattr(tower, "cls_emb", None) is not None:
            return clip.encode_text(tokens)  # type: ignore[operator, no-any-return]
        tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
        with _shortened(tower, tokens.shape[1]):  # type: ignore[arg-type]
            return clip.encode_text(tokens)  # type: ignore[operator, no-any-return]

    def groups(self) -> dict[str, list[str]]:
        """{group: parameter names}; visual, text, logit_scale and, where there is one, logit_bias. Every parameter is in one group."""
        groups: dict[str, list[str]] = {"visual": [], "text": [], "logit_scale": []}
        for name, _ in self.clip.named_parameters():
            group = name if name in ("logit_scale", "logit_bias") else "visual" if name.startswith("visual.") else "text"
            groups.setdefault(group, []).append(name)
        return groups

    def weights(self) -> dict[str, Tensor]:
        """A copy of every parameter and buffer, on the CPU, under the checkpoint's own names."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.clip.state_dict().items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put `weights` (as `weights()` gives them) into the model.

        Raises:
            ModelError: names or shapes that are not this model's.
        """
        try:
            self.clip.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ModelError(
                f"These weights do not belong to {self.name}: {error}. Load them with the model that they came from."
            ) from error

    def config(self) -> dict[str, Any]:
        """The content of open_clip_config.json: model_cfg and preprocess_cfg."""
        return {"model_cfg": self._model_cfg, "preprocess_cfg": _plain(open_clip.get_model_preprocess_cfg(self.clip))}

    def save(self, folder: Path) -> None:
        """Write a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` opens, this class too.

        Raises:
            ModelError: the model's tokenizer is not open_clip's own, so that the folder could not be opened without it.
        """
        if tokenizer := self._model_cfg.get("text_cfg", {}).get("hf_tokenizer_name"):
            raise ModelError(
                f"{self.name} reads text by the tokenizer {tokenizer}, which a folder of weights does not hold. Use `weights()`."
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config(), indent=1) + "\n")
        partial = folder / (WEIGHTS + ".part")
        save_file({name: tensor.contiguous() for name, tensor in self.weights().items()}, partial)
        partial.replace(folder / WEIGHTS)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


@contextlib.contextmanager
def _shortened(tower: nn.Module, length: int) -> Iterator[None]:
    """Let a causal text tower take `length` positions: its mask, and for open_clip.CLIP its position table, are sliced for the call."""
    mask, parameters = tower.attn_mask, tower._parameters
    tower.attn_mask = mask[:length, :length]  # type: ignore[index]
    if isinstance(tower, open_clip.CLIP):
        tower._parameters = {name: p for name, p in parameters.items() if name != "positional_embedding"}
        tower.positional_embedding = parameters["positional_embedding"][:length]  # type: ignore[index]
    try:
        yield
    finally:
        tower.attn_mask = mask
        tower.__dict__.pop("positional_embedding", None)
        tower._parameters = parameters


def open_clip_name(name: str) -> str:
    """The part of a model's name that open_clip calls the model name; `iconclip` becomes its folder."""
    if name == "iconclip":
        return f"local-dir:{EMBEDDED / 'iconclip'}"
    return name if name.startswith(("local-dir:", "hf-hub:")) else name.partition(":")[0]


def load_model(name: str = "iconclip", *, device: str | torch.device = "cpu", precision: Precision = "fp32") -> ImageTextModel:
    """Load a model by its name (see the head of this module); its weights are float32.

    Args:
        name: which model.
        device: where its parameters go.
        precision: what its towers compute in.

    Raises:
        UnknownNameError: an architecture or pretrained tag that open_clip does not know.
        MissingDataError: a folder or checkpoint file that is not there.
        ModelError: a bare checkpoint file, which does not say how images must be preprocessed.
    """
    target, pretrained, extra = _resolve(name)
    try:
        clip, *transforms = open_clip.create_model_and_transforms(
            target, pretrained=pretrained, device=device, require_pretrained=True, **extra
        )
        config, tokenizer = open_clip.get_model_config(target) or {}, open_clip.get_tokenizer(target)
    except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{name} could not be loaded: {error} Check the name, the files, and the connection if it lies on a hub."
        ) from error
    quick_gelu = {"quick_gelu": True} if extra.get("force_quick_gelu") else {}
    return ImageTextModel(name, clip, (transforms[0], transforms[1]), tokenizer, {**config, **quick_gelu}, precision).eval()


def _resolve(name: str) -> tuple[str, str | None, dict[str, Any]]:
    """(open_clip's model name, pretrained, further arguments), everything checked that can be checked without loading."""
    target = open_clip_name(name)
    if target.startswith("local-dir:"):
        for file in (CONFIG, WEIGHTS):
            if not (path := Path(target.removeprefix("local-dir:")) / file).is_file():
                raise MissingDataError(f"{name}: {path} is not there. A model folder holds {CONFIG} and {WEIGHTS}.")
        return target, None, {}
    if target.startswith("hf-hub:"):
        return target, None, {}
    if target not in open_clip.list_models():
        raise unknown_name("model", target, ["iconclip", *open_clip.list_models()])
    pretrained = name.partition(":")[2]
    if not pretrained:
        raise ModelError(
            f"{name} has no weights. Write {name}:TAG with one of: {', '.join(open_clip.list_pretrained_tags_by_model(target))}."
        )
    file, _, tag = pretrained.partition("@")
    if not Path(file).suffix and os.sep not in file:
        return target, file, _activation(_known_tag(target, file))
    if not Path(file).is_file():
        raise MissingDataError(f"{name}: there is no file {file}. Give the checkpoint's path, or a pretrained tag.")
    if not tag:
        raise ModelError(f"{file} does not say how its images were preprocessed. Write {name}@TAG to take the preprocessing of that tag.")
    cfg = _known_tag(target, tag)
    preprocessing = {f"image_{key}": cfg[key] for key in ("mean", "std", "interpolation", "resize_mode") if cfg.get(key)}
    return target, file, preprocessing | _activation(cfg)


def _known_tag(target: str, tag: str) -> dict[str, Any]:
    tags = open_clip.list_pretrained_tags_by_model(target)
    if tag not in tags:
        raise unknown_name(f"pretrained tag of {target}", tag, tags)
    return dict(open_clip.get_pretrained_cfg(target, tag))


def _activation(cfg: Mapping[str, Any]) -> dict[str, bool]:
    """OpenAI's weights and some others were trained with QuickGELU; open_clip only warns when the architecture's name says otherwise."""
    return {"force_quick_gelu": True} if cfg.get("quick_gelu") else {}


def pick_device(device: str = "auto") -> torch.device:
    """cuda, then mps, then cpu; or the one that is named.

    Raises:
        SettingError: a device that this machine or this torch does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"The device '{device}' is not available here ({error}). Use auto, cpu, cuda or mps.") from error
    return torch.device(device)


@contextlib.contextmanager
def precision_context(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the towers in float32, or in bfloat16 where that is safe (weights, features and losses stay float32).

    On a CPU the attention is written out as matrix products: the backward pass of the fused kernel is slower there for short sequences.
    """
    with contextlib.ExitStack() as stack:
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
