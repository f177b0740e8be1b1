"""A folder with a model card, uploaded to a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from surefoot.errors import MissingDataError, ModelError, SettingError
from surefoot.export.card import README
from surefoot.folders import OWN

GIT = (".git", ".gitattributes")  # of a folder that was cloned; the hub's client leaves the first one out


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload all files of an exported folder, and return the address of the commit. The repository is made if it is not there.

    Args:
        folder: what `export` wrote; files that were added are uploaded too.
        repo: OWNER/NAME, or NAME for one's own.
        private: of a repository that is made now.

    Raises:
        MissingDataError: no folder with a model and its card.
        SettingError: a name that no repository can have, no token, or files that should not be passed on.
        ModelError: the hub cannot be reached, or refuses.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not (folder / README).is_file() or not any((folder / name).is_file() for name in OWN):
        raise MissingDataError(f"{folder} holds no model with its card ({README}). Give a folder that 'surefoot export' wrote.")
    _check_files(folder)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SettingError(f"'{repo}' cannot be the name of a repository ({error}). Write OWNER/NAME, such as anna/birds-clip.") from error
    if (token := huggingface_hub.get_token()) is None:
        raise SettingError("There is no token of the Hugging Face Hub. Run 'hf auth login' once, or set HF_TOKEN; it must allow writing.")
    if not (token.isascii() and token.isprintable()):
        raise SettingError("The token of the Hugging Face Hub holds signs that no token has. Copy it anew: 'hf auth login', or HF_TOKEN.")
    try:
        hub = huggingface_hub.HfApi()
        name = hub.create_repo(repo, private=private, exist_ok=True).repo_id
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model exported by Surefoot"))
    except OfflineModeIsEnabled as error:
        raise ModelError(f"{repo} was not uploaded: HF_HUB_OFFLINE is set. Unset it where there is a connection.") from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"{repo} was not uploaded: the hub refused ({_said(error, token)}). See whether the token may write there."
        ) from error
    except _connection_errors() as error:
        raise ModelError(
            f"{repo} was not uploaded: the hub cannot be reached ({_said(error, token)}). Try again with a connection."
        ) from error
    except ValueError as error:  # of the head of the card, which the hub reads
        raise ModelError(f"{repo} was not uploaded: {_said(error, token)}. Correct {folder / README}, or export the model anew.") from error


def _check_files(folder: Path) -> None:
    """Whether nothing lies there that somebody put there for himself.

    Raises:
        SettingError: a link, whose target would be uploaded, or a hidden file.
    """
    below = [path for path in sorted(folder.rglob("*")) if ".git" not in path.relative_to(folder).parts]
    odd = [path for path in below if path.is_symlink() or (path.name.startswith(".") and path.name not in GIT)]
    if odd:
        names = ", ".join(str(path.relative_to(folder)) for path in odd[:5])
        raise SettingError(
            f"{folder} holds what no export writes: {names}. All files of the folder would be uploaded, what links point to too. Take "
            "these away, or export the model into another folder."
        )


def _said(error: Exception, token: str) -> str:
    """What an error says, without the token, or a password of an address."""
    return re.sub(r"//[^/@\s]+@", "//", str(error).replace(token, "(the token)"))


def _connection_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises without a connection: the root error of the library that it speaks HTTP by, whichever it is."""
    from huggingface_hub.errors import HfHubHTTPError

    roots = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, *roots)
