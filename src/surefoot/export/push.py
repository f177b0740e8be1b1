"""A folder with a model card, uploaded to a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from surefoot.errors import MissingDataError, ModelError, SettingError
from surefoot.export.card import README
from surefoot.folders import OWN


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload all files of an exported folder, and return the address of the commit. The repository is made if it is not there.

    Args:
        folder: what `export` or `surefoot import` wrote.
        repo: OWNER/NAME, or NAME for one's own.
        private: of a repository that is made now.

    Raises:
        MissingDataError: no folder with a model and its card.
        SettingError: a name that no repository can have, or no token.
        ModelError: the hub cannot be reached, or refuses.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not (folder / README).is_file() or not any((folder / name).is_file() for name in OWN):
        raise MissingDataError(f"{folder} holds no model with its card ({README}). Give a folder that 'surefoot export' wrote.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SettingError(f"'{repo}' cannot be the name of a repository ({error}). Write OWNER/NAME, such as anna/birds-clip.") from error
    if huggingface_hub.get_token() is None:
        raise SettingError("There is no token of the Hugging Face Hub. Run 'hf auth login' once, or set HF_TOKEN; it must allow writing.")
    try:
        hub = huggingface_hub.HfApi()
        name = hub.create_repo(repo, private=private, exist_ok=True).repo_id
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model exported by Surefoot"))
    except OfflineModeIsEnabled as error:
        raise ModelError(f"{repo} was not uploaded: HF_HUB_OFFLINE is set. Unset it where there is a connection.") from error
    except HfHubHTTPError as error:
        raise ModelError(f"{repo} was not uploaded: the hub refused ({error}). See whether the token may write there.") from error
    except _connection_errors() as error:
        raise ModelError(f"{repo} was not uploaded: the hub cannot be reached ({error}). Try again with a connection.") from error


def _connection_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises without a connection: the root error of the library that it speaks HTTP by, whichever it is."""
    from huggingface_hub.errors import HfHubHTTPError

    roots = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, *roots)
