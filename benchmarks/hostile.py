"""What one honest caller feels beside many who send files made to cost more than they look.

`python -m benchmarks.hostile run` starts the jpeg service as a process, and for each kind of file
so many hostile callers in processes of their own, who send it over and over. Its last line is all
that it measured, as JSON. Callers and service share the machine's processors: what that alone costs
the honest caller is measured first, beside as many processes that only compute (`busy`), and is
what each kind is compared with. With `--nice 19` the hostile processes get only what is left over.
"""

import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import psutil
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine, versions
from benchmarks.photographs import cut_squares, find_photographs
from benchmarks.ports import free_port
from salon import RewardClient, SalonError
from salon.client.channel import METHOD_SCORE, connect
from salon.reward.v1 import reward_pb2

PROCESSES = 4  # of hostile callers
BUSY = "busy"  # the kind of those who send nothing and compute
REST_SECONDS = 5.0
"""From the end of an attack to the look at what the service still uses."""
PNG, JPEG, WEBP = (
    reward_pb2.IMAGE_FORMAT_PNG,
    reward_pb2.IMAGE_FORMAT_JPEG,
    reward_pb2.IMAGE_FORMAT_WEBP,
)
LARGE = 4096


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(extra: bytes) -> bytes:
    whole = _saved(Image.new("RGB", (8, 8)), "PNG")
    return whole[:33] + extra + whole[33:]


