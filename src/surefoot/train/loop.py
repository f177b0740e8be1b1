"""The only training loop and the only optimizer step."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surefoot import adapters
from surefoot.chunked import Chunks
from surefoot.clock import Clock
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.distributed import agreed, any_of, is_first, rank, wait, whole
from surefoot.errors import TrainingError
from surefoot.heads import LinearHead
from surefoot.layers import set_channels_last, set_checkpointing
from surefoot.metrics import Score
from surefoot.model import ImageTextModel
from surefoot.objective import Batch, Forward, Method, Objective, Stage
from surefoot.stopping import Stopped, deferred
from surefoot.train import checkpoint
from surefoot.train.batches import PAIRS, batches, seed_dropout, training_images
from surefoot.train.checkpoint import Progress
from surefoot.train.keep import Keeper
from surefoot.train.kernels import KERNEL, Kernels, pick_kernels
from surefoot.train.parallel import Steps
from surefoot.train.parameters import TOWERS, Moving, moved_by, optimizer_groups, select, stage_identity, train_mode
from surefoot.train.preflight import preflight
from surefoot.train.reference import CONTEXTS, FrozenReference
from surefoot.train.settings import Step, Training, schedule, settings_of
from surefoot.train.sharding import clip_gradients, kinds_apart, sharded, shares_weights
from surefoot.train.state import State, pack, part, put, start_head, start_state, text_head
from surefoot.train.texts import frozen_texts
from surefoot.train.validate import Validation, encode_all

CHECKPOINT_SECONDS = 120.0
FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices on which AdamW's update of all weights is one kernel."""
OnEpoch = Callable[[int, Callable[[], State]], None]


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        state: all weights, `model.` and `head.`.
        history: {"stage", "epoch", "loss", "val"} for each validated epoch.
        kept_epoch: of the last stage, counted from 1; 0 if the method trains nothing.
        choices: what was chosen on the way: by ID validation, such as LP's l2; by a measurement, the kernel of attention.
        num_steps: optimizer steps taken, those on cached features included.
        seconds: spent on training, validation included.
    """

    state: State
    history: Sequence[Mapping[str, float]]
    kept_epoch: int
    choices: Mapping[str, Any]
    num_steps: int
    seconds: float


def fit(
    method: Method,
    model: ImageTextModel,
    dataset: Dataset,
    training: Training,
    *,
    start: Mapping[str, Tensor] | None = None,
    images: Images | None = None,
    budget: Budget | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: OnEpoch | None = None,
    resume: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    clock: Clock | None = None,
    kernels: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train `method` from the model's current weights; leaves the model as it ends.

    Args:
        method: what to minimise and what moves.
        model: the pre-trained model; changed in place.
        dataset: its train and val splits, class names and templates are used, nothing else.
        training: length, rates and seed.
        start: theta_0 as `start_state` gives it, if it is known already.
        images: the train images, if they are read already.
        budget: how many bytes of images may be kept in memory.
        on_step: called after every step.
        on_epoch: called after every validated epoch of the last stage, with its number and what gives all weights of that moment; on a
            resume not again for epochs before the checkpoint. Of a stage with candidates it hears of the chosen one alone.
        resume: a checkpoint file, written now and then; a run of the same settings that stands there goes on, to bit-identical weights.
        checkpoint_seconds: the least time between two checkpoints.
        clock: measures the parts of every step.
        kernels: the `choices` of an earlier training of the same run, whose kernels are taken; none is measured then.

    Raises:
        SettingError: method, model, data and settings do not fit.
        TrainingError: the loss is not finite, or a checkpoint cannot be written.
    """
    preflight(method, model, dataset, training)
    run = _Run(method, model, dataset, training, start, images, budget, on_step, on_epoch, resume, checkpoint_seconds, clock)
    return run.fit(kernels)


