"""The server as a process: health, limits, drain, its command line."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from salon import RewardClient, SalonError
from salon.errors import InvalidRequest, from_rpc_error
from salon.reward.v1 import reward_pb2 as pb
from tests.fixtures.calls import status
from tests.fixtures.service import REPOSITORY, wait_until
from tests.salon.files import encoded, noise

FAULTY = "tests.services.faulty"


def run(*arguments):
    command = [sys.executable, "-m", "services", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )


def test_health_is_served_under_every_name(jpeg_service):
    for name in ("", "liveness", "readiness", "salon.reward.v1.RewardService"):
        assert jpeg_service.health(name) == "SERVING"
    assert jpeg_service.health("another") == "NOT_FOUND"


def test_reflection_is_there_only_when_asked_for(start_service, jpeg_service):
    def services(target):
        with grpc.insecure_channel(target) as channel:
            return ProtoReflectionDescriptorDatabase(channel).get_services()

    assert "salon.reward.v1.RewardService" in services(start_service("jpeg", "--reflection").target)
    with pytest.raises(grpc.RpcError) as caught:
        services(jpeg_service.target)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_port_in_use_is_one_readable_line(jpeg_service):
    done = run("jpeg", "--port", str(jpeg_service.port))
    assert done.returncode == 1
    assert done.stdout + done.stderr == (
        f"{jpeg_service.target} is in use; free it or choose another --port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jpg", "--port", "0"], "no reward module 'jpg': did you mean jpeg? Else choose one of "),
        (["no.such.module", "--port", "0"], "no reward module 'no.such.module'"),
        (["salon.errors", "--port", "0"], "defines no subclass of salon.serving.Reward"),
        (["jpeg", "--host", "192.0.2.1", "--insecure"], "cannot listen at 192.0.2.1:50051"),
        (["jpeg", "--host", "0.0.0.0"], "--insecure"),
        (["jpeg", "--tls-cert", "chain.pem"], "TLS needs both --tls-cert and --tls-key"),
        (["jpeg", "--set", "size"], "--set 'size' is not of the form key=value"),
        (["jpeg", "--set", "size=3"], "jpeg_compressibility has no option 'size'; known: none"),
    ],
)
def test_a_command_that_cannot_work_says_so_in_one_line(arguments, words):
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_call_in_flight_finish_and_turns_new_ones_away(
    start_service, patient, stub, signum
):
    service = start_service(FAULTY)
    score = stub(service).Score
    in_flight = score.future(patient.request("first"))
    patient.await_began("first")
    service.process.send_signal(signum)
    wait_until(lambda: service.health() == "NOT_SERVING", "health NOT_SERVING")
    assert service.health("readiness") == "NOT_SERVING"
    assert status(score.future(patient.request("second", wait=False))) == "UNAVAILABLE"
    patient.let_go()
    assert status(in_flight) == 1.0
    assert service.process.wait(30) == 0
    assert patient.began() == {"first"}
    assert service.events()[-1]["event"] == "stopped"


def test_what_outlasts_the_grace_is_cut_off(start_service, patient, stub):
    service = start_service(FAULTY, "--grace", "0.2", "--metrics-port", "0")
    score = stub(service).Score
    calls = [score.future(patient.request("endless"))]
    patient.await_began("endless")
    calls.append(score.future(patient.request("behind it")))
    wait_until(lambda: service.metric('pending_samples{reward="patient"}') == 2, "both pending")
    service.process.terminate()
    assert service.process.wait(30) == 0
    assert [status(call) for call in calls] == ["UNAVAILABLE"] * 2
    assert [event["calls"] for event in service.events() if "calls" in event] == [2]


def test_a_health_watcher_does_not_hold_up_the_drain(start_service):
    service = start_service("jpeg", "--grace", "1000")
    with grpc.insecure_channel(service.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert service.stop() == 0
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_call_whose_deadline_passed_while_it_waited_is_not_computed(start_service, patient, stub):
    service = start_service(FAULTY)
    score = stub(service).Score
    first = score.future(patient.request("first"))
    patient.await_began("first")
    assert status(score.future(patient.request("late"), timeout=0.3)) == "DEADLINE_EXCEEDED"
    patient.let_go()
    assert status(first) == 1.0
    assert status(score.future(patient.request("last"))) == 1.0
    assert patient.began() == {"first", "last"}


def test_a_busy_service_is_healthy_and_a_full_one_says_so(start_service, patient, stub):
    service = start_service(FAULTY, "--max-concurrent-calls", "3")
    score = stub(service).Score
    calls = [score.future(patient.request("first"))]
    patient.await_began("first")
    calls.append(score.future(patient.request("second")))
    assert service.health() == "SERVING"
    calls += [score.future(patient.request(f"late {index}")) for index in range(3)]
    wait_until(lambda: sum(call.done() for call in calls) == 2, "two calls refused")
    patient.let_go()
    assert sorted(map(status, calls), key=str) == [1.0] * 3 + ["RESOURCE_EXHAUSTED"] * 2


def test_a_message_above_the_limit_is_refused_and_the_server_lives(jpeg_service, stub):
    image = pb.Image(format=pb.IMAGE_FORMAT_GRAY8, data=bytes(17_000_000), height=4000, width=4250)
    request = pb.ScoreRequest(samples=[pb.Sample(image=image)])
    assert status(stub(jpeg_service).Score.future(request)) == "RESOURCE_EXHAUSTED"
    assert jpeg_service.health() == "SERVING"


def test_an_empty_batch_and_bytes_that_are_no_request_are_refused(jpeg_service, stub):
    assert status(stub(jpeg_service).Score.future(pb.ScoreRequest())) == "INVALID_ARGUMENT"
    with grpc.insecure_channel(jpeg_service.target) as channel:
        garbage = channel.unary_unary("/salon.reward.v1.RewardService/Score").future(b"\xff" * 40)
        assert garbage.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = from_rpc_error(garbage, jpeg_service.target)
    assert isinstance(error, InvalidRequest)
    assert "the 40 bytes of the call are no ScoreRequest" in str(error)
    assert jpeg_service.health() == "SERVING"


def test_one_json_line_is_logged_for_each_call(start_service):
    service = start_service("jpeg", "--log-calls")
    with RewardClient(service.target) as client:
        client.score([noise()] * 3, reward="jpeg_incompressibility")
        with pytest.raises(SalonError):
            client.score([noise()], reward="beauty")
    describe, score, refused = (event for event in service.events() if event["event"] == "call")
    assert (describe["method"], describe["code"]) == ("GetReward", "OK")
    assert score["reward"] == "jpeg_incompressibility"
    assert (score["method"], score["code"]) == ("Score", "OK")
    assert (score["samples"], score["errors"]) == (3, 0)
    assert score["image_bytes"] == 3 * noise().size
    assert score["seconds"] > 0
    assert score["level"] == "info"
    assert (refused["code"], refused["reward"]) == ("NOT_FOUND", "beauty")


def test_many_clients_at_once_get_their_own_answers(jpeg_service):
    images = [noise(16 + index, 16, seed=index) for index in range(16)]

    def score(image):
        with RewardClient(jpeg_service.target) as client:
            return [client.score([image])[0].score for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(score, images))
    expected = [-len(encoded(image, "JPEG", quality=95)) / 1000 for image in images]
    assert answers == [[score] * 5 for score in expected]


def test_the_port_is_free_again_after_a_stop(start_service):
    service = start_service("jpeg")
    with RewardClient(service.target) as client:
        client.score([noise()])
        assert service.stop() == 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", service.port))
    start_service("jpeg", port=service.port)
