"""What comes from the Hugging Face hub, and what is given to it."""

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled


def unreachable(error: BaseException) -> str:
    """Where a model is missing because the hub was not asked, the words for it; else empty.

    Args:
        error: that loading it raised.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, LocalEntryNotFoundError | OfflineModeIsEnabled):
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return ""
    offline = constants.HF_HUB_OFFLINE
    return (
        f"it is no folder here and not in the hub's cache ({constants.HF_HUB_CACHE}), and "
        f"{'HF_HUB_OFFLINE is set' if offline else constants.ENDPOINT + ' cannot be reached'}"
    )


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
