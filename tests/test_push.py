"""Uploading: the name, the token and the folder are checked, what the hub says becomes a sentence; the hub itself is a stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from conftest import typed
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from surefoot.errors import MissingDataError, ModelError, SettingError
from surefoot.export import push


class Hub:
    """What HfApi is asked; `error` is what it raises in place of an upload."""

    error: Exception | None = None
    asked: list[tuple[str, dict[str, object]]]

    def __init__(self) -> None:
        Hub.asked = []

    def create_repo(self, repo: str, **given: object) -> SimpleNamespace:
        Hub.asked.append((repo, given))
        return SimpleNamespace(repo_id=repo if "/" in repo else f"me/{repo}")

    def upload_folder(self, *, repo_id: str, **given: object) -> str:
        if Hub.error:
            raise Hub.error
        Hub.asked.append((repo_id, given))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    Hub.error, Hub.asked = None, []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "surefoot.json").write_text("{}")
    return tmp_path


def test_all_of_the_folder_goes_into_the_repository(folder: Path) -> None:
    assert push(folder, "birds", private=True) == "https://hub/me/birds/commit/1"
    (asked, created), (repo, uploaded) = Hub.asked
    assert asked == "birds" and created == {"private": True, "exist_ok": True}
    assert repo == "me/birds" and uploaded["folder_path"] == folder


@pytest.mark.parametrize("name", ["a/b/c", "with space", "", "-x", "a..b", "anna/x.git"])
def test_names_that_no_repository_has_are_refused_before_anything_is_asked(folder: Path, name: str) -> None:
    with pytest.raises(SettingError, match="OWNER/NAME"):
        push(folder, name)
    assert not Hub.asked


def test_without_a_token_nothing_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SettingError, match=r"hf auth login.*HF_TOKEN"):
        push(folder, "anna/birds")
    assert not Hub.asked


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set"),
        (ConnectionError("no route"), "cannot be reached .no route"),
        (HfHubHTTPError.__bases__[0]("name resolution"), "cannot be reached .name resolution"),
    ],
    ids=["offline mode", "no connection", "the client's own"],
)
def test_what_the_hub_says_becomes_a_sentence(folder: Path, error: Exception, message: str) -> None:
    Hub.error = error
    with pytest.raises(ModelError, match=f"anna/birds was not uploaded: .*{message}"):
        push(folder, "anna/birds")


def test_a_refusal_of_the_hub_becomes_a_sentence(folder: Path) -> None:
    class RefusedError(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "403 Forbidden")

        def __str__(self) -> str:
            return "403 Forbidden"

    Hub.error = RefusedError()
    with pytest.raises(ModelError, match=r"the hub refused \(403 Forbidden\).*token"):
        push(folder, "anna/birds")


def test_a_folder_without_a_card_or_a_model_is_refused(folder: Path) -> None:
    (folder / "surefoot.json").rename(folder / "other.json")
    with pytest.raises(MissingDataError, match="surefoot export"):
        push(folder, "anna/birds")
    (folder / "other.json").rename(folder / "surefoot.json")
    (folder / "README.md").unlink()
    with pytest.raises(MissingDataError, match="surefoot export"):
        push(folder, "anna/birds")


def test_the_command_pushes(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(monkeypatch, capsys, "push", folder, "anna/birds") == (0, "Uploaded: https://hub/anna/birds/commit/1")
