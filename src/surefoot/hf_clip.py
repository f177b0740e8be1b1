"""CLIP folders of the transformers library, read as open_clip's, and the way back: configuration, preprocessing and names of weights.

Only files are read; the transformers library is not needed. What one of the two cannot compute in the same way is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from surefoot.errors import MissingDataError, ModelError, SurefootError
from surefoot.guard.weights import check_folder_config, read_config

CONFIG, WEIGHTS, PREPROCESSING = "config.json", "model.safetensors", "preprocessor_config.json"
VOCABULARY = 49408  # of CLIP's byte-pair encoding, the one tokenizer that can stand in for the folder's own
END_OF_TEXT = VOCABULARY - 1
# config.json may leave out what equals the library's defaults
_TOWER = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_TEXT = _TOWER | {
    "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "max_position_embeddings": 77,
    "eos_token_id": END_OF_TEXT,
}  # fmt: skip
_VISION = _TOWER | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32, "num_channels": 3,
}  # fmt: skip
_PREPROCESSING: dict[str, Any] = {
    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}
# open_clip's settings that have a counterpart, or none that an answer depends on; the values of others that are what transformers does
_BOTH = {"layers", "width", "mlp_ratio", "norm_kwargs", "output_tokens", "patch_dropout"}
_KNOWN = {
    "vision_cfg": _BOTH | {"head_width", "image_size", "patch_size"},
    "text_cfg": _BOTH | {"context_length", "vocab_size", "heads", "pad_id", "eos_id"},
}
_SAME = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",), "block_type": ("default",)}
_NAMES = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # spelt so in every such checkpoint
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    (".self_attn.", ".attn."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """(model_cfg, preprocess_cfg, weights under open_clip's names) of a folder that the transformers library wrote.

    Raises:
        MissingDataError: config.json, model.safetensors or preprocessor_config.json is not there.
        ModelError: no CLIP, or one that open_clip cannot compute in the same way.
    """
    config = _json(folder / CONFIG)
    try:
        model_cfg = model_config(config)
        _check_vocabulary(folder)
    except SurefootError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{folder / CONFIG} is no configuration of a CLIP ({error!r}). Copy it anew.") from error
    if not (folder / WEIGHTS).is_file():
        other = " Pickled weights are not read;" if list(folder.glob("*.bin")) else ""
        raise MissingDataError(
            f"{folder / WEIGHTS} is not there.{other} load the folder with transformers and write it anew as one file: "
            "CLIPModel.from_pretrained(FOLDER).save_pretrained(FOLDER, max_shard_size='100GB')."
        )
    try:
        preprocess_cfg = preprocess_config(_preprocessing(folder), model_cfg["vision_cfg"]["image_size"])
    except SurefootError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ModelError(f"{folder / PREPROCESSING} is no configuration of CLIP's preprocessing ({error!r}). Copy it anew.") from error
    check_folder_config(folder / CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}, folder / WEIGHTS)
    try:
        weights = rename(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder / WEIGHTS} could not be read as weights of a CLIP ({error}). Copy or save the folder anew.") from error
    return model_cfg, preprocess_cfg, weights


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's model_cfg of the content of a CLIP's config.json.

    Raises:
        ModelError: another type of model, another vocabulary, or a part that open_clip.CLIP does not have.

    Examples:
        >>> model_config({"model_type": "clip", "projection_dim": 512})["vision_cfg"]["head_width"]
        64
    """
    if (kind := config.get("model_type")) != "clip":
        siglip = " A SigLIP is loaded by its open_clip name (ViT-B-16-SigLIP:webli) or from a folder in open_clip's layout."
        raise ModelError(
            f"config.json says model_type '{kind}'; of transformers' models only 'clip' can be read."
            + (siglip if str(kind).startswith("siglip") else " Use a model of open_clip, or its folder layout, for all others.")
        )
    text = _TEXT | (config.get("text_config_dict") or config.get("text_config") or {})
    vision = _VISION | (config.get("vision_config_dict") or config.get("vision_config") or {})
    activations = {text["hidden_act"], vision["hidden_act"]}
    for wrong, what in (
        (activations not in ({"quick_gelu"}, {"gelu"}), f"the activations {sorted(activations)}; both towers must have quick_gelu or gelu"),
        (text["vocab_size"] != VOCABULARY, f"a vocabulary of {text['vocab_size']} tokens; only CLIP's own of {VOCABULARY} can be read"),
        # 2 is what old checkpoints say, and means the largest token number: the end of text in CLIP's vocabulary
        (text["eos_token_id"] not in (2, END_OF_TEXT), f"the end-of-text token {text['eos_token_id']}; CLIP's is {END_OF_TEXT}"),
        (vision["num_channels"] != 3, f"{vision['num_channels']} colour channels; images have 3"),
    ):
        if wrong:
            raise ModelError(f"config.json names {what}. Use another checkpoint, or bring this one into open_clip's folder layout.")
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_tower(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **_tower(text),
        },
    }


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    ratio = inner / width
    return {
        "width": width,
        "layers": config["num_hidden_layers"],
        # open_clip rounds width * ratio down, which must not lose one to the division
        "mlp_ratio": ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf),
        "norm_kwargs": {"eps": config["layer_norm_eps"]},
    }


