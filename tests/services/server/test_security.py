"""TLS, tokens and exposure through the command line, on real processes."""

import json
import os
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from salon import RewardClient
from salon.errors import Unauthenticated
from salon.security import Security
from salon.tokens import new_token
from tests.fixtures.certificates import Authority
from tests.fixtures.service import REPOSITORY, free_port, wait_until
from tests.salon.files import noise


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def token(tmp_path):
    value, line = new_token("laptop")
    (tmp_path / "tokens").write_text(line)
    (tmp_path / "tokens").chmod(0o640)
    return value


def command(*arguments):
    return [sys.executable, "-m", "services", *map(str, arguments)]


def refused(*arguments):
    """The one line with which a service ends that cannot start."""
    done = subprocess.run(
        command(*arguments),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    return done.stderr


@pytest.fixture
def start(tmp_path):
    """Start a jpeg service with flags, wait until it serves; its log."""
    processes = []

    def run(*flags):
        log = tmp_path / f"{len(processes)}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command("jpeg", *flags),
                cwd=REPOSITORY,
                stderr=stderr,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        processes.append(process)
        wait_until(lambda: b'"event": "serving"' in log.read_bytes(), "serving")
        return log

    yield run
    for process in processes:
        process.kill()
        process.wait()


def score(port, security):
    with RewardClient(f"localhost:{port}", security=security) as client:
        [outcome] = client.score([noise()], reward="jpeg_incompressibility")
    return outcome.score


def test_mutual_tls_with_tokens_and_a_plaintext_port_for_probes(start, authority, token, tmp_path):
    port, health_port = free_port(), free_port()
    certificate, key = authority.issue("server")
    log = start(
        *("--port", port, "--health-port", health_port, "--tokens", tmp_path / "tokens"),
        *("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.file),
        "--log-calls",
    )
    caller = authority.issue("caller")
    assert score(port, Security(token, authority.file, *caller)) > 0
    with pytest.raises(Unauthenticated, match="pass a bearer token that the service knows"):
        score(port, Security("", authority.file, *caller))
    with grpc.insecure_channel(f"127.0.0.1:{health_port}") as channel:
        request = health_pb2.HealthCheckRequest(service="readiness")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/salon.reward.v1.RewardService/Score")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    callers = {line["code"]: line.get("caller") for line in lines if line["event"] == "call"}
    assert callers == {"OK": "laptop", "UNAUTHENTICATED": None}
    assert token not in log.read_text()


@pytest.mark.parametrize("flags", [[], ["--tls-cert", "server.pem", "--tls-key", "server.key"]])
def test_strangers_on_the_network_are_refused_before_a_model_loads(authority, tmp_path, flags):
    authority.issue("server")
    files = [tmp_path / flag if flag.startswith("server") else flag for flag in flags]
    words = refused("jpeg", "--host", "0.0.0.0", "--port", 0, *files)
    assert "at 0.0.0.0 anyone on the network could call" in words


def test_what_makes_it_safe_lets_it_listen_to_the_network(start, authority, token, tmp_path):
    port = free_port()
    start("--host", "0.0.0.0", "--port", port, "--tokens", tmp_path / "tokens", "--insecure")
    assert score(port, Security(token)) > 0
    start("--host", "0.0.0.0", "--port", free_port(), "--insecure")


def test_files_that_cannot_be_used_are_one_line(authority, token, tmp_path):
    certificate, key = authority.issue("server")
    other = authority.issue("other")[1]
    assert "does not belong to certificate" in refused(
        *("jpeg", "--port", 0, "--tls-cert", certificate, "--tls-key", other)
    )
    assert "TLS needs both --tls-cert and --tls-key" in refused("jpeg", "--tls-key", key)
    (tmp_path / "tokens").chmod(0o666)
    assert "chmod go-w" in refused("jpeg", "--port", 0, "--tokens", tmp_path / "tokens")
    assert "No such file" in refused("jpeg", "--port", 0, "--tokens", tmp_path / "nothing")
