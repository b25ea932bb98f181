"""`salon score`: image files before one reward, or before every reward that is served."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from salon.cli.jobs import AsJson
from salon.cli.score_table import (
    Answer,
    Batch,
    answers_as_json,
    ask_all,
    ask_one,
    score_table,
    shown_error,
)
from salon.cli.terminal import EXIT_ERROR, console, notices, print_error, print_json, print_table
from salon.errors import InvalidRequest, SalonError, UnknownReward
from salon.settings import Settings, load_settings
from salon.stack import lifecycle
from salon.stack.local_services import ALL, misspelt

STDIN = "-"
FILES_AT_ONCE = 64
"""Read, scored and printed before the next are: any number of files needs the memory of these."""


def score(
    images: Annotated[
        list[Path],
        typer.Argument(help="PNG, JPEG or WebP files, sent as they are; - reads one from stdin."),
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
    as_json: AsJson = False,
) -> None:
    """Score image files and print one line for each, or a table of all rewards.

    A file that cannot be read is an error on stderr, and the others are scored. In the table a
    reward that lacks an input, such as --prompt, says so: that is an answer, and the exit code
    stays 0. Whatever else has no score makes it 1. What keeps the one reward that is asked from
    scoring at all, such as a service that is away, ends the command.
    """
    settings = load_settings()
    limit = settings.max_message_bytes
    about = Batch(
        [],
        [],
        prompt,
        _parse(metadata) if metadata else None,
        _read(reference, limit) if reference else None,
    )
    targets = {} if target else known_targets(settings)
    if reward not in ("", ALL, *targets) and not target and lifecycle.running(settings):
        raise _unknown(reward, targets)
    documents: list[dict[str, Any]] = []
    failed = False
    told: set[str] = set()
    for first in range(0, len(images), FILES_AT_ONCE):
        paths = images[first : first + FILES_AT_ONCE]
        batch, unread = _read_all(paths, about, limit)
        answers: list[Answer] = []
        if batch.names and reward == ALL:
            asked: dict[str, list[str]] = {target: []} if target else _by_target(targets)
            with notices.status("scoring"):
                answers = ask_all(settings, asked, batch)
        elif batch.names:
            place = target or targets.get(reward, settings.reward_target)
            answers = [ask_one(settings, place, reward, batch)]
        # What keeps the only reward from scoring at all keeps it from scoring the files to come.
        broken = answers[0].said if answers and reward != ALL else None
        failed |= bool(unread) or any(answer.failed for answer in answers)
        if not as_json:  # there each entry says it
            _tell_stand_ins(answers, told)
        if as_json:
            scored = iter(answers_as_json(answers, batch))
            for index in range(len(paths)):
                documents += [unread[index]] if index in unread else next(scored, [])
        elif reward == ALL and answers:
            print_table(score_table(answers, batch), spare_last=True)
        elif answers and not isinstance(broken, SalonError):
            _print_lines(answers[0], batch)
        if isinstance(broken, SalonError):
            print_error(broken)
            rest = replace(about, names=[str(path) for path in images[first + len(paths) :]])
            documents += [entry for [entry] in answers_as_json(answers, rest)]
            break
    if as_json:
        print_json(documents)
    if failed:
        raise typer.Exit(EXIT_ERROR)


def _unknown(reward: str, targets: Collection[str]) -> UnknownReward:
    near = misspelt(reward, targets)
    return UnknownReward(
        f"no reward {reward!r} is served here{f': did you mean {near}?' if near else ''}; served: "
        f"{', '.join(sorted(targets))}. --target asks another service, and so does a reward's "
        "address in SALON_REWARD_TARGETS"
    )


def known_targets(settings: Settings) -> dict[str, str]:
    """host:port by reward: those of the running stack, and those that the settings name."""
    state = lifecycle.running(settings)
    if state is not None:
        return {**state["rewards"], **settings.reward_targets}
    named = "reward_target" in settings.model_fields_set or not settings.reward_targets
    return ({"": settings.reward_target} if named else {}) | settings.reward_targets


def _read_all(
    paths: Sequence[Path], about: Batch, limit: int
) -> tuple[Batch, dict[int, dict[str, Any]]]:
    """The files that can be read, and by its place each that cannot, which is also said."""
    read: dict[int, bytes] = {}
    unread = {}
    for index, path in enumerate(paths):
        try:
            read[index] = _read(path, limit)
        except InvalidRequest as error:
            print_error(error)
            unread[index] = {
                "image": str(path),
                "reward": None,
                "version": None,
                "stand_in": None,
                "unit": None,
                "score": None,
                "error": {"code": "UNREADABLE_FILE", "message": str(error)},
                "details": {},
            }
    names = [str(paths[index]) for index in read]
    return replace(about, names=names, images=list(read.values())), unread


def _read(path: Path, limit: int) -> bytes:
    """All of a file, or of stdin.

    Raises:
        InvalidRequest: it cannot be read, or is larger than any message may be.
    """
    try:
        if str(path) == STDIN:
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except IsADirectoryError:
        raise InvalidRequest(
            f"cannot read {str(path)!r}: it is a folder; give its files, as in {path}/*.png"
        ) from None
    except OSError as error:
        raise InvalidRequest(f"cannot read {str(path)!r}: {error.strerror}") from None
    if len(data) > limit:
        raise InvalidRequest(
            f"cannot send {str(path)!r}: it has more than {limit} bytes; raise "
            "SALON_MAX_MESSAGE_BYTES here and --max-message-bytes of the service"
        )
    return data


def _parse(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--metadata is not JSON ({error}): {text[:80]!r}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"--metadata must be a JSON object, got {text[:80]!r}")
    return parsed


def _tell_stand_ins(answers: Sequence[Answer], told: set[str]) -> None:
    """Say of each reward once that a small model answers for the real one."""
    for answer in answers:
        if answer.stand_in and answer.reward not in told:
            told.add(answer.reward)
            notices.print(
                f"{answer.reward} is served by a stand-in ({answer.version}): its scores are for "
                "trying out",
                style="yellow",
                soft_wrap=True,
            )


def _by_target(targets: dict[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for reward, target in targets.items():
        grouped.setdefault(target, []).append(reward)
    return grouped


def _print_lines(answer: Answer, batch: Batch) -> None:
    for [entry] in answers_as_json([answer], batch):
        error = entry["error"]
        shown = (
            Text(f"{error['code']}: {shown_error(error['message'])}", style="red")
            if error
            else Text(f"{entry['score']:z.6g}", style="bold")
        )
        line = Text(f"{entry['image']}  {entry['reward']}  ").append(shown)
        console.print(line, soft_wrap=True)
