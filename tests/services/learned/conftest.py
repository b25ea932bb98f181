"""A server that does nothing but learn, in this process; a test module says its `reward`."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from services.scoring.decoding import DecodedPixels
from services.scoring.limits import Limits
from services.scoring.metrics import Metrics
from services.server.admission import Admission
from services.server.answers import Answering
from services.server.learned_servicer import LearnedServicer


@pytest.fixture
def admission():
    """Lets everybody in."""
    admission = Admission(8)
    admission.open()
    return admission


@pytest.fixture
def metrics(reward):
    """What is counted there."""
    return Metrics([reward.name])


@pytest.fixture
def channel(reward, admission, metrics):
    """To a server that does nothing but learn."""
    answering = Answering(admission, metrics, None, log_calls=False)
    servicer = LearnedServicer(Limits(), answering, DecodedPixels())
    servicer.host([reward])
    server = grpc.server(ThreadPoolExecutor(4))
    servicer.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Otherwise gRPC takes the more ahead of its reader, the faster the connection is.
    options = [("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield channel
    server.stop(0).wait()
