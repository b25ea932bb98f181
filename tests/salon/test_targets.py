import socket

import psutil
import pytest

from salon import targets
from salon.client.channel import connect
from salon.errors import ServiceUnavailable, from_rpc_error
from salon.targets import addresses, is_local, is_this_host, through_proxy
from tests.fixtures.service import free_port


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "target",
    [
        *("127.0.0.1:1", "127.8.8.8:1", "localhost:1", "localhost", "[::1]:1", "::1"),
        *("unix:/run/salon.sock", "unix:///run/salon.sock", "ipv4:127.0.0.1:1,127.0.0.2:1"),
        *("ipv6:[::1]:1", "dns:localhost:1", "dns:///localhost:1", "dns://10.0.0.1/localhost:1"),
    ],
)
def test_these_targets_are_on_this_host(target):
    assert is_local(target)
    assert is_this_host(target)


@pytest.mark.parametrize(
    "target",
    [
        *("10.0.0.1:1", "rewards:1", "rewards", "[::2]:1", ":1", ""),
        *("ipv4:127.0.0.1:1,10.0.0.1:1", "dns:///rewards:1", "localhost.example.com:1"),
        *("xds:///localhost:1", "https://localhost:1", "127.0.0.1.example.com:1"),
    ],
)
def test_these_may_be_elsewhere(target):
    assert not is_local(target)
    assert not is_this_host(target)


@pytest.mark.parametrize(
    "target",
    ["0.0.0.0:1", "[::]:1", "ip6-localhost:1", f"{socket.gethostname()}:1"],
)
def test_a_proxy_leads_nowhere_else_but_a_token_needs_tls(target):
    assert is_this_host(target)
    assert not is_local(target)


def test_the_addresses_of_this_host_are_its_own():
    interfaces = psutil.net_if_addrs().values()
    own = [
        entry.address
        for entries in interfaces
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    assert own
    assert all(map(targets._is_own, own))
    assert not targets._is_own("10.0.0.1")


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_the_proxy_that_grpc_asks_is_named_without_its_password(monkeypatch, name):
    monkeypatch.setenv(name, "http://someone:s3cret@proxy.example:3128")
    assert f"through the proxy http://proxy.example:3128 of {name}" in through_proxy("rewards:1")
    assert "s3cret" not in through_proxy("rewards:1")
    assert through_proxy("127.0.0.1:1") == through_proxy("unix:/run/salon.sock") == ""


@pytest.mark.parametrize("exceptions", ["a, rewards.example", ".example", "10.0.0.0/8,example"])
def test_what_no_proxy_lists_goes_through_none(monkeypatch, exceptions):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    assert through_proxy("rewards.example:1") == ""
    assert bool(through_proxy("10.1.2.3:1")) == ("10." not in exceptions)
    assert through_proxy("rewards.other:1") != ""


def test_an_error_names_the_proxy(monkeypatch):
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("http_proxy", dead)
    with connect("rewards.example:50051", retries=False) as channel:
        call = channel.unary_unary("/x/Y").future(b"", timeout=20)
        error = from_rpc_error(call.exception(), "rewards.example:50051")
    assert isinstance(error, ServiceUnavailable)
    assert f"(through the proxy {dead} of http_proxy; no_proxy lists" in str(error)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("rewards:1", [("rewards", 1)]),
        ("rewards", [("rewards", None)]),
        ("[::1]:50051", [("::1", 50051)]),
        ("[::1]", [("::1", None)]),
        ("::1", [("::1", None)]),
        ("dns://10.0.0.1/rewards:1", [("rewards", 1)]),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", [("127.0.0.1", 1), ("127.0.0.2", 2)]),
        ("rewards:http", [("rewards", None)]),
        ("rewards:65536", [("rewards", None)]),
        ("unix:/run/salon.sock", None),
    ],
)
def test_hosts_and_ports_of_a_target(target, found):
    assert addresses(target) == found
