"""The stack's own Redis, as a client on the same host meets it."""

import stat

import pytest
import redis

from salon.errors import InvalidRequest, SalonError
from salon.queue.broker import create_app, send_launch
from salon.queue.connection import connect_now
from salon.redis_password import with_new_password, with_stored_password
from salon.redis_url import password
from salon.settings import Settings, load_settings
from salon.stack.embedded_redis import redis_program
from salon.stack.supervisor import Supervisor
from tests.fixtures.service import free_port
from tests.fixtures.stack import wait_until


@pytest.fixture
def start(tmp_path):
    """Start one for a URL; returns the URL with its password."""
    supervisor = Supervisor(tmp_path / "state" / "logs")

    def run(url):
        own = with_new_password(tmp_path / "state", url)
        supervisor.add(redis_program(tmp_path / "state", own))
        wait_until(lambda: "Ready to accept" in log.read_text(), "it answers", 20)
        return own

    log = tmp_path / "state" / "logs" / "redis.log"
    yield run
    supervisor.stop()


@pytest.fixture
def anonymous_url():
    return f"redis://127.0.0.1:{free_port()}/0"


def test_nobody_without_the_password_is_let_in_and_the_stack_is(
    start, anonymous_url, tmp_path, monkeypatch
):
    start(anonymous_url)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(anonymous_url).ping()
    # Any process with the same settings: it need not be told.
    monkeypatch.setenv("SALON_REDIS_URL", anonymous_url)
    monkeypatch.setenv("SALON_STATE_DIR", str(tmp_path / "state"))
    settings = load_settings()
    assert connect_now(settings.redis_url).ping()
    with create_app(settings) as app:
        send_launch(app, "a-job")
    assert connect_now(settings.redis_url).llen("train") == 1
    assert password(settings.redis_url) not in repr(settings)


@pytest.mark.parametrize(
    "command",
    [
        *("CONFIG GET dir", "CONFIG SET dir /tmp", "SAVE", "BGSAVE", "MODULE LIST", "ACL LIST"),
        *("DEBUG SLEEP 0", "REPLICAOF 127.0.0.1 1", "SLAVEOF 127.0.0.1 1", "SHUTDOWN", "MONITOR"),
        *("MIGRATE 127.0.0.1 1 key 0 1", "BGREWRITEAOF", "FLUSHALL", "CLUSTER INFO"),
    ],
)
def test_not_even_who_knows_it_may_write_files_or_run_code(secured_client, command):
    with pytest.raises(redis.exceptions.NoPermissionError):
        secured_client.execute_command(*command.split())
    name, *arguments = command.split()
    script = f"return redis.call('{name}', {', '.join(map(repr, arguments))})".replace(", )", ")")
    with pytest.raises(redis.ResponseError):
        secured_client.eval(script, 0)
    assert secured_client.ping()


@pytest.fixture(scope="module")
def secured_client(tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    url = with_new_password(state, f"redis://127.0.0.1:{free_port()}/0")
    supervisor = Supervisor(state / "logs")
    supervisor.add(redis_program(state, url))
    client = redis.Redis.from_url(url, retry_on_error=[redis.ConnectionError])
    wait_until(lambda: _answers(client), "it answers", 20)
    yield client
    supervisor.stop()


def _answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def test_its_policy_can_still_be_read(secured_client):
    assert secured_client.info("memory")["maxmemory_policy"] == "noeviction"


@pytest.mark.parametrize("user", ["", "alice"])
def test_the_password_of_the_url_is_asked_for(start, tmp_path, user):
    port = free_port()
    start(f"redis://{user}:s3%2Fcret@127.0.0.1:{port}/0")
    assert connect_now(f"redis://{user}:s3%2Fcret@127.0.0.1:{port}/0").ping()
    for front in ("", ":wrong@", "bob:s3%2Fcret@"):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(f"redis://{front}127.0.0.1:{port}/0").ping()
    assert not (tmp_path / "state" / "redis" / "password").exists()
    for file in (tmp_path / "state").rglob("*"):
        assert file.is_dir() or "s3/cret" not in file.read_text()


def test_its_files_are_its_users_alone(start, anonymous_url, tmp_path):
    (tmp_path / "state" / "redis").mkdir(parents=True)  # as an older release made it
    own = start(anonymous_url)
    connect_now(own).set("key", "value")
    folder = tmp_path / "state" / "redis"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert set(names.values()) == {0o600}
    assert {"password", "redis.conf", "appendonly.aof"} <= names.keys()
    program = redis_program(tmp_path / "state", own)
    assert not any(password(own) in part for part in program.command)


def test_the_password_stays_and_is_for_that_port_alone(tmp_path):
    first = with_new_password(tmp_path / "state", "redis://127.0.0.1:6390/0")
    assert len(password(first)) > 40
    assert with_new_password(tmp_path / "state", "redis://127.0.0.1:6390/0") == first
    for other in (
        "redis://127.0.0.1:6379/0",
        "redis://10.0.0.1:6390/0",
        "redis://:x@localhost:6390/0",
        "redis://x@localhost:6390/0",
    ):
        assert with_stored_password(tmp_path / "state", other) == other


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "\xff", "[" * 10**5),
        *(f'{{"port": 6390, "password": {value}}}' for value in ("null", "1", r'"\ud800"')),
    ],
    ids=lambda text: text[:40],
)
def test_a_damaged_password_is_named(tmp_path, text):
    with_new_password(tmp_path / "state", "redis://127.0.0.1:6390/0")
    (tmp_path / "state" / "redis" / "password").write_text(text, encoding="latin-1")
    with pytest.raises(SalonError, match="password is damaged: delete it"):
        with_stored_password(tmp_path / "state", "redis://127.0.0.1:6390/0")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://a%0Aport%201:x@localhost:1", "cannot be the name"),
        ("redis://:x@10.0.0.1:1", "no URL for a Redis"),
        ("redis://:x@localhost:1/99", "database 99: the stack's own Redis has 16, the last is 15"),
        ("redis://:x@localhost:1/0?db=-1", "database -1"),
    ],
)
def test_what_it_cannot_serve_is_refused(tmp_path, url, words):
    with pytest.raises(InvalidRequest, match=words):
        redis_program(tmp_path, url)
    assert Settings(redis_url=url)
