"""Whether a job sends its rewards what they need, as far as that is known where it is submitted."""

from collections.abc import Iterator, Mapping, Sequence

from salon.errors import InvalidRequest
from salon.settings import Settings
from salon.stack.local_services import needs_of
from trainer.spec.prompts.rows import Row
from trainer.spec.sections import RewardSpec

HELD_OUT = "evaluation.prompts"


def check_needs(
    rewards: Sequence[RewardSpec],
    eval_rewards: Sequence[str],
    rows: Mapping[str, Sequence[Row]],
    settings: Settings,
) -> None:
    """Refuse a reward that needs what the job does not send, and a row that no service takes.

    A job sends images and rows, and a reference where an entry of `rewards` names one. What Salon's
    own rewards need, and how much they take, is known here; a reward that has an address of its own
    says it itself, in its first answer to the trainer.

    Args:
        rewards: of training and evaluation.
        eval_rewards: of evaluation alone, by name.
        rows: those of training and those of `HELD_OUT`, by their keys in the spec.
        settings: of the stack that the job goes to.

    Raises:
        InvalidRequest: one line: the reward, what it needs, which row lacks it, and the way out.
    """
    references = {reward.name: reward.reference for reward in rewards}
    names = [*references, *eval_rewards]
    for name in names:
        needs = needs_of(settings, name)
        given = references.get(name)
        # What is not trained on never scores a sample of training.
        judged = rows if name in references else {HELD_OUT: rows[HELD_OUT]}
        if needs == "nothing" and given is not None:
            raise InvalidRequest(f"{name} compares with no image: take out its reference")
        if needs == "reference" and given is None and (lacking := _first_without(needs, judged)):
            raise InvalidRequest(
                f"{name} needs an image to compare with: list it under rewards with "
                "`reference: path/to/image.png`, and with `weight: 0` to measure it alone; or give "
                f"every row a reference, which {lacking} lacks"
            )
        if needs == "metadata" and (lacking := _first_without(needs, judged)):
            raise InvalidRequest(
                f"{name} needs metadata with every sample, which {lacking} lacks: take it out of "
                f"the spec, or give every row what docs/rewards/{name}.md asks for"
            )
        if needs == "instance":
            raise InvalidRequest(
                f"{name} needs an instance that was fitted to examples, which a job does not send: "
                f"take it out of the spec; docs/rewards/{name}.md tells how to score with it from "
                "Python"
            )
    if not settings.reward_targets.keys() >= set(names):
        for key, index, row in _each(rows):
            if fault := next(row.oversize(), None):
                raise InvalidRequest(f"{_named(key, index, row)}: {fault}: shorten it")


def _first_without(carried: str, rows: Mapping[str, Sequence[Row]]) -> str | None:
    """The name of the first row that does not carry it; None if all do."""
    lacking = (_named(*each) for each in _each(rows) if not getattr(each[2], carried))
    return next(lacking, None)


def _each(rows: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, int, Row]]:
    for key, listed in rows.items():
        yield from ((key, index, row) for index, row in enumerate(listed))


def _named(key: str, index: int, row: Row) -> str:
    return f"{key}.{index} ({row.prompt!r:.60})"
