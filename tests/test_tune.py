"""The search: validation alone chooses, every trial is on disk, and an interruption changes nothing."""

from __future__ import annotations

import builtins
import json
import logging
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from surefoot import config
from surefoot.cli.tune import tell
from surefoot.cli.tune import tune as tune_command
from surefoot.compare import Plan
from surefoot.data import Dataset, Split
from surefoot.errors import DataError, SettingError, TrainingError, UnknownNameError
from surefoot.model import ImageTextModel
from surefoot.train import Fitted, Step, Training, fit
from surefoot.tune import Between, OneOf, Run, Trial, Tuned, Watcher, choose, default_space, parse_space, search, trials
from surefoot.tune.sampler import suggest
from surefoot.tune.search import _spent

SEARCH = sys.modules["surefoot.tune.search"]
PLAN = Plan(seeds=(0, 1), training=Training(epochs=2, batch_size=8, learning_rate=1e-3))
SPACE = {"learning_rate": Between(1e-4, 1e-2, log=True), "epochs": OneOf((1, 2))}


class StopError(Exception):
    """An interruption."""


class After(Watcher):
    """Interrupts a search when so many steps of a trial, or so many trials, are done."""

    def __init__(self, num_trials: int | None = None, num_steps: int | None = None) -> None:
        self.num_trials, self.num_steps, self.seen, self.began, self.steps = num_trials, num_steps, 0, list[int](), list[int]()

    def trial(self, number: int, total: int | None, settings: Any) -> None:  # noqa: ANN401
        self.began.append(number)

    def step(self, step: Step) -> None:
        self.steps.append(step.number)
        if len(self.steps) == self.num_steps:
            raise StopError

    def finished(self, trial: Trial) -> None:
        self.seen += 1
        if self.seen == self.num_trials:
            raise StopError


def lines(folder: Path) -> list[dict[str, Any]]:
    """The trials on disk, without what a clock says."""
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def find(tiny_model: ImageTextModel, tiny_data: Dataset) -> Callable[..., Tuned]:
    """A search on the tiny data, with other options where they are given."""

    def run(folder: Path, **options: Any) -> Tuned:  # noqa: ANN401
        given: dict[str, Any] = {"method": "tp_ft", "dataset": tiny_data, "plan": PLAN, "trials": 5, "space": SPACE} | options
        return search(given.pop("method"), tiny_model, given.pop("dataset"), given.pop("plan"), folder, **given)

    return run


