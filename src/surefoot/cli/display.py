"""What a comparison shows while it runs: a bar with the time left, and the table as it grows."""

from __future__ import annotations

from contextlib import nullcontext

from rich.console import Group
from rich.live import Live
from rich.progress import TaskID

from surefoot import records
from surefoot.cli.console import bar, console
from surefoot.compare import Comparison, Plan, Watcher
from surefoot.report import rich_table, rows
from surefoot.train import Step

TRAINING_COST = 3  # forward and backward against one forward


class Display(Watcher):
    """Counts images that still have to be trained or judged on; what was finished before is no part of the bar."""

    def __init__(self) -> None:
        self.found: list[records.Record] = []
        self.progress = bar(transient=False)
        self.progress.live.transient = False
        self.task: TaskID | None = None
        self.total = self.expected = 0
        self.plan = Plan()
        self.num_train: dict[int, int] = {}
        self.live = Live(self._view(), console=console, refresh_per_second=2) if console.is_terminal else nullcontext()

    def begin(self, comparison: Comparison) -> None:
        """Learn how much work there is."""
        self.plan, judge = comparison.plan, comparison.judge
        plan = self.plan
        self.num_train = {seed: len(data.split("train")) for seed, data in comparison.data_of.items()}
        judging = not _has_zero_shot(comparison)
        for name in plan.tuned:
            method = plan.method_of(name)
            for seed in plan.seeds:
                missing = comparison.missing(name, seed)
                judging |= any(alpha > 0 for alpha in missing)
                self.total += judge.num_images * len([a for a in missing if a > 0]) * ("visual" in method.trains)
                if missing and not comparison.weights_path(method, plan.training_of(name, seed)).is_file():
                    self.total += training_work(plan, name, self.num_train[seed])
        self.total += judge.num_images * judging  # once for the pre-trained model, whose features every evaluation needs
        self.task = self.progress.add_task("images", total=self.total)

    def _view(self) -> Group:
        return Group(rich_table(rows(self.found)), self.progress) if self.found else Group(self.progress)

    def run(self, method: str, seed: int, number: int, total: int, *, training: bool, images: int) -> None:
        del images
        self.expected = training_work(self.plan, method, self.num_train[seed]) if training else 0
        if self.task is not None:
            self.progress.update(self.task, description=f"{method}, seed {seed} ({number} of {total})")

    def step(self, step: Step) -> None:
        if self.task is None or step.cached:
            return
        if self.expected:  # the first step of a run: one that goes on from a checkpoint has less before it
            self.total -= max(0, self.expected - TRAINING_COST * step.num_images * (step.total - step.number + 1))
            self.expected = 0
            self.progress.update(self.task, total=self.total)
        self.progress.advance(self.task, TRAINING_COST * step.num_images)

    def reference(self, share: float, number: int, total: int, *, trained: int, judged: int) -> None:
        if self.task is not None:
            self.total += TRAINING_COST * trained + judged
            self.progress.update(self.task, total=self.total, description=f"reference {share:g} ({number} of {total})")

    def curve(self, method: str, seed: int, along: str, *, training: bool, images: int) -> None:
        self.expected = training_work(self.plan, method, self.num_train[seed]) if training else 0
        if self.task is not None:
            self.total += images + self.expected
            again = ", trained again for its epochs" if training else ""
            self.progress.update(self.task, total=self.total, description=f"{method}, seed {seed}: curve of {along}{again}")

    def judged(self, num_images: int) -> None:
        if self.task is not None:
            self.progress.advance(self.task, num_images)

    def evaluated(self, record: records.Evaluation) -> None:
        self.found.append(record)
        if isinstance(self.live, Live):
            self.live.update(self._view())
        elif record.alpha in (0.0, 1.0):
            shown = {key: record.accuracy[key] for key in ("test", "avg_shifts", "context") if key in record.accuracy}
            text = "  ".join(f"{key} {100 * value:.1f}" for key, value in shown.items())
            console.print(f"{record.method} seed {record.seed} alpha {record.alpha:.1f}  {text}")


def _has_zero_shot(comparison: Comparison) -> bool:
    """Whether the pre-trained model was judged on these data already."""
    wanted = (comparison.provenance["data"], comparison.provenance["weights"], comparison.model.precision)
    found = [r for r in comparison.done.values() if r.method == "zero_shot"]
    return any((r.provenance.get("data"), r.provenance.get("weights"), r.settings.get("precision")) == wanted for r in found)


def training_work(plan: Plan, name: str, num_train: int) -> int:
    """Images that a run trains on, over all steps, in units of one forward pass."""
    training, method = plan.training_of(name, 0), plan.method_of(name)
    stages = [stage for stage in method.stages if stage.groups & {"visual", "text"}]
    return sum(TRAINING_COST * training.num_steps(num_train) * min(training.batch_size, num_train) for _ in stages)
