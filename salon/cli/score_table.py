"""One picture before every judge: ask all rewards of several services, and show it as a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table
from rich.text import Text

from salon.client import RewardClient
from salon.errors import InvalidRequest, SalonError, SampleError, UnknownInstance
from salon.reward.v1 import reward_pb2
from salon.settings import Settings
from salon.wire.outcomes import Outcome

# In an error of a service, as reward.proto names it.
_INPUT = re.compile(r"\bINPUT_(PROMPT|METADATA|REFERENCE)\b")


@dataclass(frozen=True)
class Batch:
    """N image files, and what is said of all of them alike."""

    names: Sequence[str]
    images: Sequence[bytes]
    prompt: str = ""
    metadata: Mapping[str, Any] | None = None
    reference: bytes | None = None

    def score(self, client: RewardClient, reward: str) -> list[Outcome | SalonError]:
        """N outcomes, or why an image could not be sent; else raises as `RewardClient.score`."""
        count = len(self.images)
        try:
            return [
                *client.score(
                    list(self.images),
                    [self.prompt] * count,
                    reward,
                    None if self.metadata is None else [self.metadata] * count,
                    references=None if self.reference is None else [self.reference] * count,
                )
            ]
        except InvalidRequest as error:
            if count == 1:
                return [error]
        alone = (
            replace(self, names=[name], images=[image])
            for name, image in zip(self.names, self.images, strict=True)
        )
        return [said for each in alone for said in each.score(client, reward)]


@dataclass(frozen=True)
class Answer:
    """What one reward said: an outcome for each image, or why it has none."""

    reward: str
    version: str
    said: Sequence[Outcome | SalonError] | SalonError
    was_named: bool = False
    """Asked for by its name: then it fails, too, where it lacks an input."""
    stand_in: bool | None = None
    """Whether a small model answered in place of the real one; None: nobody said."""
    unit: str = ""

    @property
    def failed(self) -> bool:
        """Whether something went wrong, beyond an input that was not given."""
        if isinstance(self.said, SalonError):
            return self.was_named or not _is_answer(self.said)
        errors = [error for said in self.said if (error := error_of(said))]
        return any(self.was_named or not _is_answer(error) for error in errors)

    def by_image(self, names: Sequence[str]) -> list[tuple[str, Outcome | SalonError]]:
        """What was said of each of the images of these names."""
        if isinstance(self.said, SalonError):
            return [(name, self.said) for name in names]
        return list(zip(names, self.said, strict=True))


def ask_one(settings: Settings, target: str, reward: str, batch: Batch) -> Answer:
    """The answer of the one reward that was asked for (empty: the service's own)."""
    try:
        with RewardClient(
            target, max_message_bytes=settings.max_message_bytes, security=settings.security
        ) as client:
            said = batch.score(client, reward)
            for each in said:
                if isinstance(each, Outcome):
                    about = (each.stand_in, each.unit)
                    return Answer(each.reward, each.version, said, True, *about)
            found = client.describe(reward)
            about = (found.stand_in, found.unit)
            return Answer(found.name, found.version, said, True, *about)
    except SalonError as error:
        return Answer(reward, "", error, was_named=True)


def ask_all(settings: Settings, targets: Mapping[str, Sequence[str]], batch: Batch) -> list[Answer]:
    """The answers of every reward that the services host, service by service.

    Args:
        settings: message limits and security of the channels.
        targets: host:port -> the rewards expected there, to be named if the service is away.
        batch: what they score.
    """
    answers = []
    for target, expected in targets.items():
        with RewardClient(
            target, max_message_bytes=settings.max_message_bytes, security=settings.security
        ) as client:
            try:
                rewards = client.list_rewards()
            except SalonError as error:
                answers.append(Answer(", ".join(expected) or target, "", error))
                continue
            answers += [_ask(client, reward, batch) for reward in rewards]
    return answers


def _ask(client: RewardClient, reward: reward_pb2.Reward, batch: Batch) -> Answer:
    try:
        said: Sequence[Outcome | SalonError] | SalonError = batch.score(client, reward.name)
    except SalonError as error:
        said = error
    about = (reward.stand_in, reward.unit)
    return Answer(reward.name, reward.version, said, False, *about)


def answers_as_json(answers: Sequence[Answer], batch: Batch) -> list[list[dict[str, Any]]]:
    """For each image a list of what each reward said of it."""
    by_reward = [
        [
            {
                "image": name,
                "reward": answer.reward or None,
                "version": answer.version or None,
                "stand_in": answer.stand_in,
                "unit": answer.unit or None,
                **_result(said),
            }
            for name, said in answer.by_image(batch.names)
        ]
        for answer in answers
    ]
    return [list(entries) for entries in zip(*by_reward, strict=True)]


def _result(said: Outcome | SalonError) -> dict[str, Any]:
    error = error_of(said)
    if isinstance(said, Outcome) and error is None:
        return {"score": said.score, "error": None, "details": dict(said.details)}
    code = error.code_name if isinstance(error, SampleError) else type(error).__name__
    return {"score": None, "error": {"code": code, "message": str(error)}, "details": {}}


def error_of(said: Outcome | SalonError) -> SalonError | None:
    """Why there is no score, if there is none."""
    return said if isinstance(said, SalonError) else said.error


def score_table(answers: Sequence[Answer], batch: Batch) -> Table:
    """One row for each image and reward; the image is named if there are several."""
    several = len(batch.names) > 1
    table = Table(box=None)
    if several:
        table.add_column("image", no_wrap=True)
    table.add_column("reward", no_wrap=True)
    table.add_column("score", no_wrap=True, style="bold")
    table.add_column("details or error", overflow="fold")
    table.add_column("version", no_wrap=True, style="dim")
    scored = [answer for answer in answers if not isinstance(answer.said, SalonError)]
    by_reward = [[(answer, *each) for each in answer.by_image(batch.names)] for answer in scored]
    rows: list[tuple[Answer, str, Outcome | SalonError]] = []
    for of_image in zip(*by_reward, strict=True):
        rows += of_image
    rows += [(a, "all", a.said) for a in answers if isinstance(a.said, SalonError)]
    for answer, name, said in rows:
        cells = (Text(answer.reward), *_cells(said), Text(answer.version))
        table.add_row(*([Text(name)] if several else []), *cells)
    return table


def _cells(said: Outcome | SalonError) -> tuple[Text, Text]:
    """Score and details, or a dash and the error."""
    error = error_of(said)
    if isinstance(said, SalonError) or error is not None:
        return Text("—"), Text(shown_error(error), style="yellow" if _is_answer(error) else "red")
    details = ", ".join(f"{name}: {value}" for name, value in sorted(said.details.items()))
    return Text(f"{said.score:z.6g}"), Text(_one_line(details))


def shown_error(message: object) -> str:
    """In one line, with an input that is missing called as the command's option for it."""
    return _INPUT.sub(lambda match: f"--{match[1].lower()}", _one_line(str(message)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_answer(error: SalonError | None) -> bool:
    """Whether the reward works but was not given what it asks for."""
    if isinstance(error, SampleError):
        return error.code == reward_pb2.ERROR_CODE_MISSING_INPUT
    # A learned reward scores by instance, and an image file belongs to none.
    return isinstance(error, UnknownInstance)
