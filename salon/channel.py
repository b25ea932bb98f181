"""A gRPC channel to a reward service: message limits, retries, keepalive."""

import json

import grpc

METHOD_SCORE = "/salon.reward.v1.RewardService/Score"
"""The path of Score, for callers that hold an already serialized ScoreRequest."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Default largest message, both ways: a batch of 16 RGB images of 512 x 512 is 12.6 MB."""

# gRPC allows at most 5 attempts. Waiting about 0.5, 1, 2 and 4 s between them outlasts a restart.
# Only UNAVAILABLE is repeated: any other status would come back the same, or means "not again".
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "salon.reward.v1.RewardService"}],
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


def connect(target: str, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.Channel:
    """A channel to the reward service at `target` (`host:port` or any gRPC target).

    Connects on the first call. Calls that end in UNAVAILABLE are repeated within their deadline,
    for about 8 s; Score and GetReward are idempotent. Works for stubs and for
    `channel.unary_unary(METHOD_SCORE)` with serialized messages alike.

    Args:
        target: where the service listens, such as `127.0.0.1:50051`.
        max_message_bytes: largest serialized message to send or receive.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.enable_retries", 1),
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
        ("grpc.keepalive_permit_without_calls", 0),
    ]
    return grpc.insecure_channel(target, options=options)
