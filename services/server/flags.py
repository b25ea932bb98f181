"""The flags of `python -m services`, grouped as --help shows them."""

import math
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

_PORTS = "Ports"
_SECURITY = "Security"
_LIMITS = "Limits"
_BATCHING = "Batching"
_REWARD = "The reward"
_LONGEST_SECONDS = 365 * 24 * 3600


def _number(value: float | None) -> float | None:
    """Refuse NaN, which is within any bounds."""
    if value is not None and math.isnan(value):
        raise BadParameter("nan is no number that anything could be held to")
    return value


Module = Annotated[
    str,
    Argument(
        help="A module of services.rewards, or the dotted path of your own, followed by :MyReward "
        "for one class of it; or the name of a reward, for that one alone."
    ),
]

Model = Annotated[
    str,
    Option(
        help="Folder, file or hub id of the model; default: the reward's own.",
        rich_help_panel=_REWARD,
    ),
]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_REWARD)]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_REWARD)]
Settings = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="key=value: an option of the reward; docs/rewards lists them.",
        rich_help_panel=_REWARD,
    ),
]

Host = Annotated[str, Option(help="Address to listen at.", rich_help_panel=_PORTS)]
Port = Annotated[
    int,
    Option(min=0, max=65535, help="Port for calls; 0 picks a free one.", rich_help_panel=_PORTS),
]
HealthPort = Annotated[
    int | None,
    Option(
        min=0,
        max=65535,
        help="Port that also serves health, in plaintext: for probes where calls need TLS.",
        rich_help_panel=_PORTS,
    ),
]
MetricsPort = Annotated[
    int | None,
    Option(min=0, max=65535, help="Port for Prometheus.", rich_help_panel=_PORTS),
]
Reflection = Annotated[
    bool,
    Option(
        "--reflection",
        help="Let tools such as grpcurl list the service.",
        rich_help_panel=_PORTS,
    ),
]
LogCalls = Annotated[
    bool,
    Option(
        "--log-calls",
        help="Log every call, not only those in which something went wrong.",
        rich_help_panel=_PORTS,
    ),
]
Grace = Annotated[
    float,
    Option(
        min=0,
        max=_LONGEST_SECONDS,
        callback=_number,
        help="Seconds that calls in flight may take after SIGTERM.",
        rich_help_panel=_PORTS,
    ),
]

TlsCert = Annotated[
    Path | None,
    Option(help="PEM file of the server's certificate chain.", rich_help_panel=_SECURITY),
]
TlsKey = Annotated[
    Path | None, Option(help="PEM file of its private key.", rich_help_panel=_SECURITY)
]
TlsClientCa = Annotated[
    Path | None,
    Option(
        help="PEM file; callers must show a certificate signed by one in it (mutual TLS).",
        rich_help_panel=_SECURITY,
    ),
]
TokensFile = Annotated[
    Path | None,
    Option(
        help="File of hashed bearer tokens, one of which callers must send.",
        rich_help_panel=_SECURITY,
    ),
]
Insecure = Annotated[
    bool,
    Option(
        "--insecure",
        help="Listen beyond this host although anyone there may call.",
        rich_help_panel=_SECURITY,
    ),
]

MaxConcurrentCalls = Annotated[
    int,
    Option(
        min=1,
        help="Calls held at once, each by a thread; further ones are refused.",
        rich_help_panel=_LIMITS,
    ),
]
MaxMessageBytes = Annotated[
    int, Option(min=1024, help="Largest message, both ways.", rich_help_panel=_LIMITS)
]
MaxSamples = Annotated[
    int, Option(min=1, help="Most samples in one call.", rich_help_panel=_LIMITS)
]
MaxPromptBytes = Annotated[
    int, Option(min=0, help="Longest prompt, in UTF-8.", rich_help_panel=_LIMITS)
]
MaxMetadataBytes = Annotated[
    int, Option(min=0, help="Most metadata of a sample, serialized.", rich_help_panel=_LIMITS)
]
MaxImageSide = Annotated[
    int, Option(min=1, help="Greatest height and width of an image.", rich_help_panel=_LIMITS)
]
MaxImagePixels = Annotated[
    int, Option(min=1, help="Greatest height times width of an image.", rich_help_panel=_LIMITS)
]
MaxImageSegments = Annotated[
    int,
    Option(
        min=1,
        help="Most chunks of a WebP or PNG file, but those of its pixels, and segments of a JPEG.",
        rich_help_panel=_LIMITS,
    ),
]
MaxImageDataChunks = Annotated[
    int, Option(min=1, help="Most chunks of a PNG's pixels.", rich_help_panel=_LIMITS)
]
MaxImageScans = Annotated[int, Option(min=1, help="Most scans of a JPEG.", rich_help_panel=_LIMITS)]
MaxImageScanPixels = Annotated[
    int,
    Option(
        min=1,
        help="Greatest height times width times scans of a JPEG.",
        rich_help_panel=_LIMITS,
    ),
]
MaxLargeWaiting = Annotated[
    int,
    Option(
        min=1,
        help="Calls that wait for room for an image of more than 1536 x 1536 pixels; further ones "
        "are refused.",
        rich_help_panel=_LIMITS,
    ),
]
MaxPending = Annotated[
    int,
    Option(
        min=1,
        help="Samples of one reward held at once; calls beyond are refused.",
        rich_help_panel=_LIMITS,
    ),
]

MaxBatch = Annotated[
    float | None,
    Option(
        min=0,
        callback=_number,
        help="Most samples scored together, in units of the reward's cost; default: the reward's.",
        rich_help_panel=_BATCHING,
    ),
]
MaxDelay = Annotated[
    float | None,
    Option(
        min=0,
        max=_LONGEST_SECONDS,
        callback=_number,
        help="Seconds that a batch which is not full waits for more; default: the reward's.",
        rich_help_panel=_BATCHING,
    ),
]
CacheScores = Annotated[
    int,
    Option(
        min=0,
        help="Scores remembered, so that the same sample is not scored twice; 0: none.",
        rich_help_panel=_BATCHING,
    ),
]
SharedDir = Annotated[
    Path | None,
    Option(
        help="Directory shared with callers on this host, who may leave images there.",
        rich_help_panel=_BATCHING,
    ),
]
