"""Every setting of every process, read from the environment (`SALON_*`) in this one place."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from salon.errors import InvalidRequest
from salon.redis_password import with_stored_password
from salon.security import Security

MEBIBYTE = 1024 * 1024
TIDY_SECONDS = 1.0  # of a scoring task, for Redis


class Settings(BaseSettings):
    """One set for the whole stack; a container is configured by its environment alone."""

    # An empty variable is as good as none: compose files pass on what is not set as "".
    model_config = SettingsConfigDict(
        env_prefix="SALON_", frozen=True, env_ignore_empty=True, allow_inf_nan=False
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6390/0",
        repr=False,  # it may hold a password; see salon.redis_url.shown
        description="Broker, job store and claim-check store.",
    )
    runs_dir: Path = Field(Path("runs"), description="Where each job's run folder lies.")
    state_dir: Path = Field(
        Path(".salon"), description="Pid file, logs and Redis data of the local stack."
    )
    reward_target: str = Field(
        "127.0.0.1:50051", description="host:port of the reward service beside this process."
    )
    reward_targets: dict[str, str] = Field(
        {}, description="host:port by reward, in JSON, for rewards that SALON_REWARD_TARGET lacks."
    )
    shared_dir: Path | None = Field(
        None, description="Directory shared with the services, for images by reference."
    )
    max_message_bytes: int = Field(
        16 * MEBIBYTE, ge=64 * 1024, description="Largest gRPC message and largest blob."
    )

    reward_token: SecretStr = Field(
        SecretStr(""), description="Bearer token for the reward services."
    )
    tls_ca: Path | None = Field(
        None, description="PEM file of the CA of the reward services' certificates: turns TLS on."
    )
    tls_certificate: Path | None = Field(
        None, description="PEM certificate of this process, for mutual TLS; with SALON_TLS_KEY."
    )
    tls_key: Path | None = Field(None, description="PEM key of SALON_TLS_CERTIFICATE.")
    plaintext_token: bool = Field(
        False, description="Send the token in plaintext to other hosts, as behind a service mesh."
    )

    score_task_seconds: float = Field(
        60.0, gt=0, description="Longest one scoring task may run before it is killed."
    )
    pending_batches: int = Field(
        256, ge=1, description="Most requests one trainer has in the queue; further ones wait."
    )
    pending_bytes: int = Field(
        1024 * MEBIBYTE,
        ge=1,
        description="Most bytes of these requests; a larger one waits until it is alone.",
    )
    score_attempts: int = Field(
        3, ge=1, description="How often one batch may lose its worker or its service."
    )
    service_wait_seconds: float = Field(
        0.5,
        gt=0,
        description="How long a task waits for a connection before it is queued again.",
    )
    resend_seconds: float = Field(
        90.0,
        gt=0,
        description="Silence after which a batch is queued again; above SALON_SCORE_TASK_SECONDS.",
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
    rank_wait_seconds: float = Field(
        3600.0,
        gt=0,
        description="How long the processes of one job wait for each other, as they do while the "
        "first of them evaluates, before they give up.",
    )
    job_attempts: int = Field(3, ge=1, description="How often a job may be started in all.")
    answer_seconds: float = Field(
        0.0,
        ge=0,
        description="How long a trainer whose job asks a person keeps its slot for the answer: "
        "starting another takes seconds.",
    )
    debug: bool = Field(
        False, description="Trainers check, in every iteration, what must hold by construction."
    )
    grace_seconds: float = Field(
        30.0,
        gt=0,
        description="How long a process may take to stop after SIGTERM. A trainer needs that for a "
        "batch of sampling or a UNet pass of an update, and to write a checkpoint.",
    )

    def target(self, reward: str) -> str:
        """host:port of the service that hosts `reward`."""
        return self.reward_targets.get(reward, self.reward_target)

    @property
    def security(self) -> Security:
        """TLS and token of every channel to a reward service."""
        return Security(
            token=self.reward_token.get_secret_value(),
            ca=self.tls_ca,
            certificate=self.tls_certificate,
            key=self.tls_key,
            plaintext_token=self.plaintext_token,
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
    """Read the environment; and, for the stack's own Redis, the file with its password.

    Raises:
        InvalidRequest: a `SALON_*` variable has a value that cannot be used; one line says which.
    """
    settings = _from_environment()
    try:
        url = with_stored_password(settings.state_dir, settings.redis_url)
    except PermissionError:  # another user's: who needs that Redis is told that it wants one
        return settings
    if url == settings.redis_url:
        return settings
    loaded = settings.model_copy(update={"redis_url": url})
    if "redis_url" not in settings.model_fields_set:  # it still is not what the user named
        loaded.model_fields_set.discard("redis_url")
    return loaded


def _from_environment() -> Settings:
    try:
        return Settings()
    except SettingsError as error:
        raise InvalidRequest(
            f"SALON_REWARD_TARGETS is not JSON ({error.__cause__}): "
            """write it as {"aesthetic": "127.0.0.1:50052"}"""
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # its input is every setting, the token among them
            raise InvalidRequest(f"settings: {first['msg']}") from None
        name = f"SALON_{first['loc'][0]}".upper()
        raise InvalidRequest(f"{name}: {first['msg']} (got {first['input']!r})") from None
