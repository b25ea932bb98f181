"""`python -m services MODULE`: host the rewards of one module over gRPC."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))  # the working folder, which `python -m` puts first
    from salon.own_modules import come_last

    come_last()  # before anything is imported that may lie there, too: PYTHONPATH may name it

import logging
import os
from typing import NoReturn

from salon.extras import exit_without

if __name__ == "__main__":
    exit_without("serving", "python -m services")

import typer

from salon import logs
from salon.errors import InvalidRequest, SalonError
from salon.memory import keep_freed_memory
from salon.own_modules import PROGRAM
from salon.wire.images import ImageLimits
from services.scoring.limits import Limits
from services.server import flags
from services.server.grpc_server import serve
from services.server.options import ServerOptions, tls_files
from services.server.reward_modules import choose_rewards

_SERVER = ServerOptions()
_LIMITS = Limits()
# A thread that comes back from computing outside Python's global lock waits this long for it. With
# Python's 5 ms the JPEG reward was served a tenth slower to 16 clients.
SWITCH_SECONDS = 0.0005


def main(
    module: flags.Module,
    model: flags.Model = "",
    device: flags.Device = "",
    dtype: flags.Dtype = "",
    settings: flags.Settings = None,
    host: flags.Host = _SERVER.host,
    port: flags.Port = _SERVER.port,
    health_port: flags.HealthPort = None,
    metrics_port: flags.MetricsPort = None,
    reflection: flags.Reflection = _SERVER.reflection,
    log_calls: flags.LogCalls = _SERVER.log_calls,
    grace: flags.Grace = _SERVER.grace_seconds,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    tls_client_ca: flags.TlsClientCa = None,
    tokens: flags.TokensFile = None,
    insecure: flags.Insecure = _SERVER.insecure,
    max_concurrent_calls: flags.MaxConcurrentCalls = _SERVER.max_concurrent_calls,
    max_message_bytes: flags.MaxMessageBytes = _LIMITS.max_message_bytes,
    max_samples: flags.MaxSamples = _LIMITS.max_samples,
    max_prompt_bytes: flags.MaxPromptBytes = _LIMITS.max_prompt_bytes,
    max_metadata_bytes: flags.MaxMetadataBytes = _LIMITS.max_metadata_bytes,
    max_image_side: flags.MaxImageSide = _LIMITS.image.max_side,
    max_image_pixels: flags.MaxImagePixels = _LIMITS.image.max_pixels,
    max_image_segments: flags.MaxImageSegments = _LIMITS.image.max_segments,
    max_image_data_chunks: flags.MaxImageDataChunks = _LIMITS.image.max_data_chunks,
    max_image_scans: flags.MaxImageScans = _LIMITS.image.max_scans,
    max_image_scan_pixels: flags.MaxImageScanPixels = _LIMITS.image.max_scan_pixels,
    max_large_waiting: flags.MaxLargeWaiting = _SERVER.max_large_waiting,
    max_pending: flags.MaxPending = _SERVER.max_pending,
    max_batch: flags.MaxBatch = None,
    max_delay: flags.MaxDelay = None,
    cache_scores: flags.CacheScores = _SERVER.cache_scores,
    shared_dir: flags.SharedDir = None,
) -> None:
    """Host the rewards that MODULE defines; the first is the default."""
    logs.configure("reward-service")
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        options = ServerOptions(
            host=host,
            port=port,
            health_port=health_port,
            metrics_port=metrics_port,
            reflection=reflection,
            log_calls=log_calls,
            grace_seconds=grace,
            tls=tls_files(tls_cert, tls_key, tls_client_ca),
            tokens=tokens,
            insecure=insecure,
            limits=Limits(
                max_samples,
                max_message_bytes,
                max_prompt_bytes,
                max_metadata_bytes,
                ImageLimits(
                    max_image_side,
                    max_image_pixels,
                    max_image_segments,
                    max_image_data_chunks,
                    max_image_scans,
                    max_image_scan_pixels,
                ),
            ),
            max_concurrent_calls=max_concurrent_calls,
            max_large_waiting=max_large_waiting,
            max_pending=max_pending,
            max_batch=max_batch,
            max_delay_seconds=max_delay,
            cache_scores=cache_scores,
            shared_dir=shared_dir,
        )
        own = _pairs(settings or []) | _given(model=model, device=device, dtype=dtype)
        serve(choose_rewards(module, own), options)
    except SalonError as error:
        typer.echo(str(error), err=True)
        _exit(1)
    _exit(0)


def _exit(code: int) -> NoReturn:
    # A thread may still compute for a caller who is gone, and Python would wait for it without end.
    logging.shutdown()
    os._exit(code)


def _given(**options: str) -> dict[str, str]:
    return {name: value for name, value in options.items() if value}


def _pairs(settings: list[str]) -> dict[str, str]:
    for setting in settings:
        if "=" not in setting:
            raise InvalidRequest(f"--set {setting!r} is not of the form key=value")
    return {name: value for name, _, value in (setting.partition("=") for setting in settings)}


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name=os.environ.pop(PROGRAM, None))