def test_interrupted_and_resumed_equals_one_go(find: Callable[..., Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["surefoot.tune.sampler"], "RANDOM_TRIALS", 2)
    whole = find(tmp_path / "whole")
    with pytest.raises(StopError):
        find(tmp_path / "cut", watcher=After(num_trials=2))
    assert len(lines(tmp_path / "cut")) == 2
    watcher = After()
    resumed = find(tmp_path / "cut", watcher=watcher)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert watcher.began == [2, 3, 4]
    assert (tmp_path / "cut" / "tuned.toml").read_text() == (tmp_path / "whole" / "tuned.toml").read_text()
    assert (resumed.chosen.settings, resumed.argmax.settings) == (whole.chosen.settings, whole.argmax.settings)
    assert len({tuple(trial.settings.values()) for trial in whole.trials}) == 5


def test_a_finished_search_trains_nothing(find: Callable[..., Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(tmp_path, trials=2)
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"search": "cut off')
    monkeypatch.setattr(SEARCH, "fit", lambda *_, **__: pytest.fail("trained again"))
    recipe = (tmp_path / "tuned.toml").read_text()
    assert find(tmp_path, trials=2) == first
    assert (tmp_path / "tuned.toml").read_text() == recipe


def test_a_trial_goes_on_from_its_checkpoint(find: Callable[..., Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find(tmp_path / "whole", trials=2)
    monkeypatch.setattr(SEARCH, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(StopError):
        find(tmp_path / "cut", trials=2, watcher=After(num_steps=5))
    assert len(list((tmp_path / "cut").glob("trial-0-*.resume"))) == 1
    watcher = After()
    resumed = find(tmp_path / "cut", trials=2, watcher=watcher)
    assert watcher.steps[0] == 5, "four steps were on disk"
    assert [(t.settings, t.value) for t in resumed.trials] == [(t.settings, t.value) for t in whole.trials]
    assert not list((tmp_path / "cut").glob("*.resume"))


class Exploding(dict[str, Split]):
    """Splits of which all but train and val must not even be asked for."""

    def __getitem__(self, name: str) -> Split:
        assert name in ("train", "val"), f"{name} was opened"
        return super().__getitem__(name)

    def items(self) -> Any:  # noqa: ANN401
        raise AssertionError

    values = __iter__ = items


def test_no_split_but_train_and_validation_is_opened(
    find: Callable[..., Tuned], tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    true_open, true_path_open = builtins.open, Path.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: (opened.append(Path(str(file))), true_open(file, *a, **k))[1])
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), true_path_open(self, *a, **k))[1])
    find(tmp_path, trials=2, dataset=replace(tiny_data, splits=Exploding(tiny_data.splits)))
    read = {path.relative_to(tiny_data.root).parts[0] for path in opened if path.is_relative_to(tiny_data.root) and path.suffix == ".png"}
    assert read == {"train", "val"}


@pytest.mark.parametrize("split", ["test", "shifts/red", "train"])
def test_only_validation_may_choose(find: Callable[..., Tuned], tmp_path: Path, split: str) -> None:
    with pytest.raises(SettingError, match=f"'{split}'; only 'val' is accepted"):
        find(tmp_path / "run", select_on=split)
    assert not (tmp_path / "run").exists()


def test_the_first_trial_is_the_plan_itself_and_is_judged_at_its_kept_epoch(
    find: Callable[..., Tuned], tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path
) -> None:
    found = find(tmp_path, trials=1, method="flyp")
    assert found.trials[0].settings == {"learning_rate": 1e-3, "epochs": 2}
    fitted = fit(PLAN.method_of("flyp"), tiny_model, tiny_data, PLAN.training_of("flyp", 0))
    kept = next(row["val"] for row in fitted.history if row["epoch"] == fitted.kept_epoch)
    assert (found.trials[0].value, found.trials[0].runs[0].kept_epoch) == (kept, fitted.kept_epoch)
    assert found.trials[0].error == pytest.approx((kept * (1 - kept) / 12) ** 0.5)


def test_trials_start_from_the_first_weights_and_leave_them(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, equal = tiny_model.weights(), []

    def checked(method: Any, model: ImageTextModel, *arguments: Any, **options: Any) -> Fitted:  # noqa: ANN401
        equal.append(all(torch.equal(first[name], tensor) for name, tensor in model.weights().items()))
        return fit(method, model, *arguments, **options)

    monkeypatch.setattr(SEARCH, "fit", checked)
    search("flyp", tiny_model, tiny_data, PLAN, tmp_path, trials=2, space=SPACE)
    assert equal == [True, True]
    assert all(torch.equal(first[name], tensor) for name, tensor in tiny_model.weights().items())


def test_a_diverging_trial_is_recorded(find: Callable[..., Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(method: Any, model: Any, data: Any, training: Training, **options: Any) -> Fitted:  # noqa: ANN401
        if training.learning_rate == 0.5:
            raise TrainingError("The loss is nan at step 1. Lower the learning rate. The last good checkpoint is gone.resume.")
        return fit(method, model, data, training, **options)

    monkeypatch.setattr(SEARCH, "fit", failing)
    found = find(tmp_path / "run", trials=9, space={"learning_rate": OneOf((0.5, 1e-3))})
    assert [bool(trial.failure) for trial in found.trials] == [False, True], "each of two settings is tried once"
    assert lines(tmp_path / "run")[1]["failure"] == "The loss is nan at step 1. Lower the learning rate."
    assert lines(tmp_path / "run")[1]["value"] is None
    assert found.chosen.number == 0
    with pytest.raises(TrainingError, match="All 1 trials failed"):
        find(tmp_path / "all", trials=1, plan=replace(PLAN, training=replace(PLAN.training, learning_rate=0.5)))


def test_each_trial_reads_images_as_its_settings_say(find: Callable[..., Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int | None, int]] = []

    def noted(method: Any, model: Any, data: Any, training: Training, **options: Any) -> Fitted:  # noqa: ANN401
        seen.append((training.decode, options["images"]._least, id(options["images"])))
        return fit(method, model, data, training, **options)

    monkeypatch.setattr(SEARCH, "fit", noted)
    find(tmp_path, trials=2, space={"decode": OneOf(("full", "reduced"))})
    assert {(decode, least) for decode, least, _ in seen} == {("full", None), ("reduced", 64)}
    assert len({images for *_, images in seen}) == 2, "both seeds of a trial share what was read"


def test_a_full_disk_is_no_failed_trial(find: Callable[..., Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> Fitted:
        raise TrainingError("could not be written") from OSError("no space left")

    monkeypatch.setattr(SEARCH, "fit", failing)
    with pytest.raises(TrainingError, match="could not be written"):
        find(tmp_path)
    assert not (tmp_path / "trials.jsonl").exists()


def test_more_seeds_a_trial_are_averaged_and_repeat_nothing(find: Callable[..., Tuned], tmp_path: Path) -> None:
    with pytest.raises(StopError):
        find(tmp_path, num_seeds=2, trials=1, watcher=After(num_steps=8))  # the second run is under way
    watcher = After()
    trial = find(tmp_path, num_seeds=2, trials=1, watcher=watcher).trials[0]
    assert len(watcher.steps) == 6, "one run of two epochs"
    assert [run.seed for run in trial.runs] == [0, 1]
    assert trial.value == sum(run.value or 0.0 for run in trial.runs) / 2


def trial_of(number: int, rate: float, value: float | None, error: float = 0.01, epochs: int = 1, seconds: float = 60.0) -> Trial:
    run = Run(
        search="", number=number, seed=0, settings={"learning_rate": rate, "epochs": epochs}, value=value, error=error, kept_epoch=1,
        seconds=seconds, failure="" if value is not None else "nan",
    )  # fmt: skip
    return Trial((run,))


def test_smallest_learning_rate_within_one_standard_error_is_chosen() -> None:
    tried = [
        trial_of(0, 1e-3, 0.800),
        trial_of(1, 1e-5, 0.789),  # just below 0.8 - 0.01
        trial_of(2, 1e-4, 0.791, epochs=9),
        trial_of(3, 1e-4, 0.7905, epochs=3),
        trial_of(4, 1e-6, None),
    ]
    chosen, argmax = choose(tried, lambda trial: (trial.settings["learning_rate"], trial.settings["epochs"]))
    assert (chosen.number, argmax.number) == (3, 0)


def test_budget_ends_before_a_trial_that_would_pass_it() -> None:
    done = [trial_of(0, 1e-3, 0.5, seconds=50), trial_of(1, 1e-3, 0.5, seconds=70)]
    assert not _spent([], 1, 1e-9), "the first trial is always run"
    assert not _spent(done, 3, None)
    assert _spent(done, 2, None)
    assert not _spent(done, None, 3.0)  # 120 seconds, and 60 more on average
    assert _spent(done, None, 2.99)


def test_recipe_holds_the_chosen_settings(find: Callable[..., Tuned], tmp_path: Path) -> None:
    plan = replace(PLAN, overrides={"l2_sp": {"head_l2": 1e-5, "clip_norm": None}, "flyp": {"epochs": 3}}, shots=2)
    space = {"pull": Between(1e-4, 1.0, log=True), "steps": OneOf((3, 4)), "clip_norm": OneOf((None, 1.0))}
    found = find(tmp_path, method="l2_sp", plan=plan, space=space, trials=3, command="surefoot tune\nDATA")
    text = found.recipe.read_text()
    assert text.startswith("# surefoot tune DATA\n#\n# 3 trials of l2_sp")
    assert f"trial {found.argmax.number}, {found.argmax.value:.4f} ± {found.argmax.error:.4f}: pull=" in text
    read = config.resolve(config.read_recipe(str(found.recipe)), {})
    chosen = found.chosen.settings
    assert (read.plan.methods, read.plan.seeds, read.plan.shots, read.model.startswith("local-dir:")) == (("l2_sp",), (0, 1), 2, True)
    assert read.plan.method_of("l2_sp").settings["pull"] == chosen["pull"]
    assert read.plan.method_of("l2_sp").settings["head_l2"] == 1e-5
    training = read.plan.training_of("l2_sp", 0)
    assert (training.steps, training.clip_norm) == (chosen["steps"], chosen["clip_norm"])
    assert read.plan.training == PLAN.training


def test_default_space_follows_plan_and_method() -> None:
    assert default_space(PLAN, "flyp") == {"learning_rate": Between(1e-4, 1e-2, log=True), "epochs": OneOf((1, 2, 4))}
    assert set(default_space(PLAN, "lp")) == {"head_learning_rate", "label_smoothing"}
    steps = replace(PLAN, training=replace(PLAN.training, steps=100))
    assert default_space(steps, "flyp")["steps"] == OneOf((50, 100, 200))


@pytest.mark.parametrize("method", ["lp", "l2_sp"])
def test_methods_with_their_own_settings_are_searched(find: Callable[..., Tuned], tmp_path: Path, method: str) -> None:
    found = find(tmp_path, method=method, space=None, trials=2)
    own = {"lp": {"head_learning_rate"}, "l2_sp": {"learning_rate", "epochs", "pull"}}[method]
    assert set(found.trials[1].settings) == own | {"label_smoothing"}
    assert not any(trial.failure for trial in found.trials)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("learning_rate", "nothing to search"),
        ("learning_rate=1e-3..1e-5", "smaller number first"),
        ("learning_rate=a..b", "no range of numbers"),
        ("learning_rate=0..1:log", "must be above 0"),
        ("learning_rate=1..2:linear", "':linear' means nothing"),
        ("epochs=5,10:log", "':log' means nothing"),
        ("epochs=5,5", "each once"),
    ],
)
def test_entries_that_cannot_be_read_are_named(entry: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        parse_space([entry, "epochs=oops..1"])
    assert all(part in str(error.value) for part in (f"--space {entry}: ", message, "--space epochs=oops..1"))


def test_values_are_read_as_what_they_are() -> None:
    assert parse_space(["clip_norm=none,1.0", "sampling=shuffled,balanced", "steps=10..20"]) == {
        "clip_norm": OneOf((None, 1.0)),
        "sampling": OneOf(("shuffled", "balanced")),
        "steps": Between(10, 20),
    }


@pytest.mark.parametrize(
    ("method", "space", "message"),
    [
        ("tp_ft", {"learning_rat": OneOf((1.0,))}, "Did you mean 'learning_rate'"),
        ("l2_sp", {"pul": OneOf((1.0,))}, "Did you mean 'pull'"),
        ("tp_ft", {"epochs": Between(0.5, 2.0)}, "whole numbers"),
        ("tp_ft", {"epochs": OneOf((0, 1))}, "epochs=0: Settings out of range"),
        ("tp_ft", {"sampling": OneOf(("even",))}, "shuffled, balanced"),
        ("l2_sp", {"pull": Between(-1.0, 1.0)}, "pull=-1.0: "),
        ("lp", {"learning_rate": Between(1e-5, 1e-3)}, "changes nothing"),
        ("tp_ft", {"epochs": OneOf((1, 2)), "steps": OneOf((3, 4))}, "epochs changes nothing"),
        ("tp_ft", {"select_by": OneOf(("accuracy",))}, "cannot be searched"),
        ("lp", {"l2": OneOf((1e-3,))}, "cannot be searched"),
        ("tp_ft", {}, "no setting to search"),
        ("zero_shot", None, "trains nothing"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(
    find: Callable[..., Tuned], tmp_path: Path, method: str, space: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        find(tmp_path / "run", method=method, space=space)
    assert not (tmp_path / "run").exists()


def test_no_budget_and_unknown_methods_are_refused(find: Callable[..., Tuned], tmp_path: Path) -> None:
    for budget in ({"trials": 0}, {"trials": None, "minutes": 0.0}, {"num_seeds": 3}):
        with pytest.raises(SettingError, match="The budget is"):
            find(tmp_path, **budget)
    with pytest.raises(UnknownNameError, match="Did you mean 'flyp'"):
        find(tmp_path, method="flip")


def test_without_optuna_it_says_what_to_install(find: Callable[..., Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingError, match=r"pip install 'surefoot\[tune\]'"):
        find(tmp_path)


def test_another_search_in_the_same_folder_is_another(find: Callable[..., Tuned], tmp_path: Path) -> None:
    find(tmp_path, trials=1)
    other = find(tmp_path, trials=1, plan=replace(PLAN, training=replace(PLAN.training, batch_size=6)))
    assert len(lines(tmp_path)) == 2
    assert len(other.trials) == 1
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="line 3"):
        trials.read(tmp_path, "")


def test_suggestions_learn_and_stay_in_their_ranges(caplog: pytest.LogCaptureFixture) -> None:
    space = {"learning_rate": Between(1e-6, 1.0, log=True), "steps": Between(10, 20, whole=True)}
    late = []
    with caplog.at_level(logging.INFO):
        for seed in range(3):
            tried: list[tuple[dict[str, Any], float]] = [({"learning_rate": 5.0, "steps": None}, 0.1)]  # the plan's own may lie outside
            while len(tried) < 30:
                settings = suggest(space, tried, seed=seed)
                assert settings is not None
                assert all(settings[key] in space[key] for key in space)
                assert isinstance(settings["steps"], int)
                tried.append((settings, 1 - abs(math.log10(settings["learning_rate"]) + 3) / 6))
            late += [value for _, value in tried[20:]]
    assert not caplog.records
    assert sum(late) / len(late) > 0.79, "settings drawn at random reach 0.75"


def test_table_marks_the_choice_and_says_why_a_trial_failed(capsys: pytest.CaptureFixture[str]) -> None:
    tried = (trial_of(0, 1e-3, 0.8, error=0.02), trial_of(1, 0.5, None), trial_of(2, 1e-5, 0.79), trial_of(3, 1e-2, 0.805))
    tuned = Tuned("tp_ft", tried, tried[2], tried[3], Path("tuned.toml"))
    tell(tuned, "my photos")
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert [row for row in rows if "±" in row or "failed" in row] == [
        ["best", "3", "0.01", "1", "80.5", "±", "1.0", "1", "60"],
        ["0", "0.001", "1", "80.0", "±", "2.0", "1", "60"],
        ["chosen", "2", "1e-05", "1", "79.0", "±", "1.0", "1", "60"],
        ["1", "0.5", "1", "failed", "1", "60"],
    ]
    assert "Trial 1 failed: nan" in shown
    assert "surefoot compare 'my photos' --recipe tuned.toml" in shown


def test_command_shows_trials_and_a_recipe_that_runs(
    copy_of: Callable[[], Path], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, app = copy_of(), typer.Typer()
    app.command()(tune_command)
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"no image")  # nobody looks
    out = tmp_path / "run"
    arguments = [str(root), "--method", "flyp", "--trials", "2", "--out", str(out), "--model", f"local-dir:{tiny_folder}"]
    arguments += ["--space", "learning_rate=1e-4..1e-2:log", "--set", "epochs=1", "--set", "batch_size=8"]
    monkeypatch.setattr(sys, "argv", ["surefoot", "tune", *arguments])
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"--recipe {out / 'tuned.toml'}" in result.output
    assert (out / "tuned.toml").read_text().startswith(f"# surefoot tune {root} --method flyp")
    assert len(lines(out)) == 2
    with pytest.raises(SettingError, match="never chooses"):
        CliRunner().invoke(app, [*arguments, "--select-on", "test"], catch_exceptions=False)