def preprocess_config(values: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """open_clip's preprocess_cfg of the content of preprocessor_config.json.

    Raises:
        ModelError: steps that open_clip's preprocessing does not have, or another size than the model's.

    Examples:
        >>> preprocess_config({"size": 224, "resample": 2}, 224)["interpolation"]
        'bilinear'
    """
    values = _PREPROCESSING | dict(values)
    size = values["size"] if isinstance(values["size"], Mapping) else {"shortest_edge": values["size"]}
    crop = values["crop_size"] if isinstance(values["crop_size"], Mapping) else dict.fromkeys(("height", "width"), values["crop_size"])
    cropped = values.get("do_center_crop", True)
    square = {"height": image_size, "width": image_size}
    shortest = size == {"shortest_edge": image_size} and cropped and crop == square
    squash = size == square and (not cropped or crop == square)
    off = [step for step in ("do_resize", "do_rescale", "do_normalize") if not values.get(step, True)]
    if off or values["resample"] not in _INTERPOLATION or not (shortest or squash):
        raise ModelError(
            f"{PREPROCESSING} asks for size {size}, crop {crop if cropped else 'none'}, resample {values['resample']}"
            f"{', without ' + ', '.join(off) if off else ''}. open_clip resizes to the model's {image_size} pixels (the shortest edge with "
            "a centre crop, or both edges), bicubic (3) or bilinear (2), and normalises. Correct the file if the model was trained so."
        )
    return {
        "size": [image_size, image_size],  # as open_clip writes it itself, so that a saved copy has the same configuration
        "mode": "RGB",
        "mean": list(values["image_mean"]),
        "std": list(values["image_std"]),
        "interpolation": _INTERPOLATION[values["resample"]],
        "resize_mode": "shortest" if shortest else "squash",
        "fill_color": 0,
    }


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under open_clip's names: q, k and v [D, D] stacked to one [3 D, D], projections transposed to [width, D].

    Raises:
        KeyError: an attention layer that lacks one of the three.
    """
    weights = {}
    for name, tensor in state.items():
        if name.endswith(".position_ids") or ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            name = name.replace(".q_proj.", ".in_proj_")
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        weights[name] = tensor.T if name in ("visual.proj", "text_projection") else tensor
    return weights


def to_config(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a CLIP's config.json, of open_clip's model_cfg: the inverse of `model_config`.

    Raises:
        ModelError: a part that CLIPModel of transformers does not have.

    Examples:
        >>> to_config({"embed_dim": 512, "vision_cfg": {"patch_size": 16}, "text_cfg": {"heads": 4}})["vision_config"]["patch_size"]
        16
    """
    rest = {key: value for key, value in model_cfg.items() if key not in _KNOWN}
    known = {"model_cfg": {"embed_dim", "quick_gelu", "init_logit_scale"}} | _KNOWN
    for where, given in (("model_cfg", rest), *((where, model_cfg[where]) for where in _KNOWN)):
        if other := {k: v for k, v in given.items() if k not in known[where] and v and v not in _SAME.get(k, ())}:
            raise ModelError(f"{where} holds {other}, which CLIPModel of transformers does not have.")
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    sizes = [vision.get("layers", 12), _one(vision.get("image_size", 224)), _one(vision.get("patch_size", 16))]
    if not all(isinstance(size, int) for size in sizes):
        raise ModelError(
            f"vision_cfg holds the layers, image size and patch size {sizes}; CLIPModel of transformers has a ViT and square images."
        )
    activation, width = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu", vision.get("width", 768)
    image = {
        "image_size": sizes[1], "patch_size": sizes[2], "num_attention_heads": width // vision.get("head_width", 64), "num_channels": 3,
    }  # fmt: skip
    words = {
        "max_position_embeddings": text.get("context_length", 77), "vocab_size": text.get("vocab_size", VOCABULARY),
        "num_attention_heads": text.get("heads", 8), "bos_token_id": END_OF_TEXT - 1, "eos_token_id": END_OF_TEXT,
        "pad_token_id": END_OF_TEXT,
    }  # fmt: skip
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model_cfg["embed_dim"],
        "text_config": words | _sizes(text, 512) | {"hidden_act": activation, "model_type": "clip_text_model"},
        "vision_config": image | _sizes(vision, 768) | {"hidden_act": activation, "model_type": "clip_vision_model"},
    }


