"""`salon score`: image files before one reward, or before every reward that is served."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from salon import stack
from salon.client import RewardClient
from salon.errors import InvalidRequest
from salon.local_services import ALL
from salon.score_table import Batch, ask_all, score_table
from salon.settings import Settings, load_settings

console = Console(highlight=False)

EXIT_ERROR = 1
PIPE_WIDTH = 240  # characters; a pipe has no width of its own to fold lines at


def score(
    images: Annotated[
        list[Path], typer.Argument(help="PNG, JPEG or WebP files, sent as they are.")
    ],
    reward: Annotated[
        str, typer.Option(help="The reward's name, or all; default: the service's own.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="The prompt all images belong to.")] = "",
    reference: Annotated[
        Path | None, typer.Option(help="An image file to compare all images with.")
    ] = None,
    metadata: Annotated[
        str, typer.Option(help="A JSON object, for rewards that ask for metadata.")
    ] = "",
    target: Annotated[
        str, typer.Option(help="host:port; default: where the reward is known to be served.")
    ] = "",
) -> None:
    """Score image files and print one line for each, or a table of all rewards.

    In the table a reward that lacks an input, such as --prompt, says so: that is an answer, and
    the exit code stays 0. Any other error makes it 1.
    """
    settings = load_settings()
    batch = Batch(
        [str(path) for path in images],
        [_read(path) for path in images],
        prompt,
        _parse(metadata) if metadata else None,
        _read(reference) if reference else None,
    )
    known = targets(settings)
    if reward == ALL:
        everywhere = {target: []} if target else _by_target(known)
        _print_all(settings, everywhere, batch)
        return
    target = target or known.get(reward, settings.reward_target)
    with RewardClient(
        target, max_message_bytes=settings.max_message_bytes, security=settings.security
    ) as client:
        outcomes = batch.score(client, reward)
    for path, outcome in zip(images, outcomes, strict=True):
        shown = (
            Text(f"{outcome.error.code_name}: {outcome.error}", style="red")
            if outcome.error
            else Text(f"{outcome.score:.6g}", style="bold")
        )
        console.print(Text(f"{path}  {outcome.reward}  ").append(shown), soft_wrap=True)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(EXIT_ERROR)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read {str(path)!r}: {error.strerror}") from None


def _parse(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"--metadata is not JSON ({error}): {text[:80]!r}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"--metadata must be a JSON object, got {text[:80]!r}")
    return parsed


def targets(settings: Settings) -> dict[str, str]:
    """host:port by reward: those of the running stack, or those that the settings name."""
    state = stack.running(settings)
    if state is not None:
        return dict(state.get("rewards", {}))
    return {"": settings.reward_target, **settings.reward_targets}


def _by_target(targets: dict[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for reward, target in targets.items():
        grouped.setdefault(target, []).append(reward)
    return grouped


def _print_all(settings: Settings, targets: dict[str, list[str]], batch: Batch) -> None:
    with console.status("scoring"):
        answers = ask_all(settings, targets, batch)
    wide = console if console.is_terminal else Console(width=PIPE_WIDTH)
    wide.print(score_table(answers, batch))
    if any(answer.failed for answer in answers):
        raise typer.Exit(EXIT_ERROR)
