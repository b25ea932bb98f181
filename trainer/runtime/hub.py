"""What comes from the Hugging Face hub, and what is given to it."""

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from salon.errors import one_line

_OWN = (LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError)


def reason_of(error: BaseException) -> str:
    """Why a model could not be fetched or loaded, in one line.

    Args:
        error: that loading it raised; libraries wrap the hub's own in others, and say of a hub that
            was not asked that the file does not exist.
    """
    own: BaseException | None = error
    while own is not None and not isinstance(own, _OWN):
        own = own.__cause__ or own.__context__
    if isinstance(own, LocalEntryNotFoundError | OfflineModeIsEnabled):
        offline = constants.HF_HUB_OFFLINE
        return (
            f"it is no folder here and not in the hub's cache ({constants.HF_HUB_CACHE}), and "
            f"{'HF_HUB_OFFLINE is set' if offline else constants.ENDPOINT + ' cannot be reached'}"
        )
    if isinstance(own, GatedRepoError):
        return (
            f"{constants.ENDPOINT} gives it to those alone who accepted its terms: accept them on "
            "its page, and set HF_TOKEN where the trainer runs"
        )
    if isinstance(own, RepositoryNotFoundError):
        return (
            f"it is no folder here, and {constants.ENDPOINT} has no such model, or only for others:"
            " look at its name, or set HF_TOKEN where the trainer runs"
        )
    return one_line(error)


def push(folder: Path, repository: str) -> str:
    """Upload the folder of a model, its card included, to `user/name`, made if it is not there.

    The token is huggingface_hub's: HF_TOKEN, or what `hf auth login` left.

    Returns:
        The address of the commit.

    Raises:
        Exception: whatever the client raises; the folder stays as it is.
    """
    hub = HfApi()
    hub.create_repo(repository, repo_type="model", exist_ok=True)
    commit = hub.upload_folder(
        folder_path=folder, repo_id=repository, commit_message="Upload from a Salon job"
    )
    return str(commit.commit_url)


def by_hand(folder: Path, repository: str) -> str:
    """The command that does the same."""
    return f"hf upload {repository} {shlex.quote(str(folder))}"
