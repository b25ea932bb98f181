"""The URL of a Redis: how it is shown, how Celery reads it, what a program needs of it."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

_IN_QUERY = re.compile(r"(?<=[?&])([^=&]*password)=[^&]*", re.IGNORECASE)
# To the last @: a password may hold anything where somebody forgot to encode it.
_IN_FRONT = re.compile(r"^([a-z][a-z0-9+.-]*://)?+([^:@]*):.*@", re.IGNORECASE | re.DOTALL)
# What stands alone there is the name of a user, or a password that lacks its colon.
_ALONE = re.compile(r"^([a-z][a-z0-9+.-]*://)?+[^:@/][^:]*@", re.IGNORECASE)
_WITHOUT_HOST = re.compile(r"^([a-z][a-z0-9+.-]*://):(?!\d*(?:[/?#]|$))[^@]*$", re.IGNORECASE)

_OPTIONS = frozenset(
    (
        *("db", "username", "password", "retry_on_timeout", "health_check_interval"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive"),
    )
)
_TLS = frozenset(
    f"ssl_{name}"
    for name in (
        *("ca_certs", "ca_data", "ca_path", "cert_reqs", "certfile", "keyfile", "password"),
        *("check_hostname", "ciphers", "min_version"),
        *("include_verify_flags", "exclude_verify_flags"),
        *("validate_ocsp", "validate_ocsp_stapled", "ocsp_context", "ocsp_expected_cert"),
    )
)


def shown(url: str) -> str:
    """`url` for people, logs and errors: without its passwords, also where it is no proper URL."""
    hidden = _IN_QUERY.sub(r"\1=***", url)
    return _WITHOUT_HOST.sub(r"\1:***", _IN_FRONT.sub(r"\1\2:***@", _ALONE.sub(r"\1***@", hidden)))


def password(url: str) -> str:
    """The password in `url`; empty if there is none."""
    return dict(parse_qsl(urlsplit(url).query)).get("password") or unquote(
        urlsplit(url).password or ""
    )


def username(url: str) -> str:
    """The user in `url`; empty for Redis's default user."""
    parts = urlsplit(url)
    return dict(parse_qsl(parts.query)).get("username") or unquote(parts.username or "")


def lacks_colon(url: str) -> bool:
    """Whether one word stands before the host: to Redis a user, to who wrote it often a password.

    With a password among the parameters it is a user.
    """
    front = urlsplit(url).netloc.rpartition("@")[0]
    return bool(front) and ":" not in front and not password(url)


def database(url: str) -> str:
    """The index of the database in `url`, as it is written; empty if there is none."""
    parts = urlsplit(url)
    path = "" if parts.scheme == "unix" else parts.path.strip("/")
    return dict(parse_qsl(parts.query)).get("db", path)


def own_port(url: str) -> int | None:
    """The port, if `url` is one at which the local stack may run a Redis of its own."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        return None
    local = parts.scheme == "redis" and parts.hostname in ("127.0.0.1", "localhost")
    return port if local else None


def is_misread(url: str) -> bool:
    """Whether a part of `url` is not what it is for, as where a password holds a bare / ? or #."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        return False
    # redis-py leaves out what is no option: that it was the host would not be noticed.
    cut = any("@" in part and "=" not in part for part in parts.query.split("&"))
    return cut or bool(parts.fragment) or not re.fullmatch(r"/?|/\d+/?", parts.path)


def no_options(url: str) -> list[str]:
    """Options that `url` names and that do not say how its Redis is reached.

    Others of redis-py change what is read of it, such as decode_responses.
    """
    parts = urlsplit(url)
    # What is in front of the host, if a password holds a bare ?, is not to be shown.
    query = "" if "@" in parts.query else parts.query
    known = _OPTIONS | _TLS if parts.scheme == "rediss" else _OPTIONS
    return [name for name, _ in parse_qsl(query, keep_blank_values=True) if name not in known]


def missing_files(url: str) -> list[str]:
    """Certificates and keys that `url` names and that are not there."""
    query = dict(parse_qsl(urlsplit(url).query))
    named = map(query.get, ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))
    return [name for name in named if name and not Path(name).is_file()]


def with_password(url: str, secret: str) -> str:
    """`url`, which has no password, with this one."""
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.rstrip(':')}:{quote(secret, safe='')}@{place}"))


def broker_url(url: str) -> str:
    """`url`, as redis-py understands it, in the form that Celery understands.

    Celery takes passwords and databases nowhere but in their usual place, has another scheme for
    Unix sockets, trusts any server's certificate unless it is told otherwise, and stumbles over
    options that are redis-py's alone.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    user = query.pop("username", unquote(parts.username or ""))
    secret = query.pop("password", unquote(parts.password or ""))
    place = parts.netloc.rpartition("@")[2]
    front = f"{quote(user, safe='')}:{quote(secret, safe='')}@" if user or secret else ""
    if parts.scheme == "unix":
        return f"redis+socket://{front}{parts.path}?virtual_host={query.get('db', '0')}"
    tls = {name: value for name, value in query.items() if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        tls.setdefault("ssl_cert_reqs", "required")
    path = f"/{query['db']}" if "db" in query else parts.path
    return urlunsplit((parts.scheme, front + place, path, urlencode(tls), ""))
