"""Reference models begin at random, see train and val alone, are trained once; rho follows from their records as by hand."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from surefoot import cli, config, records
from surefoot.compare import Comparison, Plan, Watcher, references
from surefoot.compare.references import robustness
from surefoot.data import Dataset
from surefoot.data.subsets import fraction
from surefoot.errors import ModelError, SettingError
from surefoot.methods import METHODS
from surefoot.methods.reference import FROM_SCRATCH, reference
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.report import write_page
from surefoot.report.runs import collect
from surefoot.robustness import Baseline
from surefoot.train import Fitted, Step, Training, fit, preflight

TRAINING = Training(epochs=2, batch_size=8, learning_rate=1e-2)
PLAN = Plan(methods=("tp_ft",), seeds=(3, 4), alphas=(0.5,), training=TRAINING, references=(0.25, 1.0))
LEARNING = replace(PLAN, overrides={"reference": {"epochs": 15, "learning_rate": 3e-3}})  # long enough to differ


def visual(model: ImageTextModel) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.weights().items() if name.startswith("visual.")}


# --- where a reference begins ---------------------------------------------------------------------------------------------------------


def test_fresh_tower_is_drawn_from_the_seed_and_holds_no_pretrained_weight(tiny_model: ImageTextModel) -> None:
    before, state = tiny_model.weights(), torch.get_rng_state()
    first, again, other = (tiny_model.fresh_visual(seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.weights().items()), "the model stays as it is"
    assert {name: tensor.shape for name, tensor in first.items()} == {name: tensor.shape for name, tensor in visual(tiny_model).items()}
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, tensor in first.items() if tensor.unique().numel() > 1]  # gains of 1 and biases of 0 are everybody's
    assert len(drawn) > 10
    for name in drawn:
        assert not torch.isclose(first[name], before[name]).all()
        assert not torch.isclose(first[name], other[name]).all()


def test_first_loss_is_that_of_random_weights_and_no_pretrained_tensor_survives(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    with torch.no_grad():
        for parameter in tiny_model.clip.parameters():
            parameter.add_(0.01)  # so that no pre-trained gain is 1 and no bias 0
    pretrained, text = visual(tiny_model), {n: t for n, t in tiny_model.weights().items() if not n.startswith("visual.")}
    fitted = fit(reference(), tiny_model, tiny_data, replace(TRAINING, learning_rate=1e-6, keep="last", seed=5))
    ended = visual(tiny_model)
    assert [name for name in ended if torch.equal(ended[name], pretrained[name])] == []
    fresh = tiny_model.fresh_visual(5)
    assert max(float((ended[name] - fresh[name]).abs().max()) for name in fresh) < 1e-4, "where it began, but for a few tiny steps"
    assert all(torch.equal(fitted.state[f"model.{name}"], tensor) for name, tensor in text.items()), "the text tower is frozen"


def test_models_that_cannot_be_built_anew_are_refused_before_anything_is_trained(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    tiny_model._model_cfg = {}
    with pytest.raises(ModelError, match="cannot be built anew"):
        tiny_model.fresh_visual(0)
    with pytest.raises(SettingError, match=r"reference cannot run: .*Leave the references out"):
        preflight(reference(), tiny_model, tiny_data, TRAINING)


def test_reference_is_no_method_to_fine_tune_with() -> None:
    assert "reference" not in METHODS
    assert "reference" not in config.resolve({"methods": ["all"]}, {}).plan.methods


# --- resuming -------------------------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for kill -9."""


def stop_at(number: int) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        if step.number >= number:
            raise StoppedError

    return on_step


