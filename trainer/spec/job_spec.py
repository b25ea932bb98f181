"""What every training job says, and which class of jobs a record is of. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from salon.errors import InvalidRequest
from salon.settings import Settings
from trainer.algorithms import AlgorithmUnusable, job_class, names
from trainer.spec.credentials import check_credentials
from trainer.spec.sections import Section
from trainer.spec.submission import check_device, trains_here


class AlgorithmConfig(Section):
    """What the section of every algorithm has; each adds its hyperparameters."""

    name: str = Field(description="Which algorithm this is; the keys beside it are its own.")

    @property
    def batches(self) -> int:
        """Parts of an iteration that processes can share out; 1 where it is done as a whole."""
        return 1


class JobSpec(Section):
    """What every job has, with defaults; a class of jobs adds what its algorithm needs."""

    builder: ClassVar[str]
    """`module:function` that makes the algorithm of such a job from (spec, `Context`). A text: what
    it imports is no business of who only checks a spec."""
    health: ClassVar[Mapping[str, str]] = {}
    """What to look at where training goes badly: names of its metrics, and what each says."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Keys whose values may be files or folders of the submitter, dotted; * is any list entry."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$",
        description="Lower case, digits, dots, dashes; job id and run folder begin with it.",
    )
    algorithm: AlgorithmConfig = Field(description="Which algorithm, and its hyperparameters.")
    iterations: int = Field(ge=1, description="Rounds of sampling, scoring and updating.")
    seed: int = Field(0, ge=0, description="Of all randomness in training, and of nothing else.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the generator is trained; auto takes a GPU if there is one."
    )
    num_processes: int = Field(
        1,
        ge=1,
        description="Processes that share each iteration, each with a GPU of its own, on the host "
        "of the training worker. The result does not depend on it, but for rounding.",
    )
    checkpoint_every: int = Field(10, ge=1, description="Iterations between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="The newest so many are kept.")
    trackers: list[Literal["wandb", "trackio"]] = Field(
        [], description="Where curves and pictures go, besides TensorBoard."
    )

    @model_validator(mode="after")
    def _every_process_has_a_batch(self) -> Self:
        if self.num_processes > self.algorithm.batches:
            raise ValueError(
                f"num_processes is {self.num_processes}, but {self._too_few_batches()}"
            )
        return self

    def _too_few_batches(self) -> str:
        """How much of an iteration there is to share out, and the way out."""
        parts, name = self.algorithm.batches, self.algorithm.name
        if parts == 1:
            return f"an iteration of {name} cannot be shared out: leave it out"
        return f"an iteration of {name} has {parts} parts to share out: lower it to {parts}"

    def missing(self, folders: Sequence[Path]) -> Iterator[str]:
        """One line for each thing that the spec names and that lies in none of `folders`."""
        yield from ()

    def check_inputs(self, settings: Settings, *, here: bool = False) -> None:
        """Refuse what can be seen to fail where the job is submitted.

        Args:
            settings: of the stack that it goes to.
            here: its trainer runs with the environment of this process, and so with its keys.

        Raises:
            InvalidRequest: one line: the key, what is wrong with its value, and the way out.
        """
        check_device(self.device, here or trains_here(settings))
        if here:
            self.check_credentials()

    def check_credentials(self) -> None:
        """See that whatever the job names can log in, as far as that is known in this process.

        Raises:
            InvalidRequest: a package or a key is missing.
        """
        check_credentials(self.trackers, None)


def class_of(record: Any) -> type[JobSpec]:
    """The class of jobs that a mapping describes, by its `algorithm.name`.

    Raises:
        InvalidRequest: one line: it names none, or one that is not there.
    """
    section = record.get("algorithm") if isinstance(record, Mapping) else None
    if section is not None and not isinstance(section, Mapping):
        raise InvalidRequest(
            f"algorithm: Input should be a valid dictionary (got {section!r:.100}); "
            "e.g. algorithm: {name: ddpo}"
        )
    name = section.get("name") if section else None
    if not isinstance(name, str):
        wrong = "Field required" if name is None else f"not a name: {name!r:.100}"
        raise InvalidRequest(f"algorithm.name: {wrong}; known: {', '.join(names())}")
    try:
        found = job_class(name)
    except InvalidRequest as error:
        raise InvalidRequest(f"algorithm.name: {error}") from None
    if not issubclass(found, JobSpec):
        raise AlgorithmUnusable(f"algorithm {name}: {found.__name__} is no subclass of JobSpec")
    if ":" not in str(getattr(found, "builder", "")):
        raise AlgorithmUnusable(
            f"algorithm {name}: {found.__name__} says by no `builder = 'module:function'` what "
            "makes it"
        )
    return found


def read_record(record: Any) -> JobSpec:
    """The job of a stored record, which is data: it makes nobody import or read what it names.

    Raises:
        InvalidRequest: it names no algorithm that is there.
        pydantic.ValidationError: it is no job of that algorithm.
    """
    return class_of(record).model_validate(record)
