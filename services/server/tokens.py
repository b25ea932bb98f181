"""Bearer tokens: who may call, checked before a call is read."""

import hmac
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health

from salon.errors import InvalidRequest, Unauthenticated, to_status
from salon.tokens import HASH_PREFIX, hash_token
from services.server.reloading import Reloaded

if TYPE_CHECKING:  # it needs a package that may not be installed, which is then to be said
    from services.scoring.metrics import Metrics

logger = structlog.get_logger()

_LINE = re.compile(rf"{HASH_PREFIX}([0-9a-f]{{64}})\s+(\S+)")
_HEALTH = f"/{health.SERVICE_NAME}/"


class Tokens:
    """The tokens of a file, which may change while the service runs.

    Each line is `sha256:<64 hex digits> <name>`; empty lines and those that begin with `#` are
    skipped. The file holds no secret, so anyone may read it: nobody finds 256 random bits from
    their hash. But whoever can write it can let themselves in, so it is refused when the group or
    others may, or when it belongs to neither the service's user nor root, as sshd refuses such an
    authorized_keys.

    When the last token is taken out while the service runs, nobody is let in from then on.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InvalidRequest: it cannot be read, others may write it, a line is malformed, a name
                comes twice, or there is no token in it.
        """
        if not _read(path):
            raise InvalidRequest(f"tokens file {path} has no token in it: add one with salon token")
        self._hashes = Reloaded([path], lambda: _read_again(path))

    def name_of(self, token: str) -> str | None:
        """Whose token it is; None if it is nobody's."""
        presented = hash_token(token)
        found = None
        # Every entry is compared, each in constant time: the time taken tells nothing of the file.
        for digest, name in self._hashes.value().items():
            if hmac.compare_digest(digest, presented):
                found = name
        return found


class TokenInterceptor(grpc.ServerInterceptor):
    """Turns away, with UNAUTHENTICATED, calls without a known token; health checks need none.

    The name of an accepted token is `caller` in every log line of its call.
    """

    def __init__(self, tokens: Tokens, metrics: "Metrics") -> None:
        """Let in who has one of `tokens`, and count the others in `metrics`."""
        self._tokens = tokens
        self._metrics = metrics
        # A thread of its own: strangers must not fill the queue of those who may call.
        self._refusals = ThreadPoolExecutor(1, thread_name_prefix="refusal")

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: Any
    ) -> Any:
        """The call's own handler, or one that refuses it without reading its message."""
        method = handler_call_details.method
        if method.startswith(_HEALTH):
            return continuation(handler_call_details)
        try:
            caller = self._identify(handler_call_details.invocation_metadata)
        except Unauthenticated as error:
            return self._refusal(method, error)
        # gRPC runs this and the call itself in one context.
        structlog.contextvars.bind_contextvars(caller=caller)
        return continuation(handler_call_details)

    def _identify(self, metadata: Any) -> str:
        values = [value for key, value in metadata if key == "authorization"]
        if len(values) != 1:
            raise Unauthenticated(
                f"this service needs a bearer token, and the call has {len(values) or 'no'} "
                "authorization in its metadata: send one, as 'Bearer TOKEN'"
            )
        scheme, _, token = values[0].partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(
                "the call's authorization is not of the form 'Bearer TOKEN': send it so"
            )
        caller = self._tokens.name_of(token.strip())
        if caller is None:
            raise Unauthenticated(
                "the service does not know this bearer token: it may have been replaced; "
                "ask whoever runs the service for a new one"
            )
        return caller

    def _refusal(self, method: str, error: Unauthenticated) -> Any:
        def refuse(_messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            code = error.grpc_code.name
            self._metrics.request("", code)
            logger.info("call", method=method, code=code, peer=context.peer(), reason=str(error))
            context.abort_with_status(to_status(error))

        refuse.experimental_thread_pool = self._refusals  # type: ignore[attr-defined]
        # As a stream, of which nothing is read: a stranger's message costs no memory here.
        return grpc.stream_stream_rpc_method_handler(refuse)


def _read(path: Path) -> dict[str, str]:
    """Names by hash."""
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InvalidRequest(f"tokens file {path} cannot be read: {reason}") from None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidRequest(
            f"tokens file {path} may be written by others ({stat.filemode(status.st_mode)}), "
            f"who could let themselves in: chmod go-w {path}"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise InvalidRequest(
            f"tokens file {path} belongs to user {status.st_uid}, who could let themselves in: "
            f"chown it to root or to the service's user, {os.geteuid()}"
        )
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        # The line itself is not shown: it could be a token that was put here by mistake.
        if match is None:
            raise InvalidRequest(
                f"tokens file {path}, line {number} is not 'sha256:<64 lower-case hex digits> "
                "<name>': make one with salon token"
            )
        digest, name = match.groups()
        if name in names.values() or digest in names:
            raise InvalidRequest(
                f"tokens file {path}, line {number}: {name} or its hash is there already; "
                "give each token a name of its own, such as trainer-2026-11"
            )
        names[digest] = name
    return names


def _read_again(path: Path) -> dict[str, str]:
    names = _read(path)
    if not names:
        logger.warning("no token is known any more: every call is refused", file=str(path))
    return names