def with_batch_norm(model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch norm before the image tower's last product, in the model and in what `fresh_visual` gives."""

    class Normed(nn.BatchNorm1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.flatten(0, 1)).view_as(input)

    model.clip.visual.ln_post = Normed(32)  # type: ignore[union-attr]
    plain = model.fresh_visual

    def fresh(seed: int) -> dict[str, torch.Tensor]:
        kept = {name: tensor for name, tensor in plain(seed).items() if ".ln_post." not in name}
        return kept | {f"visual.ln_post.{name}": tensor for name, tensor in nn.BatchNorm1d(32).state_dict().items()}

    monkeypatch.setattr(model, "fresh_visual", fresh)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_resumed_reference_ends_as_the_uninterrupted_one(
    batch_norm: bool, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if batch_norm:
        with_batch_norm(tiny_model, monkeypatch)
    start, path = tiny_model.weights(), tmp_path / "run.resume"

    def run(**how: object) -> Fitted:
        tiny_model.load_weights(start)
        return fit(reference(), tiny_model, tiny_data, TRAINING, **how)  # type: ignore[arg-type]

    expected = run()
    with pytest.raises(StoppedError):
        run(resume=path, checkpoint_seconds=0, on_step=stop_at(5))
    resumed = run(resume=path)
    assert [name for name in expected.state if not torch.equal(expected.state[name], resumed.state[name])] == []
    assert resumed.history == expected.history
    if batch_norm:
        running = expected.state["model.visual.ln_post.running_mean"]
        assert not torch.equal(running, torch.zeros(32)), "statistics that begin at random are learnt"


# --- the data -------------------------------------------------------------------------------------------------------------------------


def test_fraction_is_stratified_nested_and_a_part_of_train_alone(tiny_data: Dataset) -> None:
    small, half, whole = (fraction(tiny_data, share, seed=1) for share in (0.01, 0.5, 1.0))
    assert Counter(small.split("train").labels) == {0: 1, 1: 1, 2: 1}, "at least one image of each class"
    assert Counter(half.split("train").labels) == {0: 4, 1: 4, 2: 4}
    assert set(small.split("train").paths) < set(half.split("train").paths) < set(tiny_data.split("train").paths)
    assert whole.split("train") == tiny_data.split("train")
    assert fraction(tiny_data, 0.5, seed=2).split("train").paths != half.split("train").paths
    assert {name: s for name, s in half.splits.items() if name != "train"} == {n: s for n, s in tiny_data.splits.items() if n != "train"}
    for share in (0.0, 1.5):
        with pytest.raises(SettingError, match="above 0"):
            fraction(tiny_data, share, seed=0)


def test_reference_is_trained_on_its_share_and_validation_alone(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, object], Dataset]] = []

    def without_others(method: Method, model: ImageTextModel, data: Dataset, training: Training, **how: object) -> Fitted:
        seen.append((method.name, dataclasses.asdict(training), data))
        allowed = replace(data, splits={name: data.splits[name] for name in ("train", "val")})
        fitted = fit(method, model, allowed, training, checkpoint_seconds=0, **how)  # type: ignore[arg-type]
        assert list(tmp_path.rglob("reference-*.resume"))
        return fitted

    monkeypatch.setattr(references, "fit", without_others)
    plan = replace(PLAN, shots=1, overrides={"reference": {"epochs": 1, "batch_size": 4}})
    Comparison(tiny_model, tiny_data, plan, tmp_path).run()
    assert [(name, len(data.split("train")), len(data.split("val"))) for name, _, data in seen] == [
        ("reference", 6, 12), ("reference", 24, 12)
    ], "shares of all training images, few shots or not"  # fmt: skip
    wanted = {"epochs": 1, "batch_size": 4, "seed": 3, **FROM_SCRATCH}
    assert all(wanted.items() <= training.items() for _, training, _ in seen)
    found = [r for r in records.read(tmp_path) if isinstance(r, records.Reference)]
    assert [(r.share, r.seed, r.num_train, r.settings["epochs"]) for r in found] == [(0.25, 3, 6, 1), (1.0, 3, 24, 1)]
    assert not [path.name for path in tmp_path.rglob("weights/*") if "reference" in path.name], "checkpoints are taken away"


# --- records --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(loaded_model: ImageTextModel, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison with references, without and then with them."""
    from surefoot.data import open_dataset

    folder, data = tmp_path_factory.mktemp("finished"), open_dataset(tiny_root)
    Comparison(loaded_model, data, replace(LEARNING, references=()), folder).run()
    (folder / "before.jsonl").write_text((folder / records.FILE).read_text())
    Comparison(loaded_model, data, LEARNING, folder).run()
    return folder


def of_kind(folder: Path, kind: type) -> list[records.Record]:
    return [record for record in records.read(folder) if isinstance(record, kind)]