def _webp_claim() -> bytes:
    """A lossless WebP of a few bytes whose header says 4096 x 4096."""
    data = bytearray(_saved(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    (bits,) = struct.unpack_from("<I", data, 21)
    struct.pack_into("<I", data, 21, bits & 0xF0000000 | (LARGE - 1) << 14 | (LARGE - 1))
    return bytes(data)


def _many_scans(times: int) -> bytes:
    """A progressive JPEG, one short scan of which is there over and over."""
    data = _saved(Image.new("L", (LARGE, LARGE), 128), "JPEG", quality=95, progressive=True)
    start = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    end = data.index(b"\xff", start + 2)
    while data[end + 1] == 0:
        end = data.index(b"\xff", end + 2)
    return data[:end] + data[start:end] * times + data[end:]


RAW = reward_pb2.IMAGE_FORMAT_RGB8
FILES: dict[str, Callable[[], tuple[reward_pb2.ImageFormat.ValueType, bytes]]] = {
    # Refused at once: what 16 MB cost on their way alone.
    "wrong_length": lambda: (RAW, bytes(16_000_000)),
    "webp_claims_4096": lambda: (WEBP, _webp_claim()),
    "webp_of_one_colour": lambda: (
        WEBP,
        _saved(Image.new("RGB", (LARGE, LARGE), (9, 99, 199)), "WEBP", lossless=True),
    ),
    "png_of_one_colour": lambda: (PNG, _saved(Image.new("RGB", (LARGE, LARGE)), "PNG")),
    "png_empty_chunks": lambda: (PNG, _png(_chunk(b"teSt", b"") * 1_200_000)),
    "png_data_chunks": lambda: (PNG, _png(_chunk(b"IDAT", b"") * 1_200_000)),
    "png_compressed_text": lambda: (
        PNG,
        _png(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 10_000),
    ),
    "jpeg_markers": lambda: (JPEG, b"\xff\xd8" + b"\xff\xe1\0\2" * 4_000_000),
    "jpeg_scans": lambda: (JPEG, _many_scans(20_000)),
    "jpeg_cmyk": lambda: (JPEG, _saved(Image.new("CMYK", (LARGE, LARGE)), "JPEG")),
}
"""By name: what the hostile callers send."""


def measure(callers: int, seconds: float, kinds: list[str], nice: int) -> dict[str, Any]:
    """Everything measured, ready for JSON: milliseconds, MiB and seconds of processor time.

    Args:
        callers: hostile ones at once.
        seconds: how long each kind is sent, and how long the quiet before is.
        kinds: names in `FILES`.
        nice: of the hostile callers' processes.
    """
    results = {}
    photograph = _saved(Image.fromarray(cut_squares(find_photographs(), 1, 512)[0]), "PNG")
    with _service() as (target, _), _attack(target, BUSY, callers, nice):
        busy = _honest(target, photograph, seconds)
    for kind in kinds:
        with _service() as (target, process):
            quiet = _honest(target, photograph, seconds)
            with _attack(target, kind, callers, nice) as answers:
                time.sleep(1)
                under = _honest(target, photograph, seconds)
            used = _processor_seconds(process)
            peak = _status(process, "VmHWM")
            time.sleep(REST_SECONDS)
            results[kind] = {
                "bytes": len(FILES[kind]()[1]),
                "answers": answers(),
                "quiet": quiet,
                "attacked": under,
                "p99_ratio": round(under["p99_ms"] / quiet["p99_ms"], 2),
                "p99_ratio_to_busy": round(under["p99_ms"] / busy["p99_ms"], 2),
                "peak_mib": peak,
                "idle_mib": _status(process, "VmRSS"),
                "processor_seconds_after": round(_processor_seconds(process) - used, 2),
            }
    return {
        "benchmark": "hostile",
        "callers": callers,
        "processes": PROCESSES,
        "nice": nice,
        "seconds": seconds,
        "rest_seconds": REST_SECONDS,
        "busy": busy,
        "kinds": results,
        "machine": describe_machine() | {"load": [round(one, 1) for one in os.getloadavg()]},
        "versions": versions(("grpcio", "numpy", "pillow", "protobuf", "simplejpeg")),
    }


@contextmanager
def _service() -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-m", "services", "jpeg", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as started:
        try:
            target = f"127.0.0.1:{port}"
            with grpc.insecure_channel(target) as channel:
                grpc.channel_ready_future(channel).result(60)
            with RewardClient(target) as client:
                client.describe()
            yield target, psutil.Process(started.pid)
        finally:
            started.kill()


def _honest(target: str, photograph: bytes, seconds: float) -> dict[str, Any]:
    """Score one image after the other; what each took."""
    took: list[float] = []
    failed = 0
    with RewardClient(target) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                [outcome] = client.score([photograph], deadline=30)
                failed += outcome.error is not None
            except SalonError:
                failed += 1
            took.append((time.perf_counter() - began) * 1000)
    p50, p99 = np.percentile(took, [50, 99])
    return {
        "calls": len(took),
        "failed": failed,
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
    }


@contextmanager
def _attack(
    target: str, kind: str, callers: int, nice: int
) -> Iterator[Callable[[], dict[str, int]]]:
    """Within, so many callers send; gives what they were answered, once it is over."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(index) for index in range(PROCESSES)]
        share = str(max(1, callers // PROCESSES))
        attack = [sys.executable, "-m", "benchmarks.hostile", "attack", target, kind, share]
        command = ["nice", "-n", str(nice), *attack]
        attackers = [
            subprocess.Popen([*command, str(log)], stderr=subprocess.DEVNULL) for log in logs
        ]
        answers: dict[str, int] = {}
        try:
            while not all(log.exists() for log in logs):
                time.sleep(0.1)
            yield lambda: answers
        finally:
            for attacker in attackers:
                attacker.terminate()
                attacker.wait()
            for log in logs:
                for line in log.read_text().splitlines():
                    answers[line] = answers.get(line, 0) + 1


def _send(target: str, payload: bytes, log: Any) -> None:
    with connect(target, retries=False) as channel:
        score = channel.unary_unary(
            METHOD_SCORE, response_deserializer=reward_pb2.ScoreResponse.FromString
        )
        while True:
            try:
                [outcome] = score(payload, timeout=3).outcomes
                word = reward_pb2.ErrorCode.Name(outcome.error.code)
                log.write((word if outcome.HasField("error") else "scored") + "\n")
            except grpc.RpcError as error:
                log.write(f"{error.code().name}\n")  # type: ignore[attr-defined]


def _status(process: psutil.Process, field: str) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) // 1024


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _show(result: dict[str, Any]) -> None:
    title = f"One honest caller beside {result['callers']} hostile ones"
    columns = ("", "quiet p50, p99", "attacked p50, p99", "p99 to quiet, busy", "peak", "idle")
    table = Table(*columns, title=title)
    busy = f"{result['busy']['p50_ms']:.1f}, {result['busy']['p99_ms']:.1f} ms"
    table.add_row(BUSY, "", busy, "", "", "")
    for kind, found in result["kinds"].items():
        times = [
            f"{found[when]['p50_ms']:.1f}, {found[when]['p99_ms']:.1f} ms"
            for when in ("quiet", "attacked")
        ]
        sizes = [f"{found[when]} MiB" for when in ("peak_mib", "idle_mib")]
        ratios = f"{found['p99_ratio']:.1f}, {found['p99_ratio_to_busy']:.1f}"
        table.add_row(kind, *times, ratios, *sizes)
    Console().print(table)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    callers: Annotated[int, typer.Option(min=1, help="Hostile callers at once.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="Of quiet, and of each attack.")] = 6.0,
    kind: Annotated[list[str] | None, typer.Option(help="Only files of this name.")] = None,
    nice: Annotated[int, typer.Option(min=0, max=19, help="Of the hostile processes.")] = 0,
) -> None:
    """Measure, show a table, and print everything as one line of JSON."""
    result = measure(callers, seconds, kind or list(FILES), nice)
    _show(result)
    print(json.dumps(result))


@app.command(hidden=True)
def attack(target: str, kind: str, callers: int, log: Path) -> None:
    """Send files of one kind until killed; each answer is a line of `log`."""
    if kind == BUSY:
        log.touch()
        while True:
            pass
    form, data = FILES[kind]()
    sample = reward_pb2.Sample(image=reward_pb2.Image(format=form, data=data))
    payload = reward_pb2.ScoreRequest(samples=[sample]).SerializeToString()
    with log.open("w", buffering=1) as answers:
        threads = [
            threading.Thread(target=_send, args=(target, payload, answers)) for _ in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    app()
