"""The only training loop and the only optimizer step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from surefoot.data.images import Images
from surefoot.data.layout import Dataset
from surefoot.errors import SettingError, TrainingError
from surefoot.heads import LinearHead, class_weight, prompt_embeddings
from surefoot.model import ImageTextModel
from surefoot.objective import Batch, Forward, Method, Stage
from surefoot.prompts import PromptTable

logger = logging.getLogger(__name__)
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast a stage trains. AdamW, linear warm-up, cosine to zero.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; the last, smaller batch of an epoch is dropped.
        learning_rate: peak of the schedule.
        weight_decay: on every trained parameter, logit_scale included, as in the released codes.
        warmup_share: part of all steps that the learning rate climbs.
        clip_norm: largest gradient norm, or None for no clipping (WiSE-FT's release clips at 1.0, FLYP's does not clip).
        seed: of the order, the crops and the prompts drawn.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    warmup_share: float = 0.1
    clip_norm: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value}; it must be {rule}"
            for name, value, rule, good in (
                ("epochs", self.epochs, "1 or more", self.epochs >= 1),
                ("batch_size", self.batch_size, "2 or more", self.batch_size >= 2),
                ("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0),
                ("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0),
                ("warmup_share", self.warmup_share, "in 0..1", 0 <= self.warmup_share <= 1),
                ("clip_norm", self.clip_norm, "above 0, or none", self.clip_norm is None or self.clip_norm > 0),
            )
            if not good
        ]
        if wrong:
            raise SettingError("Settings out of range: " + "; ".join(wrong) + ".")


@dataclass(frozen=True)
class Step:
    """What the loop tells after every step: the step's number, how many there are, the loss, and seconds since the start."""

    number: int
    total: int
    loss: float
    seconds: float


def start_state(model: ImageTextModel, dataset: Dataset) -> State:
    """theta_0: the model's weights under `model.`, and its zero-shot head times the scale under `head.`."""
    with torch.inference_mode():
        weight = class_weight(prompt_embeddings(model, PromptTable.build(dataset.templates, dataset.class_names)))
        head = LinearHead(weight, float(model.scale))
    return pack(model, head)


def pack(model: ImageTextModel, head: LinearHead) -> State:
    """All tensors of a model and its head, under `model.` and `head.`."""
    state = {f"model.{name}": tensor for name, tensor in model.weights().items()}
    return state | {f"head.{name}": tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}


def preflight(method: Method, model: ImageTextModel, dataset: Dataset, training: Training) -> None:
    """Compare what a method needs with what model and data have; all problems at once, before anything is computed.

    Raises:
        SettingError: the list of problems.
    """
    groups, problems = {*model.groups(), "head"}, []
    for stage in method.stages:
        problems += [f"it trains '{group}', which {model.name} does not have" for group in stage.trains if group not in groups]
        supplied = {"image", "label", "prompt"}
        problems += [f"it needs '{need}', which {dataset.name} does not supply" for need in sorted(stage.objective.needs - supplied)]
        if (count := len(dataset.split("train"))) < training.batch_size:
            problems.append(f"batch_size is {training.batch_size} but train holds {count} images (set batch_size={count} or less)")
    if problems:
        raise SettingError(f"{method.name} cannot run: " + "; ".join(problems) + ".")


