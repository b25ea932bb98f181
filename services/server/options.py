"""How a server listens, how much it does at once, how it stops."""

from dataclasses import dataclass, field
from pathlib import Path

from salon.errors import InvalidRequest
from salon.serving import Reward
from services.scoring.limits import LARGE_WAITING, BatchLimits, Limits
from services.server.tls import TlsFiles


@dataclass(frozen=True)
class ServerOptions:
    """What the flags of `python -m services` say, besides the reward's own."""

    host: str = "127.0.0.1"
    port: int = 50051
    """0 picks a free port; the log says which."""
    health_port: int | None = None
    """Also serves health, always in plaintext: a probe cannot show a certificate."""
    metrics_port: int | None = None
    reflection: bool = False
    log_calls: bool = False
    """Also those in which nothing went wrong."""

    tls: TlsFiles | None = None
    tokens: Path | None = None
    insecure: bool = False
    """Anyone on the network may call."""

    limits: Limits = field(default_factory=Limits)
    max_concurrent_calls: int = 64
    """Calls held at once, each by a thread while its samples wait; further ones are refused."""
    max_large_waiting: int = LARGE_WAITING
    """Calls that wait for room for a large image; further ones are refused."""
    max_pending: int = 4096
    """Samples held at once for each reward; calls beyond are refused."""
    max_batch: float | None = None
    """In units of `Reward.cost`; None: the reward's own."""
    max_delay_seconds: float | None = None
    """None: the reward's own."""

    cache_scores: int = 0
    """Scores remembered; 0: none."""
    shared_dir: Path | None = None
    """The directory of the files that callers share with this server."""
    grace_seconds: float = 30.0
    """How long calls in flight may take to finish after SIGTERM."""

    def batches(self, reward: Reward) -> BatchLimits:
        """How the batches of `reward` are formed."""
        delay = self.max_delay_seconds
        return BatchLimits(
            max_batch=reward.max_batch if self.max_batch is None else self.max_batch,
            max_delay_seconds=reward.max_delay_seconds if delay is None else delay,
            max_pending=self.max_pending,
        )


def tls_files(
    certificate: Path | None, key: Path | None, client_ca: Path | None
) -> TlsFiles | None:
    """The files of TLS, if any are given.

    Raises:
        InvalidRequest: only some of them are.
    """
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise InvalidRequest("TLS needs both --tls-cert and --tls-key")
    return TlsFiles(certificate, key, client_ca)