class _Run:
    """One call of `fit`: its head, its progress, its checkpoint."""

    def __init__(
        self,
        method: Method,
        model: ImageTextModel,
        dataset: Dataset,
        training: Training,
        start: Mapping[str, Tensor] | None,
        images: Images | None,
        budget: Budget | None,
        on_step: Callable[[Step], None] | None,
        on_epoch: OnEpoch | None,
        path: Path | None,
        checkpoint_seconds: float,
        clock: Clock | None = None,
    ) -> None:
        self.method, self.model, self.dataset, self.training = method, model, dataset, training
        self.device = next(model.parameters()).device
        self.start = dict(start) if start is not None else start_state(model, dataset)
        self.head = LinearHead(torch.zeros_like(self.start["head.weight"]), 1.0)
        self.head.load_state_dict(part(self.start, "head"))
        self.head.to(self.device)
        self.train_paths = dataset.split("train").paths
        budget = budget or Budget()
        self.images = images or training_images(self.train_paths, model, training, budget)
        self.plain_images = Images(self.train_paths, model.preprocess, budget=Budget(0))  # read once
        compares = any(need == "reference" or need.startswith(CONTEXTS) for need in method.needs)
        self.reference = FrozenReference(model, self.start, dataset) if compares else None
        pairs = dataset.anchors.images if PAIRS & method.needs else ()
        self.pair_images = training_images(pairs, model, training, budget) if pairs else None
        self.validation = Validation(model, dataset, training.select_by, budget)
        count = torch.bincount(torch.tensor(dataset.split("train").labels), minlength=len(dataset.class_names))
        self.log_prior = (count.clamp(min=1) / count.sum()).log().to(self.device)
        self.clock = clock or Clock()
        self.on_step, self.on_epoch, self.path, self.checkpoint_seconds = on_step, on_epoch, path, checkpoint_seconds
        self.identity = self.identify() if path else ""
        self.total = sum(self.stage_training(s).num_steps(len(self.images)) * max(1, len(s.candidates)) for s in method.stages)
        self.progress, self.saved, self.before, self.statistics = Progress(), State(), State(), State()
        self.keeper, self.written, self.has_checkpoint = Keeper(training.keep), time.monotonic(), False
        self.shares = shares_weights(training)
        self.heads: dict[int, State] = {}  # of the epochs of a candidate

    def identify(self) -> str:
        """All that determines the run: settings, what the stages do, seed, data, and the weights it starts from."""
        stages = [
            (*stage_identity(stage), name, [(t.name, t.weight, sorted(t.needs)) for t in tried.terms])
            for stage in self.method.stages
            for name, tried in (stage.candidates or {"": stage.objective}).items()
        ]
        weights = hashlib.sha256()
        for name, tensor in sorted(self.start.items()):
            weights.update(name.encode())
            weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        settings = sorted(settings_of(self.method, self.training, self.model, self.dataset).items())
        return repr((settings, stages, self.training.seed, self.dataset.fingerprint(), weights.hexdigest()))

    def fit(self, kernels: Mapping[str, Any] | None = None) -> Fitted:
        self.measures = kernels is None
        self.progress.choices |= {key: value for key, value in (kernels or {}).items() if key.startswith(KERNEL)}
        wait()  # nobody looks for a checkpoint that another process is still writing
        if self.path and (found := checkpoint.load(self.path, self.identity)):
            self.progress, self.saved = found
            self.has_checkpoint = True
        self.began = time.monotonic() - self.progress.seconds
        with torch.random.fork_rng(devices=[]):
            for number, stage in enumerate(self.method.stages):
                if number >= self.progress.stage:
                    self.run_stage(number, stage)
        state = pack(self.model, self.answering())
        if bad := [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]:
            raise TrainingError(f"{bad[0]} is not finite after the last step. Lower the learning rate ({self.training.learning_rate}).")
        progress, kept_epoch = self.progress, self.keeper.epoch if self.method.stages else 0
        return Fitted(state, progress.history, kept_epoch, progress.choices, progress.done, time.monotonic() - self.began)

    def stage_training(self, stage: Stage) -> Training:
        return replace(self.training, **stage.training)

    def run_stage(self, number: int, stage: Stage) -> None:
        resumed = bool(self.saved) and self.progress.stage == number
        if resumed:
            with checkpoint.belonging(self.path):
                self.head.load_state_dict({name: self.saved[f"head.{name}"] for name in ("weight", "bias")})
                self.before = part(self.saved, "before")
                if self.before:
                    self.model.load_weights(self.before)
        else:
            moved = any(earlier.groups & TOWERS for earlier in self.method.stages[:number])
            self.before = self.model.weights() if moved and self.path else {}  # what earlier stages made of the towers
            self.progress.stage, self.progress.step, self.progress.scores, self.progress.epoch_losses = number, 0, {}, []
            start_head(self.head, stage, self.start, self.training.seed)
        self.statistics = self.restart() if stage.restart else {}
        try:
            if not stage.groups & TOWERS:
                self.run_cached(stage)
            else:
                set_checkpointing(self.model.clip, self.training.checkpointing)
                with sharded(self.model, stage, self.start) if self.shares else contextlib.nullcontext():
                    moving = select(stage, self.model, self.head, seed=self.training.seed)
                    self.minimise(stage, stage.objective, moving, self.images, resumed=resumed)
        finally:
            set_checkpointing(self.model.clip, False)
            set_channels_last(self.model.clip, False)
            adapters.fold(self.model.clip)
            self.model.zero_grad(set_to_none=True)
            self.model.eval()

    def restart(self) -> State:
        """Give the image tower random weights, on a resume too, and return the running statistics that it has to learn anew."""
        self.model.load_weights(self.model.weights() | self.model.fresh_visual(self.training.seed))
        parameters = {name for name, _ in self.model.clip.named_parameters()}
        visual = {name: tensor for name, tensor in self.model.clip.state_dict().items() if name.startswith("visual.")}
        return {f"model.{name}": tensor for name, tensor in visual.items() if name not in parameters}

    def live(self, moving: Moving) -> Mapping[str, Tensor]:
        """All that a step changes: the trained parameters, and the running statistics of a tower that began at random."""
        return {**moving.named, **self.statistics}

    def train_mode(self) -> None:
        train_mode(self.model)
        if self.statistics:
            self.model.clip.get_submodule("visual").train()

    def run_cached(self, stage: Stage) -> None:
        """A stage that moves no tower: features once, then every candidate from the same start; ID validation keeps one."""
        features = {"train": encode_all(self.model, self.plain_images), "val": self.validation.features()}
        moving, start = select(stage, self.model, self.head), {k: v.clone() for k, v in self.head.state_dict().items()}
        tried: list[tuple[str, Score, dict[str, Tensor], list[dict[str, float]], Keeper, dict[int, State]]] = []
        before = self.progress.history
        for name, objective in (stage.candidates or {"": stage.objective}).items():
            self.head.load_state_dict(start)
            self.heads = {}
            self.progress.step, self.progress.scores, self.progress.epoch_losses, self.progress.history = 0, {}, [], list(before)
            self.minimise(stage, objective, moving, features["train"], val_features=features["val"])
            score = self.validation.score(self.head, features["val"])
            weights = {k: v.clone() for k, v in self.head.state_dict().items()}
            tried.append((name, score, weights, self.progress.history, self.keeper, self.heads))
        best = max((score for _, score, *_ in tried), key=lambda score: score.value)
        chosen = next(one for one in tried if one[1].value >= best.value - best.error)
        name, _, weights, self.progress.history, self.keeper, heads = chosen
        for epoch, of_epoch in heads.items():
            self.head.load_state_dict(of_epoch)
            self.tell_epoch(epoch)
        self.head.load_state_dict(weights)
        if stage.candidates:
            self.progress.choices[f"stage {self.progress.stage + 1}"] = name

    def minimise(
        self,
        stage: Stage,
        objective: Objective,
        moving: Moving,
        source: Images | Tensor,
        *,
        resumed: bool = False,
        val_features: Tensor | None = None,
    ) -> None:
        """Steps of one objective, with ID validation after each epoch and the weights of the kept epoch at the end."""
        training, cached = self.stage_training(stage), isinstance(source, Tensor)
        self.train_mode()
        kernels = Kernels() if cached else self.pick_kernels(training)
        groups, fused = optimizer_groups(moving, objective.penalises, training.weight_decay), self.device.type in FUSED
        optimizer = torch.optim.AdamW(kinds_apart(groups), lr=training.learning_rate, fused=fused)
        self.keeper = Keeper(training.keep)
        moved, parallel = moved_by(stage, moving, self.start, self.device), Steps(self.model, self.head)
        if resumed:
            with checkpoint.belonging(self.path):
                self.put_back(moving, optimizer)
        total, per_epoch = training.num_steps(len(self.train_paths)), training.per_epoch(len(self.train_paths))
        texts = frozen_texts(self.model, stage)
        keeps = self.reference if training.reference_cache and "reference" in stage.needs else None
        frozen, begin = keeps.images(self.train_paths) if keeps else None, self.progress.step
        given = {"needs": stage.needs, "pair_images": self.pair_images, "reference": frozen}
        ready = batches(self.dataset, source, self.model, training, **given, begin=begin)  # type: ignore[arg-type]
        with deferred() as asked, contextlib.closing(ready):
            for batch in self.clock.waiting("input", ready):
                self.set_rate(optimizer, training, total)
                chunks = Chunks(training.chunk_size)
                own = {"chunks": chunks, "frozen_text": texts, "clock": self.clock}
                forward = Forward(self.model, self.head, batch, moved, self.log_prior, self.reference, **own)  # type: ignore[arg-type]
                with kernels.used(self.model):
                    loss = self.step(parallel, objective, forward, optimizer, moving, training)
                self.tell(loss, batch, cached)
                if self.progress.step % per_epoch == 0 or self.progress.step == total:
                    self.end_epoch(moving, val_features, -(-self.progress.step // per_epoch))
                self.between_steps(moving, optimizer, cached, asked())
            self.between_steps(moving, optimizer, cached, asked())  # asked while the last step was looked after
        if self.keeper.rule != "last":
            put(self.live(moving), self.keeper.weights[self.keeper.epoch])
        self.model.eval()

    def pick_kernels(self, training: Training) -> Kernels:
        progress, first = self.progress, self.measures and self.progress.step == 0
        return pick_kernels(progress.choices, progress.stage, self.model, training, num_images=len(self.train_paths), measure=first)

    def set_rate(self, optimizer: torch.optim.Optimizer, training: Training, total: int) -> None:
        rate = training.learning_rate * schedule(self.progress.step, total, round(training.warmup_share * total))
        for group in optimizer.param_groups:
            group["lr"] = rate
        # dropout inside the towers draws from the global generator; a seed for each step lets a run go on in the middle
        seed_dropout(self.training.seed * 1_000_003 + self.progress.stage * 100_003 + self.progress.step + 10_007 * rank(), self.device)

    def step(
        self,
        parallel: Steps,
        objective: Objective,
        forward: Forward,
        optimizer: torch.optim.Optimizer,
        moving: Moving,
        training: Training,
    ) -> float:
        with self.clock("loss"):
            loss = parallel.loss(objective, forward)
        if not math.isfinite(value := loss.item()):
            kept = f" The last good checkpoint is {self.path}." if self.has_checkpoint else ""
            raise TrainingError(
                f"The loss is {value} at step {self.progress.step + 1}. "
                f"Lower the learning rate ({training.learning_rate}), or set precision to fp32.{kept}"
            )
        optimizer.zero_grad(set_to_none=True)
        with self.clock("backward"):
            parallel.backward(forward, loss)
        with self.clock("optimizer"):
            if training.clip_norm is not None:
                clip_gradients(list(moving.named.values()), training.clip_norm)
            optimizer.step()
        self.clock.end_step()
        return value

    def tell(self, loss: float, batch: Batch, cached: bool) -> None:
        progress = self.progress
        progress.step, progress.done = progress.step + 1, progress.done + 1
        progress.epoch_losses.append(loss)
        progress.seconds = time.monotonic() - self.began
        if self.on_step:
            self.on_step(Step(progress.done, self.total, loss, progress.seconds, len(batch.label), cached, progress.history))

    def end_epoch(self, moving: Moving, val_features: Tensor | None, epoch: int) -> None:
        features = self.validation.features() if val_features is None else val_features
        self.model.eval()
        answering = self.answering().to(self.device)
        score = self.validation.score(answering, features)
        if val_features is None:
            self.tell_epoch(epoch)
        elif self.on_epoch:  # which candidate is chosen is not known yet
            self.heads[epoch] = {k: v.clone() for k, v in self.head.state_dict().items()}
        self.train_mode()
        self.keeper.see(epoch, score, lambda: {name: whole(p.detach()).cpu().clone() for name, p in self.live(moving).items()})
        losses, self.progress.epoch_losses = self.progress.epoch_losses, []
        row = {"stage": self.progress.stage + 1, "epoch": epoch, "loss": sum(losses) / len(losses), "val": score.value}
        self.progress.history.append(row)
        self.progress.scores[epoch] = (score.value, score.error)

    def tell_epoch(self, epoch: int) -> None:
        if self.on_epoch and self.progress.stage + 1 == len(self.method.stages):
            self.on_epoch(epoch, lambda: pack(self.model, self.answering()))

    def answering(self) -> LinearHead:
        return text_head(self.model, self.dataset) if self.method.predict == "text" else self.head

    def between_steps(self, moving: Moving, optimizer: torch.optim.Optimizer, cached: bool, stop: int | None) -> None:
        """Write a checkpoint if it is time, or if a signal asks the process, or another of the run, to end, which all do then."""
        stop = any_of(stop, self.device)
        due = stop is not None or time.monotonic() - self.written >= self.checkpoint_seconds
        if self.path and not cached and (agreed(due) if self.shares else due):  # what all hold together is saved by all
            self.save(moving, optimizer)
        if stop is not None:
            raise Stopped(stop)

    def save(self, moving: Moving, optimizer: torch.optim.Optimizer) -> None:
        assert self.path is not None
        self.written = time.monotonic()
        live, kept = self.live(moving), self.keeper.weights
        tensors = checkpoint.collected(live, self.head, moving.named, optimizer, self.before, kept)
        if is_first():  # of all processes, which have the same weights and moments, or hold them together
            checkpoint.save(self.path, self.identity, self.progress, tensors)
            self.has_checkpoint = True

    def put_back(self, moving: Moving, optimizer: torch.optim.Optimizer) -> None:
        """Parameters, moments and kept epochs of the checkpoint."""
        put(self.live(moving), self.saved)
        checkpoint.put_moments(moving.named, optimizer, self.saved)
        self.keeper.put_back(self.progress.scores, part(self.saved, "kept"))
        self.saved = {}