def fit(
    method: Method,
    model: ImageTextModel,
    dataset: Dataset,
    training: Training,
    *,
    start: Mapping[str, Tensor] | None = None,
    images: Images | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> State:
    """Train `method` from the model's current weights; returns all weights after training, and leaves the model as it ends.

    Args:
        method: what to minimise and what moves.
        model: the pre-trained model; changed in place.
        dataset: its train split, class names and templates are used, nothing else.
        training: length, rates and seed.
        start: theta_0 as `start_state` gives it, if it is known already.
        images: the train images, if they are read already.
        on_step: called after every step.

    Raises:
        SettingError: method, model, data and settings do not fit.
        TrainingError: the loss is not finite.
    """
    preflight(method, model, dataset, training)
    device = next(model.parameters()).device
    state = dict(start) if start is not None else start_state(model, dataset)
    head = LinearHead(torch.zeros_like(state["head.weight"]), 1.0)
    head.load_state_dict(part(state, "head"))
    head.to(device)
    images = images or Images(dataset.split("train").paths, model.preprocess_train, random=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)  # dropout inside the towers draws from the global generator
        for stage in method.stages:
            if stage.head == "zero_shot":
                head.load_state_dict(part(state, "head"))
            _run_stage(stage, model, head, dataset, images, training, on_step)
    if method.predict == "text":
        with torch.inference_mode():
            weight = class_weight(prompt_embeddings(model, PromptTable.build(dataset.templates, dataset.class_names)))
            head = LinearHead(weight, float(model.scale))
    return pack(model, head)


def _run_stage(
    stage: Stage,
    model: ImageTextModel,
    head: LinearHead,
    dataset: Dataset,
    images: Images,
    training: Training,
    on_step: Callable[[Step], None] | None,
) -> None:
    device = next(model.parameters()).device
    trained = select(stage, model, head)
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    per_epoch = len(images) // training.batch_size
    total = per_epoch * training.epochs
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, total, round(training.warmup_share * total)))
    started = time.monotonic()
    _train_mode(model)
    for number, batch in enumerate(batches(dataset, images, model, training, device), start=1):
        loss = stage.objective.total(stage.objective.values(Forward(model, head, batch)))
        if not math.isfinite(value := loss.item()):
            raise TrainingError(
                f"The loss is {value} at step {number} of {total}. "
                f"Lower the learning rate ({training.learning_rate}), or set precision to fp32."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, training.clip_norm)
        optimizer.step()
        scheduler.step()
        if on_step:
            on_step(Step(number, total, value, time.monotonic() - started))
    model.eval()


def _train_mode(model: ImageTextModel) -> None:
    """Training mode, except BatchNorm: its running statistics stay the pre-trained ones, since interpolating moved ones is wrong."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def select(stage: Stage, model: ImageTextModel, head: LinearHead) -> list[torch.nn.Parameter]:
    """Let the stage's groups require gradients and freeze all other parameters; returns those that move."""
    chosen = {name for group, names in model.groups().items() if group in stage.trains for name in names}
    for name, parameter in model.clip.named_parameters():
        parameter.requires_grad_(name in chosen)
    for parameter in head.parameters():
        parameter.requires_grad_("head" in stage.trains)
    return [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]


def schedule(step: int, total: int, warmup: int) -> float:
    """The learning rate at `step`, as a share of its peak: a linear climb over `warmup` steps, then a cosine to zero.

    Examples:
        >>> [round(schedule(step, 8, 2), 2) for step in (0, 1, 2, 5, 8)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def batches(dataset: Dataset, images: Images, model: ImageTextModel, training: Training, device: torch.device) -> Iterator[Batch]:
    """All batches of a run, in an order and with prompts drawn from the seed; an epoch's last images that fill no batch are left out."""
    labels = torch.tensor(dataset.split("train").labels)
    table = PromptTable.build(dataset.templates, dataset.class_names)
    index, tokens = torch.tensor(table.index), model.tokenize(table.texts).to(device)
    for epoch in range(training.epochs):
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order, training.batch_size):
            if len(rows) < training.batch_size:
                continue
            template = torch.randint(index.shape[1], (len(rows),), generator=generator)
            with torch.random.fork_rng(devices=[]):  # torchvision's crops draw from the global generator
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                image = images.batch(rows.tolist())
            label = labels[rows]
            text = {"prompt": index[label, template].to(device)}
            yield Batch(image.to(device), label.to(device), text, tokens)


def settings_of(method: Method, training: Training, model: ImageTextModel) -> dict[str, object]:
    """Everything that determines a run besides data and seed, for its record and its hash."""
    training_settings = {name: value for name, value in asdict(training).items() if name != "seed"}
    return {"method": method.name, **method.settings, "model": model.name, "precision": model.precision, **training_settings}
