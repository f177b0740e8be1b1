"""How long and how fast training goes, and what its loop tells."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from surefoot.data.layout import Dataset
from surefoot.errors import SettingError
from surefoot.model import ImageTextModel
from surefoot.objective import Method

Sampling = Literal["shuffled", "balanced", "groups"]
SelectBy = Literal["accuracy", "mean_per_class", "macro_f1"]
Keep = Literal["best", "one_standard_error", "last"]
Attention = Literal["auto", "math", "fused"]
Switch = Literal["auto", "on", "off"]
Crop = Literal["random", "center"]
Sharding = Literal["none", "fsdp"]
Decode = Literal["full", "reduced"]
LONGEST, LARGEST = 10**9, 1e6  # steps, and rates: beyond is a slip of the keyboard, and no float32 could follow
_SHUFFLE = re.compile(r"all|shards:[1-9][0-9]{0,5}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """AdamW, linear warm-up, cosine to zero; ID validation after every epoch.

    Attributes:
        epochs: passes over the training images.
        steps: length in steps instead, as DomainBed counts; None for epochs.
        batch_size: images a step, or all training images where there are fewer; the last, smaller batch of an epoch is dropped.
        learning_rate: peak of the schedule.
        weight_decay: on every trained parameter, logit_scale included, as in the released codes, except those that a term penalises.
        warmup_share: part of all steps that the learning rate climbs.
        clip_norm: largest gradient norm, or None for no clipping (WiSE-FT's release clips at 1.0, FLYP's does not clip).
        sampling: "shuffled" passes, or every image of an epoch drawn with replacement: all classes alike if "balanced", all groups of the
            training images alike if "groups" (domains, as DomainBed fills its batches).
        flip: mirror half of the images, drawn anew each time (DomainBed; the released codes of the other papers do not).
        select_by: what ID validation measures, for the kept epoch and for alpha: top-1 "accuracy", "mean_per_class" or "macro_f1".
        keep: which epoch's weights: the "best" on ID validation (the first of equals), the first within "one_standard_error" of the best,
            or the "last".
        crop: of training images: "random", a little smaller than the image and drawn anew each time, as in the released codes, or "center",
            the one that evaluation sees.
        reference_cache: compute the frozen reference's features of the training images (CAR-FT, CLIP-CITE) once, in batches of their own,
            and keep them, in memory (4 bytes a number) and in the cache folder, for later runs from the same weights on the same images.
            It needs crop=center and no flip. A feature differs by rounding from one computed with its batch (1e-6 in float32, and as
            much as bf16 rounds otherwise), therefore it is off unless it is asked for.
        chunk_size: images and texts that a tower encodes at a time, for batches larger than memory: the loss and the gradients are those of
            the whole batch, at the price of one more forward pass. None: all at once.
        checkpointing: keep no activations inside the blocks of the towers, and compute them again when they are needed.
        attention: the kernel of the towers' attention in training: "math" (matrix products) or "fused"; "auto" takes the usual one of the
            device and format; on a CPU a run of 300 steps and more measures both at its start. They differ in rounding only.
        channels_last: lay out the image tower's pixels and convolutions with the channels innermost: "on" or "off"; "auto" measures both
            at the start of a run of 300 steps and more, and is off elsewhere. Made for ResNets and ConvNeXts. Differs in rounding only.
        compile: let torch.compile make kernels of its own for the image tower: "on" or "off"; "auto" tries it in a run of 300 steps and
            more whose image tower takes ten minutes and more, keeps it where it is faster, and goes on without where there is no C++
            compiler. Texts, which have another length at every step, and losses are not compiled. Differs in rounding only.
        sharding: "fsdp" lets the processes that torchrun starts hold the towers that train together, if one alone has no room for them:
            each has a part of every weight, its gradient and its moments. Differs in rounding only. A single process holds all, as "none".
        decode: training images in "full", or large JPEGs "reduced" to a half, a quarter or an eighth of their size where that leaves twice
            the pixels that the model sees: several times faster, crops differ a little. Evaluation decodes in full, and so do heads that
            train on features.
        shuffle: "all" the training images of an epoch together, or "shards:B" for shards that are streamed: the shards are shuffled, and
            the images of B shards at a time. Every image comes once an epoch either way. Images in folders count to the shards that
            `surefoot shards` would put them into.
        seed: of the order, the crops, the prompts drawn and a random head.
    """

    epochs: int = 10
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    warmup_share: float = 0.1
    clip_norm: float | None = None
    sampling: Sampling = "shuffled"
    select_by: SelectBy = "accuracy"
    keep: Keep = "best"
    flip: bool = False
    crop: Crop = "random"
    reference_cache: bool = False
    chunk_size: int | None = None
    checkpointing: bool = False
    attention: Attention = "auto"
    channels_last: Switch = "auto"
    compile: Switch = "auto"
    sharding: Sharding = "none"
    decode: Decode = "full"
    shuffle: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value}; it must be {rule}"
            for name, value, rule, good in (
                ("epochs", self.epochs, f"1 or more, {LONGEST} at most", 1 <= self.epochs <= LONGEST),
                ("steps", self.steps, f"1 or more, {LONGEST} at most, or none", self.steps is None or 1 <= self.steps <= LONGEST),
                ("batch_size", self.batch_size, f"2 or more, {LONGEST} at most", 2 <= self.batch_size <= LONGEST),
                ("learning_rate", self.learning_rate, f"above 0, {LARGEST:g} at most", 0 < self.learning_rate <= LARGEST),
                ("weight_decay", self.weight_decay, f"0 or more, {LARGEST:g} at most", 0 <= self.weight_decay <= LARGEST),
                ("warmup_share", self.warmup_share, "in 0..1", 0 <= self.warmup_share <= 1),
                ("clip_norm", self.clip_norm, "above 0, or none", self.clip_norm is None or self.clip_norm > 0),
                ("sampling", self.sampling, _one_of(Sampling), self.sampling in get_args(Sampling)),
                ("select_by", self.select_by, _one_of(SelectBy), self.select_by in get_args(SelectBy)),
                ("crop", self.crop, _one_of(Crop), self.crop in get_args(Crop)),
                ("chunk_size", self.chunk_size, "1 or more, or none", self.chunk_size is None or self.chunk_size >= 1),
                ("attention", self.attention, _one_of(Attention), self.attention in get_args(Attention)),
                ("channels_last", self.channels_last, _one_of(Switch), self.channels_last in get_args(Switch)),
                ("compile", self.compile, _one_of(Switch), self.compile in get_args(Switch)),
                ("sharding", self.sharding, _one_of(Sharding), self.sharding in get_args(Sharding)),
                ("decode", self.decode, _one_of(Decode), self.decode in get_args(Decode)),
                ("keep", self.keep, _one_of(Keep), self.keep in get_args(Keep)),
                ("shuffle", self.shuffle, "all, or shards:B with a number B, such as shards:8", bool(_SHUFFLE.fullmatch(self.shuffle))),
                ("shuffle", self.shuffle, f"all where sampling is {self.sampling}", self.sampling == "shuffled" or self.shuffle == "all"),
            )
            if not good
        ]
        if wrong:
            raise SettingError("Settings out of range: " + "; ".join(wrong) + ".")

    @property
    def shards_at_a_time(self) -> int | None:
        """How many shards are shuffled together; None for all."""
        return None if self.shuffle == "all" else int(self.shuffle.partition(":")[2])

    @property
    def reading(self) -> str:
        """How training images are decoded and cropped: runs that have it in common may share them."""
        return f"{self.decode}, {self.crop}"

    def per_epoch(self, num_images: int) -> int:
        """Steps in one pass over `num_images` training images.

        Examples:
            >>> Training(batch_size=32).per_epoch(100), Training(batch_size=32).per_epoch(7)
            (3, 1)
        """
        return num_images // min(self.batch_size, num_images)

    def num_steps(self, num_images: int) -> int:
        """All steps on `num_images` training images."""
        return self.steps if self.steps is not None else self.epochs * self.per_epoch(num_images)


def schedule(step: int, total: int, warmup: int) -> float:
    """The learning rate at `step`, as a share of its peak: a linear climb over `warmup` steps, then a cosine to zero.

    Examples:
        >>> [round(schedule(step, 8, 2), 2) for step in (0, 1, 2, 5, 8)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@dataclass(frozen=True)
class Step:
    """What the loop tells after every step: its number, how many the run has, the loss, seconds so far, images in the step.

    `cached` says that the step trained a head on stored features, which costs next to nothing. `history` is what ID validation has said so
    far, {"stage", "epoch", "loss", "val"} for each epoch before this one's end.
    """

    number: int
    total: int
    loss: float
    seconds: float
    num_images: int = 0
    cached: bool = False
    history: Sequence[Mapping[str, float]] = ()


_LATER: dict[str, object] = {
    "flip": False, "crop": "random", "reference_cache": False, "chunk_size": None, "checkpointing": False, "attention": "auto",
    "channels_last": "auto", "compile": "auto", "sharding": "none", "decode": "full",
    "shuffle": "all",
}  # fmt: skip
"""The settings that came after the first records, and the values at which they change nothing."""


def stated(training: Training) -> dict[str, object]:
    """All settings but the seed; those that came later only where they are used, so that older records stay the same."""
    return {name: value for name, value in asdict(training).items() if name != "seed" and _LATER.get(name, ...) != value}


def settings_of(method: Method, training: Training, model: ImageTextModel, dataset: Dataset | None = None) -> dict[str, object]:
    """Everything that determines a run besides data and seed, for its record and its hash; the anchors of `dataset` if it uses them."""
    used = {"captions": "caption" in method.needs, "pairs": "anchor_image" in method.needs}
    anchors = dataset.anchors.identity(dataset.written) if dataset and any(used.values()) else {}
    own = {"method": method.name, **method.settings, **{name: value for name, value in anchors.items() if used[name]}}
    return {**own, "model": model.name, "precision": model.precision, **stated(training)}


def _one_of(kind: object) -> str:
    return "one of " + ", ".join(get_args(kind))