def test_plan_without_references_writes_what_it_always_wrote(finished: Path) -> None:
    before = (finished / "before.jsonl").read_text()
    assert not {"reference", "robustness"} & {json.loads(line)["kind"] for line in before.splitlines()}
    after = (finished / records.FILE).read_text()
    assert after.startswith(before), "evaluations and trainings of before are not done again"
    added = Counter(json.loads(line)["kind"] for line in after.removeprefix(before).splitlines())
    assert added["evaluation"] == added["trained"] == 0
    assert added["reference"] == 2


def test_record_holds_what_a_head_answers(finished: Path) -> None:
    found = of_kind(finished, records.Reference)
    zero = next(r for r in of_kind(finished, records.Evaluation) if r.method == "zero_shot")  # type: ignore[union-attr]
    for record in found:
        assert isinstance(record, records.Reference)
        assert record.accuracy.keys() == {"val", "test", "shifts/red", "shifts/green", "avg_shifts"}
        assert record.provenance == zero.provenance  # type: ignore[union-attr]
        answers = records.load_answers(finished, record.answers)
        assert {name: given.correct.mean() for name, given in answers.items()}.items() <= record.accuracy.items()


def test_restart_trains_no_reference_again(
    finished: Path, loaded_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (finished / records.FILE).read_text()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(references, "fit", forbidden)
    comparison = Comparison(loaded_model, tiny_data, LEARNING, finished)
    assert comparison.references.missing(comparison.judge.splits) == []
    comparison.run()
    assert (finished / records.FILE).read_text() == lines
    Comparison(loaded_model, tiny_data, replace(LEARNING, references=()), finished).run()
    assert (finished / records.FILE).read_text() == lines, "without references in the plan those in the folder stand"
    more = replace(LEARNING, references=(0.25, 0.5, 1.0))
    assert Comparison(loaded_model, tiny_data, more, finished).references.missing(()) == [0.5]
    longer = replace(LEARNING, overrides={"reference": {"epochs": 9}})
    assert Comparison(loaded_model, tiny_data, longer, finished).references.missing(()) == [0.25, 1.0]


def test_interrupted_reference_goes_on_and_the_watcher_hears_of_it(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[float, int, int, int]] = []

    class Stopping(Watcher):
        def reference(self, share: float, number: int, total: int, *, trained: int, judged: int) -> None:
            heard.append((share, number, total, trained))
            if number == 2:
                raise StoppedError

    plan = replace(PLAN, methods=("zero_shot",), alphas=())
    with pytest.raises(StoppedError):
        Comparison(tiny_model, tiny_data, plan, tmp_path, Stopping()).run()
    first = of_kind(tmp_path, records.Reference)
    Comparison(tiny_model, tiny_data, plan, tmp_path).run()
    assert of_kind(tmp_path, records.Reference)[:1] == first
    assert heard == [(0.25, 1, 2, 12), (1.0, 2, 2, 48)]


# --- conclusions ----------------------------------------------------------------------------------------------------------------------


def judged(method: str, seed: int, alpha: float, test: float, red: float, green: float) -> records.Evaluation:
    accuracy = {"val": test, "test": test, "shifts/red": red, "shifts/green": green, "avg_shifts": (red + green) / 2}
    return records.Evaluation(
        method=method, seed=seed, alpha=alpha, dataset="shapes", accuracy=accuracy, num_images=dict.fromkeys(accuracy, 100), answers="",
        settings={"method": method}, settings_hash=method, provenance={"data": "d", "weights": "w"},
    )  # fmt: skip


def point(share: float, test: float, red: float, green: float) -> records.Reference:
    given = judged("reference", 0, 1.0, test, red, green)
    return records.Reference(
        share=share, seed=0, num_train=round(100 * share), dataset="shapes", accuracy=given.accuracy, num_images=given.num_images,
        answers="", settings={}, settings_hash="", provenance=given.provenance,
    )  # fmt: skip


FOUND = [
    judged("zero_shot", 0, 0.0, 0.60, 0.50, 0.55),
    *(judged("tp_ft", seed, alpha, 0.70 + 0.1 * alpha + 0.02 * seed, 0.6 - 0.1 * alpha, 0.5) for seed in (0, 1) for alpha in (0.5, 1.0)),
]
CHOSEN = [records.Choice(method="tp_ft", seed=seed, alpha=alpha, argmax=alpha) for seed, alpha in ((0, 0.5), (1, 1.0))]
POINTS = [point(0.1, 0.2, 0.1, 0.12), point(0.5, 0.4, 0.2, 0.28), point(1.0, 0.65, 0.35, 0.4)]


def test_rho_of_each_row_is_accuracy_above_the_line_fit_by_hand() -> None:
    found = {(one.row, one.on): one for one in robustness(FOUND, CHOSEN, POINTS)}
    rows = ["zero_shot", "tp_ft", "tp_ft + WiSE-FT 0.5", "tp_ft + WiSE-FT (ID val.)"]
    assert list(found) == [(row, on) for on in ("avg_shifts", "shifts/green", "shifts/red") for row in rows]
    line = Baseline.fit([0.2, 0.4, 0.65], [0.1, 0.2, 0.35])
    red = found["tp_ft", "shifts/red"]
    assert red.baseline == dataclasses.asdict(line)
    rhos = [0.5 - line.at(0.80), 0.5 - line.at(0.82)]
    assert red.rho == pytest.approx(sum(rhos) / 2)
    assert red.spread == pytest.approx(statistics.stdev(rhos))
    assert (red.num_seeds, red.num_references, red.extrapolates) == (2, 3, True)
    assert red.rho == pytest.approx(red.ood_accuracy - red.expected)
    zero = found["zero_shot", "avg_shifts"]
    line = Baseline.fit([0.2, 0.4, 0.65], [0.11, 0.24, 0.375])
    assert (zero.rho, zero.spread, zero.extrapolates) == (pytest.approx(0.525 - line.at(0.60)), None, False)
    mixed = found["tp_ft + WiSE-FT (ID val.)", "shifts/red"]  # seed 0 at alpha 0.5, seed 1 at alpha 1
    assert (mixed.id_accuracy, mixed.ood_accuracy) == (pytest.approx((0.75 + 0.82) / 2), pytest.approx((0.55 + 0.5) / 2))


def test_recorded_lines_are_fit_to_the_recorded_references(finished: Path) -> None:
    points = [r for r in of_kind(finished, records.Reference) if isinstance(r, records.Reference)]
    drawn = [r for r in of_kind(finished, records.Robustness) if isinstance(r, records.Robustness)]
    assert len({r.accuracy["test"] for r in points}) == len(points) == 2
    assert {r.row for r in drawn} == {"zero_shot", "tp_ft", "tp_ft + WiSE-FT 0.5", "tp_ft + WiSE-FT (ID val.)"}
    found = collect(records.read(finished))
    assert list(found.robustness.values()) == drawn
    assert len(found.choices) == 2, "one conclusion: neither drops the other"
    for one in drawn:
        assert one.baseline == dataclasses.asdict(Baseline.fit(*([r.accuracy[on] for r in points] for on in ("test", one.on))))


def test_no_two_different_references_no_rho_and_a_sentence(tmp_path: Path) -> None:
    same = [replace(POINTS[0], share=share) for share in (0.1, 0.5)]
    assert robustness(FOUND, CHOSEN, same) == robustness(FOUND, CHOSEN, POINTS[:1]) == robustness(FOUND, CHOSEN, []) == []
    text = page(tmp_path, [*FOUND, *same])
    assert "There are 2 reference models of one ID accuracy (20.0%), and a line needs two that differ" in text
    assert "--references 0.1,0.25,0.5,1" in text
    assert 'class="baseline"' not in text
    assert "There is one reference model (20.0%)" not in text
    assert "follows when all runs are finished" in page(tmp_path, POINTS)


def test_corruptions_stand_in_where_there_are_no_shifts() -> None:
    def corrupted(one: records.Evaluation) -> records.Evaluation:
        names = {"shifts/red": "corruptions/fog", "shifts/green": "corruptions/blur", "avg_shifts": "avg_corruptions"}
        return replace(one, accuracy={names.get(name, name): value for name, value in one.accuracy.items()})

    found = robustness([corrupted(FOUND[0])], [], [corrupted(one) for one in POINTS])  # type: ignore[type-var]
    assert [one.on for one in found] == ["avg_corruptions", "corruptions/blur", "corruptions/fog"]


# --- the page -------------------------------------------------------------------------------------------------------------------------


def page(folder: Path, lines: list[records.Record]) -> str:
    for line in lines:
        records.append(folder, line)
    return write_page(folder, folder / "page", command="surefoot compare").read_text(encoding="utf-8")


def test_page_shows_rho_the_references_and_their_line(tmp_path: Path) -> None:
    plain = page(tmp_path / "plain", list(FOUND))
    drawn = robustness(FOUND, CHOSEN, POINTS)
    text = page(tmp_path / "with", [*FOUND, *POINTS, *CHOSEN, *drawn])
    for word in ("Effective robustness", 'class="baseline"', 'class="cross', ".cross", "reference, 10%"):
        assert word in text
        assert word not in plain
    assert "effective robustness would need reference models" in plain
    assert "effective robustness would need reference models" not in text
    section = text.partition('<h2 id="robustness">')[2].partition("</section>")[0]
    table = section.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr")[1:]
    zero, tuned = table[0], table[1]
    rho = {(one.row, one.on): one for one in drawn}
    assert f'<span class="mean">{100 * rho["zero_shot", "avg_shifts"].rho:+.1f}</span></td>' in zero, "no mark, no spread"
    assert f'<span class="mean">−{-100 * rho["tp_ft", "avg_shifts"].rho:.1f}</span>*<small> ± ' in tuned
    assert "ID accuracies (20.0% to 65.0%): the line was extrapolated" in section
    assert "52.5% where" in zero
    assert section.count('class="cross"') == 2 * 3, "a wide and a narrow picture"
    assert 'class="chord' not in section
    assert text.count('class="baseline"') == 2, "in no other picture"
    assert "The 3 references themselves lie" in section
    assert "Two references only" in page(tmp_path / "two", [*FOUND, *POINTS[:2], *robustness(FOUND, [], POINTS[:2])])


def test_references_of_other_data_or_of_a_later_training_do_not_mix() -> None:
    other = replace(POINTS[0], share=0.9, provenance={"data": "other", "weights": "w"})
    later = replace(POINTS[0], accuracy=POINTS[1].accuracy, settings_hash="longer")
    found = collect([*POINTS, *FOUND, other, later])
    assert found.references == [later, *POINTS[1:]]
    assert collect([*FOUND, *robustness(FOUND, [], POINTS), CHOSEN[0], replace(CHOSEN[0], runs="newer")]).robustness == {}


# --- settings -------------------------------------------------------------------------------------------------------------------------


def test_settings_of_the_references() -> None:
    given = config.parse_assignments(["learning_rate=1e-4", "reference.epochs=20"])
    plan = config.resolve({"references": [0.5, 1]}, given).plan
    assert plan.references == (0.5, 1)
    training = plan.training_of("reference", 0)
    assert (training.epochs, training.learning_rate) == (20, FROM_SCRATCH["learning_rate"]), "a rate for fine-tuning would not do"
    assert plan.training_of("tp_ft", 0).learning_rate == 1e-4
    own = config.resolve({}, {"reference.learning_rate": 0.01}).plan
    assert own.training_of("reference", 0).learning_rate == 0.01
    assert own.references == Plan().references == ()


@pytest.mark.parametrize(
    ("shares", "assignments", "message"),
    [
        ([0.5], {}, "needs two or more"),
        ([0.5, 0.5], {}, "each share may stand there once"),
        ([0, 2], {}, "trained on 2 of the training images"),
        ("all", {}, "a list of shares"),
        ([0.5, 1], {"reference.epoch": 3}, "Did you mean 'epochs'"),
        ([0.5, 1], {"reference.epochs": 0}, "1 or more"),
    ],
)
def test_wrong_settings_are_refused(shares: object, assignments: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        config.resolve({"references": shares}, assignments)


def test_python_refuses_wrong_shares_with_nothing_written(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="needs two or more"):
        Comparison(tiny_model, tiny_data, replace(PLAN, references=(0.5,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_trains_references(tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["compare", str(tiny_root), "--out", str(out), "--model", f"local-dir:{tiny_folder}", "--seeds", "0", "--methods", "tp_ft"]
    arguments += ["--precision", "fp32", "--references", "0.5,1", "--set", "epochs=1", "--set", "batch_size=8"]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert [r.share for r in of_kind(out, records.Reference) if isinstance(r, records.Reference)] == [0.5, 1.0]
    assert 'id="robustness"' in (out / "report" / "index.html").read_text(encoding="utf-8")
    assert json.loads((out / "job.json").read_text())["plan"]["references"] == [0.5, 1.0]
