"""What probes are told of rewards that hang or break, and of callers who vanish."""

import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from salon.errors import Interrupted, ServiceUnavailable, from_rpc_error
from salon.reward.v1 import learned_reward_pb2 as learned_pb
from salon.reward.v1 import learned_reward_pb2_grpc
from salon.reward.v1 import reward_pb2 as pb
from salon.serving import LearnedReward, Reward
from services.scoring import batching, instance_scoring
from services.scoring.limits import Limits
from services.server import ports as listening
from services.server.grpc_server import RewardServer
from services.server.options import ServerOptions
from tests.fixtures.service import free_port
from tests.salon.files import encoded, noise
from tests.services.remembering import Remembering

IMAGE = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(noise()))


class Waiting(Reward):
    """Waits for the test's word where the prompt says so."""

    name, version, description = "waiting", "1", "Always 1."

    def __init__(self):
        self.began, self.go = threading.Event(), threading.Event()

    def score(self, samples):
        if samples[0].prompt == "wait":
            self.began.set()
            self.go.wait(30)
        return [1.0] * len(samples)


@pytest.fixture
def serve():
    """A server in this process; `serve(kind)` gives it, open, and a channel to it."""
    opened = []

    def start(kind):
        options = ServerOptions(port=free_port())
        server = RewardServer(options, [kind])
        server.open()
        channel = grpc.insecure_channel(f"127.0.0.1:{options.port}")
        opened.append((server, channel))
        return server, channel

    yield start
    for server, channel in opened:
        channel.close()
        server.stop()


def is_ready(channel):
    request = health_pb2.HealthCheckRequest(service="readiness")
    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


class WaitingInstance(Remembering):
    """A learned reward whose one instance waits as Waiting does."""

    def __init__(self):
        super().__init__()
        waiting = Waiting()
        self.began, self.go, self._score = waiting.began, waiting.go, waiting.score

    @contextmanager
    def opened(self, instance):
        yield SimpleNamespace(version="1", score=self._score)


@pytest.mark.parametrize(("kind", "instance"), [(Waiting, ""), (WaitingInstance, "a")])
def test_a_service_whose_batch_hangs_is_not_ready_until_it_goes_on(
    serve, monkeypatch, kind, instance
):
    server, channel = serve(kind)
    reward = kind()
    server.host([reward])
    server.check()
    assert is_ready(channel)
    score = channel.unary_unary("/salon.reward.v1.RewardService/Score").future
    samples = [pb.Sample(image=IMAGE, prompt="wait")]
    request = pb.ScoreRequest(samples=samples, instance=instance)
    call = score(request.SerializeToString())
    assert reward.began.wait(30)
    server.check()
    assert is_ready(channel)
    for module in (batching, instance_scoring):
        monkeypatch.setattr(module, "STUCK_SECONDS", 0)
    server.check()
    assert not is_ready(channel)
    reward.go.set()
    call.result(30)
    monkeypatch.undo()
    server.check()
    assert is_ready(channel)


@pytest.mark.parametrize("companions", [0, 3])
def test_a_service_whose_device_broke_ends_so_that_it_is_started_again(
    start_service, stub, companions
):
    service = start_service("tests.services.faulty:Fragile")

    def score(*prompts):
        samples = [pb.Sample(image=IMAGE, prompt=prompt) for prompt in prompts]
        return stub(service).Score(pb.ScoreRequest(samples=samples), timeout=30).outcomes

    assert [outcome.HasField("error") for outcome in score("raise", "raise")] == [True, True]
    assert score("")[0].score == 1, "bad samples alone change nothing"
    with pytest.raises(grpc.RpcError) as caught:
        score("break", *[""] * companions)
    told = from_rpc_error(caught.value, service.target)
    assert isinstance(told, Interrupted)
    assert "reward fragile fails even on its own example (RuntimeError)" in str(told)
    assert service.process.wait(30) == 1
    assert "illegal memory access" in str(service.events())


def test_so_does_one_whose_instances_raise_and_which_fails_without_them_too(start_service, stub):
    service = start_service("tests.services.remembering")

    def score(*prompts):
        samples = [pb.Sample(image=IMAGE, prompt=prompt) for prompt in prompts]
        request = pb.ScoreRequest(samples=samples, instance="a")
        return stub(service).Score(request, timeout=30).outcomes

    with grpc.insecure_channel(service.target) as channel:
        learned = learned_reward_pb2_grpc.LearnedRewardServiceStub(channel)
        learned.Fit(learned_pb.FitRequest(instance="a", request_id="1", steps=5), timeout=30)
    assert [outcome.HasField("error") for outcome in score("raise", "raise")] == [True, True]
    assert score("")[0].score == 5, "bad samples alone change nothing"
    with pytest.raises(grpc.RpcError) as caught:
        score("", "break", "", "")
    assert isinstance(from_rpc_error(caught.value, service.target), Interrupted)
    assert service.process.wait(30) == 1
    assert "illegal memory access" in str(service.events())


class Learning(LearnedReward):
    """Has a name; it is never made."""

    name, description = "learning", "Nothing."


def test_a_learned_service_that_starts_says_so(serve):
    _, channel = serve(Learning)
    stub = learned_reward_pb2_grpc.LearnedRewardServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Fit(learned_pb.FitRequest(instance="a", request_id="1"), timeout=10)
    error = from_rpc_error(caught.value, "here")
    assert type(error) is ServiceUnavailable
    assert "starting" in str(error)


def test_a_connection_that_answers_no_ping_is_closed(monkeypatch):
    monkeypatch.setattr(listening, "PING_SECONDS", 0.2)
    monkeypatch.setattr(listening, "PING_ANSWER_SECONDS", 0.2)
    server = listening.call_server(Limits(), 1, [])
    port = listening.bind(server, "127.0.0.1", 0)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
            # HTTP/2's preface and empty settings; then silence, as of a machine that lost power.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            received = b"".join(iter(lambda: connection.recv(4096), b""))
        assert received.endswith(b"ping_timeout")
    finally:
        server.stop(0).wait()
