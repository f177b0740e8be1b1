"""Every recipe resolves against every factory, and says what to type and what to expect."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
import typer.main
from conftest import typed

from surefoot import cli, config, cookbook
from surefoot.data import catalog
from surefoot.errors import MissingDataError
from surefoot.protocols.parts import PROTOCOLS

PAPERS = [name for name in cookbook.names() if "/" in name]
# (learning rate, batch size, epochs or steps), by hand from the papers, their releases or METHODS' readings
PINNED = {
    "arf/domainnet": (1e-5, 512, 10),
    "arf/imagenet": (1e-5, 512, 10),
    "arf/zeroshot_transfer": (1e-5, 512, 10),
    "car_ft/domainbed": (5e-6, 96, 5000),
    "car_ft/imagenet": (3e-5, 512, 10),
    "car_ft/transfer": (3e-5, 512, 10),
    "clip_cite/base_to_new": (5e-6, 32, 20),
    "clip_cite/cross": (5e-6, 32, 20),
    "clip_cite/domain_generalisation": (5e-6, 64, 20),
    "clip_cite/fewshot": (5e-6, 32, 20),
    "flyp/fewshot_imagenet": (1e-5, 512, 20),
    "flyp/fewshot_pcam": (1e-6, 256, 20),
    "flyp/fewshot_sst2": (1e-5, 256, 20),
    "flyp/fmow": (1e-5, 256, 20),
    "flyp/imagenet": (1e-5, 512, 10),
    "flyp/iwildcam": (1e-5, 256, 20),
    "flyp/transfer": (1e-5, 256, 100),
    "wise_ft/imagenet": (3e-5, 512, 10),
}


@pytest.mark.parametrize("name", cookbook.names())
def test_recipe_resolves_and_its_methods_build(name: str) -> None:
    settings = config.resolve(config.read_recipe(name), {})
    for method in settings.plan.methods:
        assert settings.plan.method_of(method).name == method
        settings.plan.training_of(method, 0)


@pytest.mark.parametrize("name", PAPERS)
def test_the_commands_at_its_head_parse_and_name_the_recipe(name: str) -> None:
    head = cookbook.head(name)
    assert head.reproduces and head.commands
    group = typer.main.get_command(cli.app)
    for line in head.commands:
        _, command, *arguments = shlex.split(line)
        found = group.commands[command]  # type: ignore[attr-defined]
        with click.Context(found) as context:
            found.parse_args(context, list(arguments))
        assert context.params.get("recipe", name) == name, line
        shown = context.params["data"]
        assert set(shown if isinstance(shown, (list, tuple)) else [shown]) <= set(head.data)


DECAY = {"flyp/fewshot_pcam": 0.0, "flyp/transfer": 0.0} | dict.fromkeys(
    ["flyp/fewshot_imagenet", "flyp/fewshot_sst2", "flyp/fmow", "flyp/iwildcam"], 0.2
)
"""Where it is not 0.1, CLIP-CITE apart."""


@pytest.mark.parametrize("name", PAPERS)
def test_rate_batch_and_length_are_the_papers(name: str) -> None:
    training = config.resolve(config.read_recipe(name), {}).plan.training
    assert (training.learning_rate, training.batch_size, training.steps or training.epochs) == PINNED[name]
    assert training.weight_decay == (0.01 if name.startswith("clip_cite/") else DECAY.get(name, 0.1))


@pytest.mark.parametrize(
    ("paper", "method", "settings"),
    [("clip_cite", "clip_cite", {"contrastive_weight": 0.7, "distillation_weight": 0.1}), ("car_ft", "car_ft", {"context_weight": 1.0})],
)
def test_weights_of_the_losses_are_the_papers(paper: str, method: str, settings: dict[str, float]) -> None:
    for name in (name for name in PAPERS if name.startswith(f"{paper}/")):
        built = config.resolve(config.read_recipe(name), {}).plan.method_of(method).settings
        assert {key: built[key] for key in settings} == settings, name


def test_every_paper_has_recipes() -> None:
    assert {name.split("/")[0] for name in PAPERS} == {"wise_ft", "flyp", "car_ft", "arf", "clip_cite"}


def test_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(MissingDataError, match="Did you mean 'flyp/imagenet'"):
        config.read_recipe("flyp/imagnet")


def test_recipes_are_listed_and_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = typed(monkeypatch, capsys, "recipes")
    assert code == 0 and "FLYP" in said
    code, said = typed(monkeypatch, capsys, "recipes", "flyp/imagenet")
    assert code == 0 and "surefoot shift imagenet --root data --recipe flyp/imagenet" in said


def test_the_page_of_recipes_is_what_their_heads_say() -> None:
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    assert cookbook.markdown() in page, "write it anew: python -c 'from surefoot.cookbook import markdown; print(markdown())'"


def test_recipes_ship_beside_the_code() -> None:
    assert (Path(config.__file__).parent / "recipes" / "flyp" / "imagenet.toml").is_file()


def test_data_of_recipes_are_in_the_catalogue_or_not_yet() -> None:
    named = {data for name in PAPERS for data in cookbook.head(name).data}
    assert {"imagenet", "domainnet_real", "pacs"} <= named & set(catalog.names())
    assert set(PROTOCOLS)
