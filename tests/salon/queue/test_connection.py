"""What `connect_now` says of a Redis that is not to be had."""

import socket
import threading

import pytest

from salon.errors import StackUnavailable
from salon.queue.connection import RedisMisnamed, RedisRefused, connect_now
from tests.fixtures.redis import RedisServer, free_port


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"), password="s3cret")
    yield server
    server.stop()


def greet(server):
    with server.accept()[0] as client:
        client.sendall(b"SSH-2.0-OpenSSH\r\n")
        client.recv(1024)


@pytest.fixture
def ssh():
    """The port of something else that listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        yield port
        thread.join()


def test_the_right_password_connects(locked):
    assert connect_now(locked.url).ping()


@pytest.mark.parametrize(
    ("secret", "words"),
    [("", "asks for a password.*SALON_STATE_DIR"), (":wr0ng@", "does not take the password")],
)
def test_another_password_is_said_to_be_wrong_and_not_shown(locked, secret, words):
    with pytest.raises(RedisRefused, match=words) as caught:
        connect_now(f"redis://{secret}127.0.0.1:{locked.port}/0")
    assert "wr0ng" not in str(caught.value)


def test_what_is_no_redis_is_said_to_be_none(ssh):
    with pytest.raises(RedisRefused, match=f"127.0.0.1:{ssh}/0 is no Redis"):
        connect_now(f"redis://:s3cret@127.0.0.1:{ssh}/0")


def test_a_database_that_it_lacks_is_named_with_the_servers_limit(locked):
    for index in ("99", "9" * 30):
        with pytest.raises(
            RedisRefused, match=f"has no database {index}: .* 16, so the last is 15"
        ):
            connect_now(locked.url.replace("/0", f"/{index}"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://s3cret@127.0.0.1:{port}/0", r"://\*\*\*@.* redis://:PASSWORD@HOST:PORT/0"),
        ("redis://:s3cret@127.0.0.1:{port}/0", "start one with `salon up`"),
        ("rediss://:s3cret@127.0.0.1:{port}/0", "see that this Redis runs"),
        ("redis://:s3cret/x@127.0.0.1:{port}/0", "write / @ . # of a password as %2F"),
        ("http://:s3cret@127.0.0.1:{port}/0", "redis://:PASSWORD@HOST|following schemes|%2F"),
        ("redis://127.0.0.1:{port}/0?password=s3cret&nonsense=1", "nonsense"),
        ("rediss://:s3cret@127.0.0.1:{port}/0?ssl_ca_certs=/no.pem", "/no.pem, which is no file"),
    ],
)
def test_no_error_shows_the_password(url, words):
    with pytest.raises(StackUnavailable, match=words) as caught:
        connect_now(url.format(port=free_port()))
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:1/abc", "nothing but /DATABASE"),
        ("redis://:12?cret@127.0.0.1:1/0", "nothing but /DATABASE"),
        ("redis://127.0.0.1:x/0", "Port could not be cast"),
        ("redis://[::1/0", "Invalid IPv6"),
        ("redis://127.0.0.1:1/0?db=one", "Invalid value"),
        ("redis://127.0.0.1:1/0?nonsense=1", "no option nonsense; there are db, "),
        ("redis://127.0.0.1:1/0?decode_responses=true", "no option decode_responses"),
        ("redis://:pw@127.0.0.1:1/0?db=1&protocol=3", "no option protocol"),
        ("redis://127.0.0.1:1/0?encoding=", "no option encoding"),
        ("redis://127.0.0.1:1/0?ssl_cert_reqs=none", "no option ssl_cert_reqs"),
        ("rediss://127.0.0.1:1/0?ssl_cert_regs=none", "no option ssl_cert_regs"),
        ("redis://127.0.0.1:0/0", "no Redis listens at port 0"),
        ("redis://:p?ss=1@127.0.0.1:1/0", "of a password as %2F"),
        ("rediss://127.0.0.1:1/0?ssl_cert_reqs=maybe", "maybe"),
        ("rediss://127.0.0.1:1/0?ssl_ca_certs=/no.pem", "/no.pem, which is no file"),
        ("http://127.0.0.1:1/0", "following schemes"),
        ("redis://:s3cr\udcff@127.0.0.1:1/0", "of a password as %2F"),
        ("redis://127..1:1/0", "label"),
    ],
)
def test_what_is_no_url_is_told_from_a_redis_that_is_away(url, words):
    with pytest.raises(RedisMisnamed, match=words):
        connect_now(url)
    with pytest.raises(StackUnavailable) as caught:
        connect_now("redis://127.0.0.1:1/0")
    assert not isinstance(caught.value, RedisMisnamed)
