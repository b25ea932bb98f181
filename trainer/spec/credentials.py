"""Whether this process has what a job's trackers and its upload ask for.

Trainers ask before they load a model, and `salon run` before it starts a stack.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from salon.errors import InvalidRequest

_WANDB_OFFLINE = ("offline", "disabled", "dryrun")


def check_credentials(trackers: Sequence[str], push_to_hub: str | None) -> None:
    """See that whatever the job names can log in, as far as that is known here.

    Args:
        trackers: of the spec.
        push_to_hub: of the spec.

    Raises:
        InvalidRequest: a tracker's package is not installed, or there is no key for it; or there is
            no token for `push_to_hub`.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise InvalidRequest(
                f"trackers: {name} is not installed where the trainer runs: pip install {name}, or "
                "take it out of the spec"
            )
    if "wandb" in trackers and not _wandb_can_log_in():
        raise InvalidRequest(
            "trackers: wandb has no key: set WANDB_API_KEY where the trainer runs, or "
            "WANDB_MODE=offline to keep the run in its folder, or call `wandb login` there"
        )
    if push_to_hub is not None and not _has_hub_token():
        raise InvalidRequest(
            f"push_to_hub: {push_to_hub}: there is no token of the hub: set HF_TOKEN where "
            "the trainer runs, or call `hf auth login` there"
        )


def _wandb_can_log_in() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in _WANDB_OFFLINE:
        return True
    import wandb  # noqa: PLC0415 - of the few jobs that ask for it

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    try:
        # It reads its settings files and a netrc file, and needs no network.
        return settings.mode in _WANDB_OFFLINE or wandb.login(prompt=False, verify=False)
    finally:
        wandb.teardown()  # of the process that it started


def _has_hub_token() -> bool:
    if find_spec("huggingface_hub") is None:
        return True  # known where the trainer runs
    from huggingface_hub import get_token  # noqa: PLC0415 - as above

    return get_token() is not None
