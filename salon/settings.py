"""Every setting of every process, read from the environment (`SALON_*`) in this one place."""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from salon.errors import InvalidRequest

MEBIBYTE = 1024 * 1024
TIDY_SECONDS = 1.0  # of a scoring task, for Redis


class Settings(BaseSettings):
    """One set for the whole stack; a container is configured by its environment alone."""

    model_config = SettingsConfigDict(env_prefix="SALON_", frozen=True)

    redis_url: str = Field(
        "redis://127.0.0.1:6390/0", description="Broker, job store and claim-check store."
    )
    runs_dir: Path = Field(Path("runs"), description="Where each job's run folder lies.")
    state_dir: Path = Field(
        Path(".salon"), description="Pid file, logs and Redis data of the local stack."
    )
    reward_target: str = Field(
        "127.0.0.1:50051", description="host:port of the reward service beside this process."
    )
    max_message_bytes: int = Field(
        16 * MEBIBYTE, ge=64 * 1024, description="Largest gRPC message and largest blob."
    )

    score_task_seconds: float = Field(
        60.0, gt=0, description="Longest one scoring task may run before it is killed."
    )
    pending_batches: int = Field(
        256, ge=1, description="Most requests one trainer has in the queue; further ones wait."
    )
    score_attempts: int = Field(
        3, ge=1, description="How often one batch may lose its worker or its service."
    )
    service_wait_seconds: float = Field(
        5.0,
        gt=0,
        description="How long a task waits for its service before it is queued again.",
    )
    resend_seconds: float = Field(
        90.0,
        gt=0,
        description="Silence after which a batch is queued again; above score_task_seconds.",
    )
    visibility_timeout_seconds: int = Field(
        300, ge=1, description="When Redis hands an unacknowledged task to another worker."
    )
    blob_seconds: int = Field(
        7200,
        ge=1,
        description="Expiry of blobs and replies nobody collected, beyond their deadline.",
    )

    lease_seconds: float = Field(
        15.0, gt=0, description="A trainer silent for this long has lost its job."
    )
    job_attempts: int = Field(3, ge=1, description="How often a job may be started in all.")
    debug: bool = Field(
        False, description="Trainers check, in every iteration, what must hold by construction."
    )
    grace_seconds: float = Field(
        30.0, gt=0, description="How long a process may take to stop after SIGTERM."
    )

    @property
    def score_call_seconds(self) -> float:
        """The deadline of one call to a service: what the task's own limit leaves for it."""
        return self.score_task_seconds - self.service_wait_seconds - TIDY_SECONDS

    @model_validator(mode="after")
    def _waits_are_ordered(self) -> Self:
        if self.score_call_seconds <= 0:
            raise ValueError(
                f"SALON_SCORE_TASK_SECONDS ({self.score_task_seconds}) must exceed "
                f"SALON_SERVICE_WAIT_SECONDS ({self.service_wait_seconds}) by more than "
                f"{TIDY_SECONDS:.0f} s: no time would be left to score"
            )
        if self.visibility_timeout_seconds <= self.score_task_seconds:
            raise ValueError(
                f"SALON_VISIBILITY_TIMEOUT_SECONDS ({self.visibility_timeout_seconds}) must exceed "
                f"SALON_SCORE_TASK_SECONDS ({self.score_task_seconds}): Redis would hand a running "
                "task to a second worker"
            )
        if self.resend_seconds <= self.score_task_seconds:
            raise ValueError(
                f"SALON_RESEND_SECONDS ({self.resend_seconds}) must exceed "
                f"SALON_SCORE_TASK_SECONDS ({self.score_task_seconds})"
            )
        return self


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        InvalidRequest: a `SALON_*` variable has a value that cannot be used; one line says which.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "SALON_" + "_".join(str(part) for part in first["loc"]).upper()
        where = name if first["loc"] else "settings"
        raise InvalidRequest(f"{where}: {first['msg']} (got {first['input']!r})") from None
