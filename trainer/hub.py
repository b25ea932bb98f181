"""Giving a trained model to the Hugging Face hub."""

import shlex
from pathlib import Path

from huggingface_hub import HfApi


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
