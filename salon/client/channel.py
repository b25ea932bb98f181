"""A gRPC channel to a reward service: message limits, retries, keepalive, TLS, token."""

import json
from collections.abc import Callable
from typing import Any

import grpc

from salon.errors import InvalidRequest
from salon.security import Security, read_pair, read_roots
from salon.targets import is_local, is_this_host
from salon.wire.limits import MAX_MESSAGE_BYTES

METHOD_SCORE = "/salon.reward.v1.RewardService/Score"
"""The path of Score, for callers that hold an already serialized ScoreRequest."""

# gRPC allows at most 5 attempts. Waiting about 0.5, 1, 2 and 4 s between them outlasts a restart.
# Only UNAVAILABLE is repeated: any other status would come back the same, or means "not again".
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "salon.reward.v1.RewardService"},
                {"service": "salon.reward.v1.LearnedRewardService"},
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.5s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # After 50 failed attempts with no success between them, fail at once until calls succeed again:
    # many clients repeating themselves would hold a struggling service down.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 1},
}


def connect(
    target: str,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    security: Security = Security(),
    *,
    retries: bool = True,
) -> grpc.Channel:
    """A channel to the reward service at `target` (`host:port` or any gRPC target).

    Connects on the first call. Calls that end in UNAVAILABLE are repeated within their deadline,
    for about 8 s; Score and GetReward are idempotent. Works for stubs and for
    `channel.unary_unary(METHOD_SCORE)` with serialized messages alike.

    Args:
        target: where the service listens, such as `127.0.0.1:50051`.
        max_message_bytes: largest serialized message to send or receive.
        security: TLS and token; by default neither.
        retries: whether calls are repeated; no, for a caller that counts its attempts.

    Raises:
        InvalidRequest: a TLS file cannot be used, a certificate comes without its key, or the token
            would travel in plaintext to another host.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.enable_retries", int(retries)),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        # A call is repeated only while its bytes are still buffered; the default of 256 KiB would
        # silently turn retries off for every batch worth repeating.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes + 1024 * 1024),
        # By default gRPC waits up to two minutes before it tries a lost service again.
        ("grpc.initial_reconnect_backoff_ms", 250),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # A host that vanished without a word is noticed in about a minute, not at the deadline. The
        # services allow pings this often; gRPC's default server would drop the connection.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # grpcio 1.85 looks at this one alone
        ("grpc.keepalive_permit_without_calls", 0),
        # By itself gRPC asks the proxy of http_proxy even for 127.0.0.1.
        ("grpc.enable_http_proxy", int(not is_this_host(target))),
    ]
    credentials = _credentials(security)
    if credentials is not None:
        return grpc.secure_channel(target, credentials, options=options)
    channel = grpc.insecure_channel(target, options=options)
    if not security.token:
        return channel
    if not (security.plaintext_token or is_local(target)):
        raise InvalidRequest(
            f"the token would travel to {target} in plaintext: give the CA of the service's "
            "certificate (SALON_TLS_CA), or set SALON_PLAINTEXT_TOKEN=true where something else "
            "encrypts the way, such as a service mesh"
        )
    # gRPC itself refuses call credentials on a plaintext channel, even to this host.
    return grpc.intercept_channel(channel, _BearerToken(security.token))


def _credentials(security: Security) -> grpc.ChannelCredentials | None:
    """TLS credentials with the token in them; None for a plaintext channel."""
    if (security.certificate is None) != (security.key is None):
        given, missing = "certificate", "key"
        if security.certificate is None:
            given, missing = missing, given
        raise InvalidRequest(f"a TLS {given} without its {missing}: give both or neither")
    if security.ca is None and security.certificate is None:
        return None
    chain = secret = None
    if security.certificate is not None and security.key is not None:
        chain, secret = read_pair(security.certificate, security.key)
    roots = read_roots(security.ca) if security.ca is not None else None
    credentials = grpc.ssl_channel_credentials(roots, secret, chain)
    if not security.token:
        return credentials
    return grpc.composite_channel_credentials(
        credentials, grpc.access_token_call_credentials(security.token)
    )


class _BearerToken(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    """Sends the token with every call, as call credentials do on a TLS channel."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return continuation(self._with_token(client_call_details), request_iterator)

    def _with_token(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), self._header])
