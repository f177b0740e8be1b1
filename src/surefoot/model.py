"""Image-text models behind one face; the only module that imports open_clip.

A model is named by a string:

    iconclip                        the small model that comes with Surefoot
    ViT-B-32:laion2b_s34b_b79k      an open_clip architecture and a pretrained tag
    ViT-B-32:/path/model.pt@openai  an architecture and a checkpoint file, preprocessed as the tag behind @ says
    local-dir:/path/folder          a folder with open_clip_config.json and open_clip_model.safetensors, and the tokenizer's files if it
                                    is not CLIP's; or a CLIP folder of the transformers library
    hf-dir:/path/folder             a CLIP folder of the transformers library: config.json, model.safetensors, preprocessor_config.json
    hf-hub:organisation/name        a repository of the Hugging Face Hub
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot import hf_clip, layers, towers
from surefoot.adapters import merged_state
from surefoot.distributed import whole
from surefoot.errors import MissingDataError, ModelError, SettingError, unknown_name
from surefoot.guard.weights import CONFIG, UNLOADABLE, WEIGHTS, check_folder_config, check_source
from surefoot.precision import Precision, precision_context
from surefoot.prefixes import planted

EMBEDDED = Path(__file__).parent / "embedded"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
ImageTransform = Callable[[Any], Tensor]
_TEXT = threading.RLock()  # a text tower is altered while it encodes


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

    @property
    def logit_bias(self) -> Tensor | None:
        """The bias of the sigmoid loss, a scalar; None for models that were pre-trained without one."""
        bias = getattr(self.clip, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers [N, context length]."""
        return self._tokenizer(list(texts))  # type: ignore[no-any-return]

    def encode_image(self, image: Tensor) -> Tensor:
        """l2-normalised image features, float32 [B, D], of preprocessed images [B, 3, H, W].

        A hook on the last block sees the one token that is pooled, where the tower pools one; inside `towers.whole()` all of them.
        """
        with precision_context(self.precision, image.device) as kernel, towers.quickly(self.clip.visual, kernel):  # type: ignore[arg-type]
            features = layers.image_tower(self.clip)(image)
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """l2-normalised text features, float32 [B, D], of token numbers [B, L].

        Where the tower is causal and reads its feature off the end-of-text token, later positions cannot change the result and are cut
        off, and beginnings that texts share are computed once (`surefoot.prefixes`), unless something is hooked into the tower. Both are
        exact. Other towers get the whole context length.
        """
        with _TEXT, precision_context(self.precision, tokens.device) as kernel:
            features = self._text_features(tokens, kernel)
        return F.normalize(features.float(), dim=-1)

    def _text_features(self, tokens: Tensor, kernel: str) -> Tensor:
        clip = self.clip
        tower = clip if isinstance(clip, open_clip.CLIP) else getattr(clip, "text", None)
        pool = getattr(clip, "text_pool_type", None) or getattr(tower, "pool_type", None)
        mask = getattr(tower, "attn_mask", None)
        exact = isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP) and pool == "argmax" and mask is not None
        if not exact or getattr(tower, "cls_emb", None) is not None:
            with towers.quickly(clip if tower is None else tower, kernel):
                return clip.encode_text(tokens)  # type: ignore[operator, no-any-return]
        ends = tokens.argmax(dim=1)
        if tokens.shape[1] <= len(mask) and towers.grows(tower) and (texts := planted(tokens, ends)):  # type: ignore[arg-type]
            with towers.quickly(tower, kernel, texts):  # type: ignore[arg-type]
                return clip.encode_text(texts.tokens)  # type: ignore[operator, no-any-return]
        tokens = tokens[:, : int(ends.max()) + 1]
        with towers.shortened(tower, tokens.shape[1]), towers.quickly(tower, kernel, ends):  # type: ignore[arg-type]
            return clip.encode_text(tokens)  # type: ignore[operator, no-any-return]

    def groups(self) -> dict[str, list[str]]:
        """{group: parameter names}; visual, text, logit_scale and, where there is one, logit_bias. Every parameter is in one group."""
        groups: dict[str, list[str]] = {"visual": [], "text": [], "logit_scale": []}
        for name, _ in self.clip.named_parameters():
            group = name if name in ("logit_scale", "logit_bias") else "visual" if name.startswith("visual.") else "text"
            groups.setdefault(group, []).append(name)
        return groups

    def blocks(self, tower: Literal["visual", "text"]) -> list[list[str]]:
        """The parameter names of each block of a tower, in order; together they are all of the tower's (see `layers.group_blocks`).

        Raises:
            ModelError: a tower whose blocks are not known.
        """
        if blocks := layers.group_blocks(self.groups()[tower]):
            return blocks
        module = self.clip.visual if tower == "visual" else getattr(self.clip, "text", self.clip)
        kind = type(module).__name__
        raise ModelError(f"The blocks of the {tower} tower of {self.name} ({kind}) are not known. Train '{tower}' as a whole.")

    @property
    def image_transformer(self) -> nn.Module | None:
        """What holds the image tower's blocks as `resblocks`, in the order of `blocks`; None for a tower that is not open_clip's ViT."""
        tower = self.clip.visual
        return tower.transformer if isinstance(tower, open_clip.transformer.VisionTransformer) else None

    def layer_names(self, spec: str) -> list[str]:
        """The parameter names of "visual", "visual[:9]", "text[-3:]", "visual[2]" (one block), "logit_scale" or "logit_bias".

        Raises:
            UnknownNameError: a group that this model does not have.
            SettingError: no range, or one that takes no block.
        """
        group, part = layers.parse(spec)
        if group not in (groups := self.groups()):
            raise unknown_name(f"parameter group of {self.name}", group, groups)
        if part is None:
            return groups[group]
        if group not in ("visual", "text"):
            raise SettingError(f"'{spec}': {group} has no blocks. Write {group}.")
        return layers.in_range(spec, part, self.blocks(group))  # type: ignore[arg-type]

    def weights(self) -> dict[str, Tensor]:
        """A copy of every parameter and buffer, on the CPU, under the checkpoint's own names; attached adapters are merged in the copy."""
        return {name: whole(tensor.detach()).cpu().clone() for name, tensor in merged_state(self.clip).items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put `weights` (as `weights()` gives them) into the model.

        Raises:
            ModelError: names or shapes that are not this model's.
        """
        try:
            self.clip.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ModelError(f"These weights do not belong to {self.name}: {error}. Load the model that they came from.") from error

    def frozen_copy(self) -> ImageTextModel:
        """Another model with the same weights, in evaluation mode, no parameter of which trains."""
        transforms = (self.preprocess_train, self.preprocess)
        twin = ImageTextModel(self.name, copy.deepcopy(self.clip), transforms, self._tokenizer, self._model_cfg, self.precision)
        return twin.requires_grad_(False).eval()

    def fresh_visual(self, seed: int) -> dict[str, Tensor]:
        """The image tower as it is before any training, drawn from `seed`, under the names of `weights()`; the model stays as it is.

        Raises:
            ModelError: the tower cannot be built from the model's configuration alone.
        """
        config, text = self._model_cfg, {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}  # built, not used
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                vision = {**config["vision_cfg"], "timm_model_pretrained": False}
                clip = open_clip.CLIP(config["embed_dim"], vision, text, config.get("quick_gelu", False))
        except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ModelError(f"The image tower of {self.name} cannot be built anew ({error!r}). Leave the references out.") from error
        return {f"visual.{name}": tensor for name, tensor in clip.visual.state_dict().items()}

    def config(self) -> dict[str, Any]:
        """The content of open_clip_config.json: model_cfg and preprocess_cfg."""
        preprocessing = open_clip.get_model_preprocess_cfg(self.clip).items()
        return {"model_cfg": self._model_cfg, "preprocess_cfg": {k: list(v) if isinstance(v, tuple) else v for k, v in preprocessing}}

    def save(self, folder: Path) -> None:
        """Write a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` opens, this class too. Weights and configuration
        appear whole or not at all; a tokenizer other than CLIP's is written beside them.

        Raises:
            ModelError: the folder cannot be written.
        """
        weights, config = folder / (WEIGHTS + ".part"), folder / (CONFIG + ".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in self.weights().items()}, weights)
            config.write_text(json.dumps(self.config(), indent=1) + "\n")
            if hasattr(self._tokenizer, "save_pretrained"):
                self._tokenizer.save_pretrained(folder)  # open_clip looks for it beside the weights
            for part in (weights, config):
                part.replace(part.with_suffix(""))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder} could not be written ({error}). Make room there, or name a folder that you may write.") from error
        finally:
            for part in (weights, config):
                with contextlib.suppress(OSError):
                    part.unlink()


def open_clip_name(name: str) -> str:
    """The part of a model's name that open_clip calls the model name; `iconclip` becomes its folder."""
    if name == "iconclip":
        return f"local-dir:{EMBEDDED / 'iconclip'}"
    return name if name.startswith(("local-dir:", "hf-dir:", "hf-hub:")) else name.partition(":")[0]


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
    if folder := _transformers_folder(name):
        clip, transforms, tokenizer, config = _from_transformers(name, folder)
        return ImageTextModel(name, clip.to(device), transforms, tokenizer, config, precision).eval()
    target, pretrained, extra = _resolve(name)
    check_source(name, target, pretrained)
    try:
        config = open_clip.get_model_config(target) or {}
        check_folder_config(name, {"model_cfg": config}, None)  # also of a hub, before anything is built
        clip, *pair = open_clip.create_model_and_transforms(target, pretrained=pretrained, device=device, require_pretrained=True, **extra)
    except ModelError:
        raise
    except UNLOADABLE as error:
        raise ModelError(
            f"{name} could not be loaded: {str(error).rstrip('.')}. Check the name, the files, and the connection if it lies on a hub."
        ) from error
    quick_gelu = {"quick_gelu": True} if extra.get("force_quick_gelu") else {}
    return ImageTextModel(name, clip, (pair[0], pair[1]), _tokenizer(name, target, config), {**config, **quick_gelu}, precision).eval()


def _tokenizer(name: str, target: str, config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    own_code = {"trust_remote_code": False} if config.get("text_cfg", {}).get("hf_tokenizer_name") else {}  # of the transformers library
    try:
        return open_clip.get_tokenizer(target, **own_code)
    except ImportError as error:
        raise ModelError(f"{name} reads text by a tokenizer of the transformers library. Install it: pip install transformers.") from error
    except (OSError, ValueError) as error:
        wanted, local = config.get("text_cfg", {}).get("hf_tokenizer_name"), target.startswith("local-dir:")
        raise ModelError(
            f"{name} reads text by the tokenizer {wanted}, which could not be loaded. "
            + ("" if local else "Load the model once with a connection to the hub, which keeps a copy, or use a local-dir:FOLDER. ")
            + f"A folder holds it as {' and '.join(TOKENIZER)}, beside the weights. The library said: {error}"
        ) from error


def _transformers_folder(name: str) -> Path | None:
    """The folder, if the name is that of a transformers folder: by its prefix, or because only that library's files are there."""
    prefix, _, folder = name.partition(":")
    found = prefix == "local-dir" and not (Path(folder) / CONFIG).exists() and (Path(folder) / hf_clip.CONFIG).is_file()
    return Path(folder) if prefix == "hf-dir" or found else None


def _from_transformers(name: str, folder: Path) -> tuple[nn.Module, tuple[ImageTransform, ImageTransform], Any, dict[str, Any]]:
    """open_clip.CLIP with a transformers folder's weights, its preprocessing (for training and not), the tokenizer and model_cfg."""
    config, preprocessing, weights = hf_clip.read(folder)
    try:
        clip = open_clip.CLIP(**config)
        clip.load_state_dict(weights)
    except UNLOADABLE as error:
        raise ModelError(f"{name}: {hf_clip.WEIGHTS} does not belong to {hf_clip.CONFIG}: {error}. Copy both anew.") from error
    open_clip.set_model_preprocess_cfg(clip, preprocessing)
    values = {key: value for key, value in preprocessing.items() if key not in ("size", "mode")}
    train, plain = (open_clip.image_transform(preprocessing["size"], is_train=training, **values) for training in (True, False))
    return clip, (train, plain), open_clip.SimpleTokenizer(context_length=clip.context_length), config


def _resolve(name: str) -> tuple[str, str | None, dict[str, Any]]:
    """(open_clip's model name, pretrained, further arguments), everything checked that can be checked without loading."""
    target = open_clip_name(name)
    if target.startswith(("local-dir:", "hf-hub:")):
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


def probe_names(limit: int = 200) -> list[str]:
    """At most `limit` distinct ImageNet class names, spread evenly: a vocabulary to measure agreement with the zero-shot model on.

    Raises:
        SettingError: a limit below 1.

    Examples:
        >>> probe_names(3)
        ['tench', 'Angora rabbit', 'moped']
    """
    if limit < 1:
        raise SettingError(f"{limit} probe names were asked for; ask for 1 or more.")
    names = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))
    count = min(limit, len(names))
    return [names[place * len(names) // count] for place in range(count)]


def imagenet_class_names() -> list[str]:
    """What CLIP calls ImageNet's 1000 classes, in their order; "missile" and "sunglasses" stand there twice."""
    return list(open_clip.IMAGENET_CLASSNAMES)


def templates_named(name: str) -> list[str]:
    """CLIP's prompt templates with `{}` for the class name: "openai80", or the "simple7" of them that were found by search.

    Raises:
        UnknownNameError: another name.

    Examples:
        >>> templates_named("simple7")[0]
        'itap of a {}.'
    """
    known = {"openai80": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple7": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    if name not in known:
        raise unknown_name("set of templates", name, known)
    return [template("{}") for template in known[name]]