def _one(size: Any) -> Any:  # noqa: ANN401
    """The side of a square that is given as a pair."""
    return size[0] if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1] else size


def _sizes(tower: Mapping[str, Any], usual: int) -> dict[str, Any]:
    width = tower.get("width", usual)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * tower.get("mlp_ratio", 4.0)),
        "num_hidden_layers": tower.get("layers", 12),
        "layer_norm_eps": (tower.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def to_preprocessor(preprocess_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The content of preprocessor_config.json, of open_clip's preprocess_cfg: the inverse of `preprocess_config`.

    Raises:
        ModelError: another way to resize than the shortest edge with a centre crop, or both edges of a square.

    Examples:
        >>> size = to_preprocessor({"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"})["size"]
        >>> size == {"height": 224, "width": 224}
        True
    """
    size, mode = _one(preprocess_cfg["size"]), preprocess_cfg.get("resize_mode", "shortest")
    if not isinstance(size, int) or mode not in ("shortest", "squash"):
        raise ModelError(
            f"Images are resized to {size} by '{mode}'; the image processor of transformers' CLIP knows squares, and no borders."
        )
    square = {"height": size, "width": size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size} if mode == "shortest" else square,
        "resample": next(number for number, name in _INTERPOLATION.items() if name == preprocess_cfg.get("interpolation", "bicubic")),
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess_cfg["mean"]),
        "image_std": list(preprocess_cfg["std"]),
    }


def rename_back(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of transformers; the inverse of `rename`.

    Examples:
        >>> sorted(rename_back({"transformer.resblocks.0.attn.in_proj_bias": torch.zeros(6)}))[0]
        'text_model.encoder.layers.0.self_attn.k_proj.bias'
    """
    state = {}
    for name, tensor in weights.items():
        parts = [(name, tensor.T if name in ("visual.proj", "text_projection") else tensor)]
        if ".in_proj_" in name:
            parts = [(name.replace(".in_proj_", f".{p}_proj."), piece) for p, piece in zip("qkv", tensor.chunk(3), strict=True)]
        for ours, piece in parts:
            renamed = ours
            for their_part, our_part in _NAMES:
                inner = our_part.startswith(".")
                if (inner and our_part in renamed) or (not inner and renamed.startswith(our_part)):
                    renamed = renamed.replace(our_part, their_part, 1)
            state[renamed] = piece.contiguous()
    return state


def _check_vocabulary(folder: Path) -> None:
    """The size of the folder's own vocabulary, where it has one."""
    for file, size in (("vocab.json", len), ("tokenizer.json", lambda content: len(content.get("model", {}).get("vocab", ())))):
        if (folder / file).is_file() and (found := size(_json(folder / file))) != VOCABULARY:
            raise ModelError(
                f"{folder / file} holds {found} tokens; texts are read by CLIP's own tokenizer of {VOCABULARY}. "
                "A model with another tokenizer must be brought into open_clip's folder layout."
            )


def _preprocessing(folder: Path) -> dict[str, Any]:
    """preprocessor_config.json, or what newer versions write in its place."""
    if (folder / "processor_config.json").is_file() and "image_processor" in (whole := _json(folder / "processor_config.json")):
        return dict(whole["image_processor"])
    return _json(folder / PREPROCESSING)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingDataError(f"{path} is not there. A transformers folder holds {CONFIG}, {WEIGHTS} and {PREPROCESSING}.")
    if not isinstance(found := read_config(path), dict):
        raise ModelError(f"{path} is no JSON object but {str(found)[:40]}. Copy it anew.")
    return found
