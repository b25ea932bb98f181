import pytest

from salon import redis_url
from salon.redis_url import broker_url, missing_files, own_port, shown, with_password


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:6390/0", "redis://127.0.0.1:6390/0"),
        ("redis://:s3cret@127.0.0.1:6390/0", "redis://:***@127.0.0.1:6390/0"),
        ("redis://alice:s3%40cret@h:6390/0", "redis://alice:***@h:6390/0"),
        ("rediss://h/0?ssl_ca_certs=/a.pem&password=s3cret", "rediss://h/0?ssl_ca_certs=/a.pem&password=***"),
        ("rediss://h/0?ssl_password=s3cret&db=1", "rediss://h/0?ssl_password=***&db=1"),
        ("unix://:s3cret@/run/redis.sock?db=1", "unix://:***@/run/redis.sock?db=1"),
        ("unix:///run/redis.sock?password=s3cret", "unix:///run/redis.sock?password=***"),
        # To Redis a user, but what is written so is as often a password.
        ("redis://s3cret@h:6390/0", "redis://***@h:6390/0"),
        ("rediss://s3/cret@x@h", "rediss://***@h"),
        ("s3cret@h:6390", "***@h:6390"),
        ("unix:///run/a@b.sock?db=1", "unix:///run/a@b.sock?db=1"),
        # What is no proper URL, and is quoted in an error for that.
        ("redis://:s3/cr?e#t@h:6390/0", "redis://:***@h:6390/0"),
        ("redis://:s3cr@et@h:6390/0", "redis://:***@h:6390/0"),
        (":s3cret@h:6390", ":***@h:6390"),
        ("redis://:s3cret", "redis://:***"),
        ("redis://localhost:x/0", "redis://localhost:x/0"),
    ],
)  # fmt: skip
def test_it_is_shown_without_its_password(url, words):
    assert shown(url) == words


@pytest.mark.parametrize(
    ("url", "celerys"),
    [
        ("redis://127.0.0.1:6390/0", "redis://127.0.0.1:6390/0"),
        ("redis://a:p%40w@h:1/2", "redis://a:p%40w@h:1/2"),
        ("redis://h:1?db=3&password=p@w&socket_timeout=5", "redis://:p%40w@h:1/3"),
        ("unix://a:pw@/run/r.sock?db=3", "redis+socket://a:pw@/run/r.sock?virtual_host=3"),
        ("unix:///run/r.sock?password=pw", "redis+socket://:pw@/run/r.sock?virtual_host=0"),
        # Without a word about certificates Celery would trust any.
        ("rediss://h:1/0", "rediss://h:1/0?ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_cert_reqs=none", "rediss://h:1/0?ssl_cert_reqs=none"),
    ],
)
def test_celery_gets_it_as_celery_reads_it(url, celerys):
    assert broker_url(url) == celerys


def test_the_password_is_found_where_redis_py_finds_it():
    assert redis_url.password("redis://:p%2Fw@h:1/0") == "p/w"
    assert redis_url.password("redis://h:1/0?password=pw") == "pw"
    assert redis_url.password("redis://h:1/0") == ""
    assert redis_url.password(with_password("redis://alice@h:1/0", "p/@:w")) == "p/@:w"
    assert redis_url.username(with_password("redis://alice@h:1/0", "pw")) == "alice"


@pytest.mark.parametrize(
    ("url", "port"),
    [
        *(("redis://127.0.0.1:6390/0", 6390), ("redis://:pw@localhost", 6379)),
        *(("redis://10.0.0.1:6390/0", None), ("rediss://127.0.0.1:6390/0", None)),
        *(("unix:///run/redis.sock", None), ("redis://127.0.0.1:x", None), ("redis://[::1", None)),
    ],
)
def test_where_the_stack_may_run_a_redis_of_its_own(url, port):
    assert own_port(url) == port


def test_certificates_that_are_missing_are_named(tmp_path):
    (tmp_path / "ca.pem").touch()
    url = f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem&ssl_keyfile={tmp_path}/own.key"
    assert missing_files(url) == [f"{tmp_path}/own.key"]


@pytest.mark.parametrize(
    ("url", "misread"),
    [
        ("redis://:p@SECRET/w#rd@127.0.0.1:6390/0", True),
        ("redis://127.0.0.1:6390/abc", True),
        ("redis://:12?cret@127.0.0.1:6390/0", True),
        ("redis://alice:12?cret@127.0.0.1:6390/0", True),
        ("redis://?password=p@w&db=1", False),
        ("redis://:p%40s%2Fw%23rd@127.0.0.1:6390/0", False),
        ("redis://127.0.0.1:6390", False),
        ("rediss://host:6390/1?ssl_ca_certs=/a/b", False),
        ("unix:///run/redis.sock?db=0", False),
    ],
)
def test_a_password_that_is_not_encoded_is_noticed(url, misread):
    assert redis_url.is_misread(url) is misread


@pytest.mark.parametrize(
    ("url", "lacks"),
    [
        *(("redis://s3cret@h:1/0", True), ("unix://s3cret@/run/r.sock", True)),
        *(("redis://:s3cret@h:1/0", False), ("redis://alice:@h:1/0", False)),
        *(("redis://h:1/0", False), ("unix://alice@/run/r.sock?password=p", False)),
    ],
)
def test_a_word_without_a_colon_before_the_host_is_noticed(url, lacks):
    assert redis_url.lacks_colon(url) is lacks


@pytest.mark.parametrize(
    ("url", "index"),
    [
        *(("redis://h:1/99", "99"), ("redis://h:1", ""), ("rediss://h/0?db=3", "3")),
        *(("unix:///run/r.sock", ""), ("unix:///run/r.sock?db=2", "2")),
    ],
)
def test_the_database_is_found_where_redis_py_finds_it(url, index):
    assert redis_url.database(url) == index
